"""The ``.rdq`` image container, version 1. Layout and rules: docs/format.md.

::

    magic        3   "RDQ"
    version      1   1
    fingerprint  8   of the model
    kind         1   bit 7: with a pixel checksum; bit 6: with a quality; bit 5: with sections; bit 4:
                     profile; bits 0..3: quantizer
    width        1-5 varint, true size of the picture
    height       1-5 varint
    z length     1-5 varint, bytes of the z stream (0 without a hyperprior)
    y length     1-5 varint
    step         1-5 varint, of trellis-coded latents only: in units of y, 1..65535
    quality      1-5 varint, if bit 6 of kind is set: in hundredths, 100..10000
    sections     1-5 varint, if bit 5 of kind is set: bytes of all sections, 1..4194304
    pixels       4   CRC32C of the decoded pixels, if bit 7 of kind is set
    checksum     4   CRC32C of everything above, little endian
    z stream, its CRC32C, y stream, its CRC32C
    sections, each its kind (1 byte), length (varint), content, and the CRC32C of these
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import google_crc32c

from ..errors import (
    Corrupt,
    LimitExceeded,
    NotOurFormat,
    Truncated,
    UnknownModel,
    UnsupportedVersion,
    UsageError,
)
from .atomic import read_file

MAGIC = b"RDQ"
#: of what `inspect_container` tells
COLUMNS = ("field", "offset", "bytes", "value")
VERSION = 1
#: bytes of both streams for each pixel of the picture padded to multiples of 64. An escape takes 7 bytes at
#: most, and a codec of stride 16 has at most 4,096 channels: 7 * 4096 / 16^2 = 112 for y, 7 * 4096 / 64^2 = 7
#: for z, rounded up, which leaves room for the coder's states
BYTES_PER_PIXEL = 128
#: of the step of trellis-coded latents
MOST_STEP = 65_535
#: bit of the kind byte
PIXEL_CHECKSUM = 0x80
#: and another: of models for many rates
QUALITY = 0x40
#: and the third: with what pictures carry besides their pixels
SECTIONS = 0x20
#: bytes of all sections of a file
MOST_SECTIONS = 2**22
#: qualities are written in hundredths of 1..100
LEAST_QUALITY, MOST_QUALITY = 100, 10_000


class Profile(IntEnum):
    """Whose arithmetic the decoder needs."""

    INTEGER = 0  #: exact integers: decodes on every machine
    FLOAT = 1  #: float networks: decodes where it was encoded


class Quantizer(IntEnum):
    """How latents were quantized."""

    UNIFORM = 0  #: uniform scalar
    TCQ4 = 1  #: trellis-coded, 4 states
    TCQ8 = 2  #: and 8 states

    @property
    def has_step(self) -> bool:
        return self is not Quantizer.UNIFORM


class Section(IntEnum):
    """What a picture carries besides its pixels. Kinds that a release does not know are let be."""

    ICC = 1  #: the colour profile of the decoded pixels
    EXIF = 2  #: a TIFF structure, nothing before it, without an orientation


#: kind -> content, in rising order of kinds
Sections = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Limits:
    """What a decoder is willing to look at; checked before anything is allocated."""

    pixels: int = 2**28
    side: int = 65_535


@dataclass(frozen=True)
class Header:
    """Everything but the streams.

    ``lengths``: bytes of the z and y streams. ``pixels``: the decoded picture's `checksum`, if it is there.
    ``step``: of quantizers that have one. ``quality``: of models for many rates, in hundredths.
    ``sections``: what the picture carries, `Section` or unknown kinds with their contents.
    """

    fingerprint: bytes
    profile: Profile
    quantizer: Quantizer
    width: int
    height: int
    lengths: tuple[int, int]
    pixels: int | None = None
    step: int | None = None
    quality: int | None = None
    sections: Sections = ()

    def section(self, kind: Section) -> bytes | None:
        return dict(self.sections).get(kind)


def checksum(data: bytes | memoryview) -> int:
    """CRC32C (Castagnoli); of pixels: of ``height * width * 3`` bytes, rows from the top, R G B."""
    return int(google_crc32c.value(bytes(data)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _most_bytes(width: int, height: int) -> int:
    """What the streams of a picture can possibly take, every symbol escaped."""
    return BYTES_PER_PIXEL * (-(-width // 64) * 64) * (-(-height // 64) * 64)


def _crc(data: bytes) -> bytes:
    return checksum(data).to_bytes(4, "little")


def write(
    fingerprint: bytes,
    profile: Profile,
    quantizer: Quantizer,
    width: int,
    height: int,
    streams: tuple[bytes, bytes],
    pixels: int | None = None,
    step: int | None = None,
    quality: int | None = None,
    sections: Sections = (),
) -> bytes:
    """A whole file from its parts. Raises `UsageError` for what `read` would refuse.

    ``pixels``: the `checksum` of what the decoder will put out, if the file is to carry it. ``step``: what
    trellis-coded latents are multiples of, in units of y. ``quality``, ``sections``: see `Header`.
    """
    limits = Limits()
    if not (1 <= width <= limits.side and 1 <= height <= limits.side and width * height <= limits.pixels):
        raise UsageError(f"a picture of {width}x{height} is over the limit of {limits.pixels} pixels a file")
    if len(fingerprint) != 8:
        raise UsageError(f"a fingerprint has 8 bytes, got {len(fingerprint)}")
    if quantizer.has_step != (step is not None) or not 1 <= (step or 1) <= MOST_STEP:
        raise UsageError(f"latents of {quantizer.name} cannot have step {step}")
    if quality is not None and not LEAST_QUALITY <= quality <= MOST_QUALITY:
        raise UsageError(f"quality must be in 1..100, got {quality / 100}")
    z, y = streams
    if len(z) + len(y) > _most_bytes(width, height):
        raise UsageError(
            f"{len(z) + len(y)} bytes of streams for a picture of {width}x{height}, "
            f"at most {_most_bytes(width, height)} are possible"
        )
    tail = _packed(sections)
    kind = profile << 4 | quantizer | (0 if pixels is None else PIXEL_CHECKSUM)
    kind |= (0 if quality is None else QUALITY) | (SECTIONS if tail else 0)
    head = MAGIC + bytes([VERSION]) + fingerprint + bytes([kind])
    head += _varint(width) + _varint(height) + _varint(len(z)) + _varint(len(y))
    if step is not None:
        head += _varint(step)
    if quality is not None:
        head += _varint(quality)
    if tail:
        head += _varint(len(tail))
    if pixels is not None:
        head += pixels.to_bytes(4, "little")
    return head + _crc(head) + z + _crc(z) + y + _crc(y) + tail


def _packed(sections: Sections) -> bytes:
    out, last = b"", 0
    for kind, content in sections:
        if not last < kind <= 255 or not content:
            raise UsageError(f"section {kind} of {len(content)} bytes cannot follow section {last}")
        section = bytes([kind]) + _varint(len(content)) + content
        out, last = out + section + _crc(section), kind
    if len(out) > MOST_SECTIONS:
        raise UsageError(f"{len(out)} bytes of colour profile and EXIF, at most {MOST_SECTIONS} fit a file")
    return out


def with_sections(data: bytes, sections: Sections) -> bytes:
    """A file with these sections instead of its own. Raises as `read` and `write` do."""
    h, streams = read(data)
    return write(
        h.fingerprint, h.profile, h.quantizer, h.width, h.height, streams,
        h.pixels, h.step, h.quality, sections,
    )  # fmt: skip


def bytes_of(sections: Sections) -> int:
    """How much longer they make a file."""
    size = len(_packed(sections))
    return size + len(_varint(size)) if size else 0


class _Reader:
    """Takes fields off the front, and remembers where each was."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.fields: list[tuple[str, int, int]] = []

    def take(self, name: str, count: int) -> bytes:
        if self.at + count > len(self.data):
            missing = self.at + count - len(self.data)
            raise Truncated(f"the file ends {missing} byte(s) before the end of its {name}")
        start, self.at = self.at, self.at + count
        self.fields.append((name, start, count))
        return self.data[start : self.at]

    def varint(self, name: str) -> int:
        start, value = self.at, 0
        for i in range(5):
            if start + i >= len(self.data):
                raise Truncated(f"the file ends inside its {name}")
            byte = self.data[start + i]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if byte == 0 and i:
                    raise Corrupt(f"{name} is not written in its shortest form")
                self.take(name, i + 1)
                return value
        raise Corrupt(f"{name} takes more than 5 bytes")

    def checksum(self, name: str, covered: bytes) -> None:
        if self.take(f"{name} checksum", 4) != _crc(covered):
            raise Corrupt(f"the checksum of the {name} is wrong: the file is damaged")


def _parse(data: bytes, limits: Limits) -> tuple[_Reader, Header, tuple[bytes, bytes]]:
    r = _Reader(data)
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise NotOurFormat("this is not an rdq file: it does not begin with 'RDQ'")
    r.take("magic", len(MAGIC))
    version = r.take("version", 1)[0]
    if version != VERSION:
        raise UnsupportedVersion(f"the file has container version {version}, this release reads {VERSION}")
    fingerprint = r.take("fingerprint", 8)
    kind = r.take("profile and quantizer", 1)[0]
    width, height = r.varint("width"), r.varint("height")
    lengths = (r.varint("z length"), r.varint("y length"))
    pixels = step = quality = size = None
    if kind & 15 in [q for q in Quantizer if q.has_step]:
        step = r.varint("step")
    if kind & QUALITY:
        quality = r.varint("quality")
    if kind & SECTIONS:
        size = r.varint("bytes of sections")
    if kind & PIXEL_CHECKSUM:
        pixels = int.from_bytes(r.take("pixel checksum", 4), "little")
    r.checksum("header", data[: r.at])
    try:
        profile, quantizer = Profile(kind >> 4 & 1), Quantizer(kind & 15)
    except ValueError:
        raise UnsupportedVersion(f"the file needs quantizer {kind & 15}, unknown to this release") from None
    if width == 0 or height == 0:
        raise Corrupt(f"the file says that its picture is {width}x{height}")
    if step == 0:
        raise Corrupt("the file says that its latents are multiples of 0")
    if quality is not None and not LEAST_QUALITY <= quality <= MOST_QUALITY:
        raise Corrupt(f"the file says that its quality is {quality / 100}, which must be in 1..100")
    if size == 0:
        raise Corrupt("the file says that it has 0 bytes of sections")
    for field, value, limit in (
        ("step", step or 0, MOST_STEP),
        ("width", width, limits.side),
        ("height", height, limits.side),
        ("number of pixels", width * height, limits.pixels),
        ("stream length", sum(lengths), _most_bytes(width, height)),
        ("bytes of sections", size or 0, MOST_SECTIONS),
    ):
        if value > limit:
            raise LimitExceeded(field, value, limit)
    streams = []
    for name, length in zip(("z stream", "y stream"), lengths, strict=True):
        streams.append(r.take(name, length))
        r.checksum(name, streams[-1])
    sections = _sections(r, size or 0)
    if r.at != len(data):
        raise Corrupt(f"{len(data) - r.at} byte(s) follow the file's end")
    header = Header(fingerprint, profile, quantizer, width, height, lengths, pixels, step, quality, sections)
    return r, header, (streams[0], streams[1])


def _sections(r: _Reader, size: int) -> Sections:
    end, found, last = r.at + size, [], 0
    if end > len(r.data):
        raise Truncated(f"the file ends {end - len(r.data)} byte(s) before the end of its sections")
    while r.at < end:
        start, kind = r.at, r.take("section", 1)[0]
        name = _name(kind)
        if kind <= last:
            raise Corrupt(f"{name} follows {_name(last)}: sections come once and in order")
        length = r.varint(f"{name} length")
        if not 0 < length <= end - r.at - 4:
            raise Corrupt(f"{name} has {length} bytes, where 1 to {end - r.at - 4} are possible")
        content = r.take(name, length)
        r.checksum(name, r.data[start : r.at])
        found.append((kind, content))
        last = kind
    if r.at != end:
        raise Corrupt("the last section ends behind the end of sections")
    return tuple(found)


def _name(kind: int) -> str:
    return f"{Section(kind).name} section" if kind in list(Section) else f"section {kind}"


def read(data: bytes, limits: Limits = Limits()) -> tuple[Header, tuple[bytes, bytes]]:
    """Header and the z and y streams. Any bytes give those, or an error of the `DecodeError` branch."""
    _, header, streams = _parse(bytes(data), limits)
    return header, streams


def describe(data: bytes) -> list[tuple[str, int, int, str]]:
    """``(field, offset, length, value)`` of each field in order. Raises as `read` does."""
    r, header, _ = _parse(bytes(data), Limits())
    values = {
        "magic": "RDQ",
        "version": str(VERSION),
        "fingerprint": header.fingerprint.hex(),
        "profile and quantizer": f"{header.profile.name.lower()}, {header.quantizer.name.lower()}",
        "width": str(header.width),
        "height": str(header.height),
        "step": str(header.step),
        "quality": str((header.quality or 0) / 100),
    }
    kinds = iter(header.sections)

    def value(name: str, part: bytes) -> str:
        if name == "section":
            return _name(next(kinds)[0])
        if name in values:
            return values[name]
        if name.endswith("length") or name == "bytes of sections":
            return str(sum((byte & 0x7F) << 7 * i for i, byte in enumerate(part)))
        return part.hex() if "checksum" in name else f"{len(part)} bytes"

    return [(name, at, n, value(name, r.data[at : at + n])) for name, at, n in r.fields]


def is_container(path: Path) -> bool:
    """Whether a file begins like an image container. Raises `UnknownModel` if there is none."""
    if not path.is_file():
        raise UnknownModel(f"no such file: {path}")
    with path.open("rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def inspect_container(path: Path) -> dict[str, Any]:
    """``{"rows": ..., "bytes": ...}``; raises as decoding does."""
    data = read_file(path)
    return {"kind": "image", "bytes": len(data), "rows": [list(row) for row in describe(data)]}


__all__ = [
    "COLUMNS", "Header", "Limits", "Profile", "Quantizer", "Section", "Sections", "bytes_of", "checksum",
    "describe", "inspect_container", "is_container", "read", "with_sections", "write",
]  # fmt: skip
