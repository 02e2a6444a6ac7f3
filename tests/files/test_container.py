from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from rdquant.files.container import Limits, Profile, Quantizer, describe, read, write

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


@pytest.mark.parametrize("kind", [0x0F, 0x20, 0xFF])
def test_unknown_profile_or_quantizer(kind: int) -> None:
    with pytest.raises(UnsupportedVersion, match=str(kind >> 4)):
        read(_lie(FILE[:12] + bytes([kind]) + FILE[13:HEAD]))


def test_truncated() -> None:
    with pytest.raises(Truncated, match="y stream"):
        read(FILE[:-6])


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


def test_describe_accounts_for_every_byte() -> None:
    rows = describe(FILE)
    at = 0
    for _, offset, length, _ in rows:
        assert offset == at
        at += length
    assert at == len(FILE)
    assert ("width", 13, 2, "300") in rows
