"""Every way to damage a small file, for tests and for benchmarks/damage.py."""

from __future__ import annotations

from collections.abc import Iterator

from rdquant.files.container import checksum, read

#: what a lie in a number says
LIES = (0, 1, 2, 63, 64, 65, 255, 4096, 65_534, 65_535, 65_536, 2**28, 2**31 - 1, 2**32 - 1, 2**32, 2**35 - 1)


def bit_flips(data: bytes) -> Iterator[bytes]:
    for at in range(8 * len(data)):
        out = bytearray(data)
        out[at // 8] ^= 1 << at % 8
        yield bytes(out)


def truncations(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


def overwrites(data: bytes, values: range = range(256)) -> Iterator[bytes]:
    """Every byte replaced by every other value."""
    for at, old in enumerate(data):
        for value in values:
            if value != old:
                yield data[:at] + bytes([value]) + data[at + 1 :]


def extensions(data: bytes) -> Iterator[bytes]:
    for count in (1, 7, 4096):
        yield data + bytes(count)
        yield data + data[:count]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def lies(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The field that lies, and the file with right checksums around the lie."""
    header, streams = read(data)
    fields: list[tuple[str, bytes]] = [
        ("magic", b"RDQ"), ("version", data[3:4]), ("fingerprint", header.fingerprint), ("kind", data[12:13]),
        ("width", varint(header.width)), ("height", varint(header.height)),
        ("z length", varint(len(streams[0]))), ("y length", varint(len(streams[1]))),
    ]  # fmt: skip
    if header.step is not None:
        fields.append(("step", varint(header.step)))
    if header.quality is not None:
        fields.append(("quality", varint(header.quality)))
    tail = packed(header.sections)
    if tail:
        fields.append(("bytes of sections", varint(len(tail))))
    if header.pixels is not None:
        fields.append(("pixel checksum", header.pixels.to_bytes(4, "little")))

    def build(changed: str, value: bytes, parts: tuple[bytes, ...] = streams) -> bytes:
        head = b"".join(value if name == changed else old for name, old in fields)
        body = b"".join(part + checksum(part).to_bytes(4, "little") for part in parts)
        return head + checksum(head).to_bytes(4, "little") + body + tail

    for name, old in fields:
        if name in ("width", "height", "z length", "y length", "bytes of sections"):
            true = {"width": header.width, "height": header.height, "bytes of sections": len(tail)}.get(
                name, len(streams[0 if name[0] == "z" else 1])
            )
            for value in {*LIES, true - 1, true + 1, 2 * true, 64 * true} - {true, -1}:
                yield name, build(name, varint(value))
        elif name == "quality":  # a neighbour may mean the same gains
            for value in {0, 99, 100, 10_000, 10_001, 2**32} - {header.quality}:
                yield name, build(name, varint(value))
        else:
            for at in range(len(old)):
                for value in {0, 1, 127, 128, 255, old[at] ^ 1, old[at] ^ 128} - {old[at]}:
                    yield name, build(name, old[:at] + bytes([value]) + old[at + 1 :])
    z, y = streams
    for label, parts in (
        ("streams swapped", (y, z)), ("z twice", (z, z)), ("y twice", (y, y)), ("no y", (z, b"")),
        ("no z", (b"", y)), ("no streams", (b"", b"")), ("y of zeros", (z, bytes(len(y)))),
        ("y one word short", (z, y[:-4])), ("y reversed", (z, y[::-1])), ("z reversed", (z[::-1], y)),
        ("y with another word", (z, y[:8] + bytes(4) + y[8:])),
    ):  # fmt: skip
        if parts == streams:
            continue
        sizes = [("z length", varint(len(parts[0]))), ("y length", varint(len(parts[1])))]
        head = b"".join(dict(sizes).get(name, old) for name, old in fields)
        body = b"".join(part + checksum(part).to_bytes(4, "little") for part in parts)
        yield label, head + checksum(head).to_bytes(4, "little") + body + tail
    if not tail:
        return
    kind, content = header.sections[0]
    body = b"".join(part + checksum(part).to_bytes(4, "little") for part in streams)

    def with_tail(other: bytes) -> bytes:
        sizes = {"bytes of sections": varint(len(other))}
        head = b"".join(sizes.get(name, old) for name, old in fields)
        return head + checksum(head).to_bytes(4, "little") + body + other

    section = packed(((kind, content),))
    for label, other in (
        ("a section twice", section + section), ("sections out of order", packed(((9, b"x"),)) + section),
        ("a section of kind 0", packed(((0, b"x"),))), ("an empty section", packed(((9, b""),))),
        ("a section that is short", section[:-1]), ("bytes after a section", section + b"\0"),
        ("a long section", bytes([kind]) + varint(2**35 - 1) + content + bytes(4)),
        ("an overlong length", bytes([kind, 0x81, 0]) + content[:1] + bytes(4)),
    ):  # fmt: skip
        yield label, with_tail(other)


def packed(sections: tuple[tuple[int, bytes], ...]) -> bytes:
    out = b""
    for kind, content in sections:
        section = bytes([kind]) + varint(len(content)) + content
        out += section + checksum(section).to_bytes(4, "little")
    return out
