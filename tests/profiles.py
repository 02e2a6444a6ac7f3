"""Colour profiles for tests, made by hand: no file of anyone's is needed."""

from __future__ import annotations

import functools


@functools.cache  # it holds the second that it was made in
def profile(name: str = "p3") -> bytes:
    """A small RGB profile: sRGB's curves with the primaries of Display P3, or sRGB."""
    from PIL import ImageCms

    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if name == "srgb":
        return made
    whole, count = bytearray(made), int.from_bytes(made[128:132], "big")
    columns = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for i in range(count):
        entry = 132 + 12 * i
        if (tag := bytes(whole[entry : entry + 4])) in columns:
            at = int.from_bytes(whole[entry + 4 : entry + 8], "big") + 8
            whole[at : at + 12] = b"".join(
                round(v * 65536).to_bytes(4, "big", signed=True) for v in columns[tag]
            )
    return bytes(whole)


def grey_profile(gamma: float = 1.0) -> bytes:
    """A minimal grey profile of one gamma."""
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")
    return _assembled(b"mntr", b"GRAY", b"XYZ ", ((b"wtpt", _xyz()), (b"kTRC", curve)))


def cmyk_profile() -> bytes:
    """A minimal CMYK profile: paper is white, black ink black, and the others grey."""
    identity = bytes(range(256))
    cube = b""
    for corner in range(16):
        inks = [corner >> (3 - i) & 1 for i in range(4)]
        light = 0 if inks[3] else 255 - 60 * sum(inks[:3])
        cube += bytes([light, 128, 128])
    one, none = (65536).to_bytes(4, "big"), bytes(4)
    matrix = b"".join(one if i % 4 == 0 else none for i in range(9))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * identity + cube + 3 * identity
    return _assembled(b"prtr", b"CMYK", b"Lab ", ((b"A2B0", table), (b"wtpt", _xyz())))


def _xyz() -> bytes:
    return b"XYZ " + bytes(4) + _WHITE


_WHITE = b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))


def _assembled(kind: bytes, space: bytes, pcs: bytes, tags: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04, 6.1 to 6.3)."""
    at, table, body = 128 + 4 + 12 * len(tags), len(tags).to_bytes(4, "big"), b""
    for tag, content in tags:
        content += bytes(-len(content) % 4)
        table += tag + (at + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    head = bytearray(128)
    head[0:4] = (128 + len(table) + len(body)).to_bytes(4, "big")
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\x02\x40\0\0", kind, space, pcs
    head[36:40], head[68:80] = b"acsp", _WHITE
    return bytes(head) + table + body
