from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damaged import lies
from plain_decoder import parse_container
from rdquant.errors import (
    Corrupt,
    DecodeError,
    LimitExceeded,
    NotOurFormat,
    RdquantError,
    Truncated,
    UnsupportedVersion,
    UsageError,
)
from rdquant.files.container import (
    MOST_SECTIONS,
    Limits,
    Profile,
    Quantizer,
    Section,
    bytes_of,
    describe,
    read,
    with_sections,
    write,
)

FINGERPRINT = bytes(range(8))
Z, Y = b"hyper-latent", b"latent stream of some length"
FILE = write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, 300, 7, (Z, Y))
HEAD = 3 + 1 + 8 + 1 + 2 + 1 + 1 + 1


def _lie(head: bytes, tail: bytes = FILE[HEAD + 4 :]) -> bytes:
    """A file with another header and a right checksum over it."""
    return head + google_crc32c.value(head).to_bytes(4, "little") + tail


@given(
    width=st.integers(1, 65_535),
    height=st.integers(1, 4096),
    z=st.binary(max_size=300),
    y=st.binary(max_size=300),
    profile=st.sampled_from(Profile),
)
def test_round_trip(width: int, height: int, z: bytes, y: bytes, profile: Profile) -> None:
    header, streams = read(write(FINGERPRINT, profile, Quantizer.UNIFORM, width, height, (z, y)))
    assert (header.width, header.height, header.profile, streams) == (width, height, profile, (z, y))
    assert header.fingerprint == FINGERPRINT and header.lengths == (len(z), len(y))


def test_overhead_is_at_most_36_bytes() -> None:
    z, y = bytes(10_000), bytes(2 * 2**20 - 1)
    data = write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, 2**14, 2**14 - 1, (z, y))
    assert len(data) - len(z) - len(y) <= 36


def test_overhead_of_a_768x512_picture_is_34_bytes() -> None:
    z, y = bytes(1000), bytes(30_000)
    assert len(write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, 768, 512, (z, y))) == 31_000 + 34


def test_checksum_is_castagnoli() -> None:
    data = write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, 9, 9, (b"", b"123456789"))
    assert data[-4:] == 0xE3069283.to_bytes(4, "little")


def test_every_damage_is_found(rng: np.random.Generator) -> None:
    damaged = [FILE[:n] for n in range(len(FILE))]
    damaged += [FILE + bytes(n) for n in (1, 7, 4096)]
    for i in range(len(FILE)):
        damaged += [FILE[:i] + bytes([FILE[i] ^ (1 << k)]) + FILE[i + 1 :] for k in range(8)]
        damaged += [
            FILE[:i] + bytes([v]) + FILE[i + 1 :] for v in (0, 255, int(rng.integers(256))) if v != FILE[i]
        ]
    for data in damaged:
        with pytest.raises(DecodeError):
            read(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    for candidate in (data, b"RDQ\x01" + data, _lie(FILE[:12] + data[:20], data[20:])):
        try:
            read(candidate)
        except RdquantError as error:
            assert isinstance(error, DecodeError)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"RD?", b"x" * 500])
def test_not_our_format(data: bytes) -> None:
    with pytest.raises(NotOurFormat):
        read(data)


def test_unsupported_version() -> None:
    with pytest.raises(UnsupportedVersion, match="2"):
        read(_lie(FILE[:3] + b"\x02" + FILE[4:HEAD]))


@pytest.mark.parametrize("kind", [0x03, 0x0F, 0x1F])
def test_unknown_quantizer(kind: int) -> None:
    with pytest.raises(UnsupportedVersion, match=f"quantizer {kind & 15}"):
        read(_lie(FILE[:12] + bytes([kind]) + FILE[13:HEAD]))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (1, "magic"),
        (3, "version"),
        (11, "fingerprint"),
        (12, "quantizer"),
        (14, "width"),
        (HEAD + 3, "header checksum"),
        (HEAD + 5, "z stream"),
        (len(FILE) - 6, "y stream"),
        (len(FILE) - 1, "y stream checksum"),
    ],
)
def test_truncated(length: int, message: str) -> None:
    with pytest.raises(Truncated, match=message):
        read(FILE[:length])


def test_bytes_after_the_end() -> None:
    with pytest.raises(Corrupt, match="1 byte"):
        read(FILE + b"\0")


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value % 0x80 + 0x80]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("lie", [0, 1, -1, 65_535, 65_536, 2**32, 2**35 - 1, 2**35])
def test_lies_with_a_right_checksum(field: int, lie: int) -> None:
    """Other lengths are found; another size within the limits is a file with another size."""
    for value in (lie, 300 + lie) if field < 2 else (lie, (len(Z), len(Y))[field - 2] + lie):
        values = [300, 7, len(Z), len(Y)]
        if value < 0 or value == values[field]:
            continue
        values[field] = value
        data = _lie(FILE[:13] + b"".join(map(_varint, values)))
        if field < 2 and 1 <= value <= 65_535:
            assert read(data)[0].width == values[0] and read(data)[0].height == values[1]
        else:
            with pytest.raises((Corrupt, LimitExceeded, Truncated)):
                read(data)


@pytest.mark.parametrize("streams", [(Y, Z), (Z, Z), (Y, Y), (Y,), (Z,), ()])
def test_streams_swapped_doubled_or_missing(streams: tuple[bytes, ...]) -> None:
    with pytest.raises(DecodeError):
        read(FILE[: HEAD + 4] + b"".join(s + google_crc32c.value(s).to_bytes(4, "little") for s in streams))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (FILE[:13] + b"\x00" + FILE[15:HEAD], "0x7"),
        (FILE[:15] + b"\x00" + FILE[16:HEAD], "300x0"),
        (FILE[:13] + b"\xac\x82\x00" + FILE[15:HEAD], "shortest"),
        (FILE[:13] + b"\xff\xff\xff\xff\xff\x01" + FILE[15:HEAD], "5 bytes"),
        (FILE[: HEAD - 2] + b"\x0b" + FILE[HEAD - 1 : HEAD], "checksum of the z stream"),
        (FILE[: HEAD - 1] + b"\x1b", "checksum of the y stream"),
    ],
)
def test_corrupt_fields_with_a_right_checksum(head: bytes, message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        read(_lie(head))


@pytest.mark.parametrize(
    ("head", "field"),
    [
        (FILE[:13] + b"\x80\x80\x04" + FILE[15:HEAD], "width"),
        (FILE[:13] + b"\xff\xff\x03\xff\xff\x03" + FILE[16:HEAD], "number of pixels"),
        (FILE[: HEAD - 1] + b"\xff\xff\xff\x7f", "stream length"),
    ],
)
def test_limits_are_checked_before_the_streams(head: bytes, field: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read(_lie(head))
    assert caught.value.field == field


def test_limits_can_be_tightened() -> None:
    with pytest.raises(LimitExceeded, match="2100"):
        read(FILE, Limits(pixels=2099))


def test_write_refuses_what_read_would() -> None:
    for size in ((0, 5), (65_536, 1), (65_535, 65_535)):
        with pytest.raises(UsageError):
            write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, *size, (Z, Y))
    with pytest.raises(UsageError, match="8 bytes"):
        write(b"short", Profile.INTEGER, Quantizer.UNIFORM, 1, 1, (Z, Y))
    with pytest.raises(UsageError, match="streams"):
        write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, 1, 1, (Z, bytes(2**20)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4096), (65, 63), (64, 64)])
def test_a_picture_of_escapes_fits(width: int, height: int) -> None:
    """The widest codec, 7 bytes for each symbol, the coder's states: thin pictures too."""
    blocks = -(-width // 64) * -(-height // 64)
    z, y = bytes(7 * 4096 * blocks + 12), bytes(7 * 4096 * 16 * blocks + 12)
    data = write(FINGERPRINT, Profile.INTEGER, Quantizer.UNIFORM, width, height, (z, y))
    assert read(data)[1] == (z, y)


def test_describe_accounts_for_every_byte() -> None:
    rows = describe(FILE)
    at = 0
    for _, offset, length, _ in rows:
        assert offset == at
        at += length
    assert at == len(FILE)
    assert ("width", 13, 2, "300") in rows


def test_describe_takes_four_bytes_of_stream_for_a_stream() -> None:
    data = write(FINGERPRINT, Profile.FLOAT, Quantizer.UNIFORM, 1, 1, (b"abcd", b"efgh"))
    assert [row[3] for row in describe(data) if row[0] in ("z stream", "y stream")] == ["4 bytes"] * 2


def test_example_in_the_documentation() -> None:
    data = write(
        bytes.fromhex("0011223344556677"),
        Profile.INTEGER,
        Quantizer.UNIFORM,
        768,
        512,
        (b"", bytes(range(8))),
    )
    lines = [f"{at:>4}  {data[at : at + n].hex(' '):<23}  {name}: {v}" for name, at, n, v in describe(data)]
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert "\n".join(lines) in text


def test_steps_are_of_trellis_coded_latents() -> None:
    for step in (1, 127, 128, 65_535):
        data = write(FINGERPRINT, Profile.INTEGER, Quantizer.TCQ8, 9, 9, (Z, Y), 7, step)
        header, streams = read(data)
        assert (header.quantizer, header.step, header.pixels, streams) == (Quantizer.TCQ8, step, 7, (Z, Y))
        assert ("step", str(step)) in [(name, value) for name, _, _, value in describe(data)]
    for quantizer, bad in ((Quantizer.UNIFORM, 5), (Quantizer.TCQ4, None), (Quantizer.TCQ4, 65_536)):
        with pytest.raises(UsageError, match="step"):
            write(FINGERPRINT, Profile.INTEGER, quantizer, 9, 9, (Z, Y), None, bad)


@given(contents=st.dictionaries(st.integers(1, 255), st.binary(min_size=1, max_size=300), max_size=5))
def test_sections_come_with_a_picture(contents: dict[int, bytes]) -> None:
    sections = tuple(sorted(contents.items()))
    data = with_sections(FILE, sections)
    header, streams = read(data)
    assert (header.sections, streams) == (sections, (Z, Y))
    assert len(data) == len(FILE) + bytes_of(sections)
    assert header.section(Section.EXIF) == contents.get(2)
    rows = describe(data)
    assert sum(n for _, _, n, _ in rows) == len(data)
    assert with_sections(data, ()) == FILE


def test_sections_that_read_would_refuse_are_not_written() -> None:
    for sections in (
        ((2, b"x"), (1, b"y")),
        ((1, b"x"), (1, b"y")),
        ((0, b"x"),),
        ((256, b"x"),),
        ((1, b""),),
    ):
        with pytest.raises(UsageError, match="section"):
            with_sections(FILE, sections)
    with pytest.raises(UsageError, match=str(MOST_SECTIONS)):
        with_sections(FILE, ((1, bytes(MOST_SECTIONS)),))


def test_sections_are_limited_before_they_are_looked_at() -> None:
    head = FILE[:12] + b"\x20" + FILE[13:HEAD] + _varint(MOST_SECTIONS + 1)
    with pytest.raises(LimitExceeded, match="sections"):
        read(_lie(head))


def test_a_second_reader_agrees_about_sections() -> None:
    data = with_sections(FILE, ((1, b"profile"), (2, b"exif"), (200, b"of a later release")))
    assert parse_container(data).sections == dict(read(data)[0].sections)
    refused = 0
    for label, lie in lies(data):
        answers = []
        for reader in (read, parse_container):
            try:
                reader(lie)
                answers.append(True)
            except (DecodeError, ValueError):
                answers.append(False)
        assert answers[0] == answers[1], label
        refused += not answers[0]
    assert refused > 50
