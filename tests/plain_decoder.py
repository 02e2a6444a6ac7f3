"""A plain decoder of .rdq pictures, written from docs/format.md, not from rdquant, as a test of that page.

It needs the standard library and NumPy, and decodes the integer profile exactly: every value between the
file and the pixels is an int64. Clarity comes before speed. Anything wrong with a file is a ValueError.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    CRC_TABLE.append(_byte)
TYPES = {"I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
RANS_L = 1 << 31
#: quantizer -> the quantizer of each state, and the states that follow it
TRELLISES = {
    1: ((0, 0, 1, 1), ((0, 2), (2, 0), (1, 3), (3, 1))),
    2: (
        (0, 1, 0, 1, 0, 1, 0, 1),
        ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)),
    ),
}
#: four parts: position 2 row + column in its square that group g of the channels decodes in pass k
FOUR_PARTS = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1))


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


# ---- the container


class Container(NamedTuple):
    fingerprint: bytes
    width: int
    height: int
    z_stream: bytes
    y_stream: bytes
    pixel_checksum: int | None
    quantizer: int
    step: int
    quality: int | None
    sections: dict[int, bytes]


def parse_container(data: bytes) -> Container:
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        need(position + size <= len(data), "the file ends early")
        position += size
        return data[position - size : position]

    def number() -> int:  # LEB128, shortest form, at most 5 bytes
        value = 0
        for index in range(5):
            byte = take(1)[0]
            value |= (byte & 127) << 7 * index
            if byte < 128:
                need(byte > 0 or index == 0, "overlong varint")
                return value
        raise ValueError("varint too long")

    def checked(size: int) -> bytes:
        content = take(size)
        need(crc32c(content) == int.from_bytes(take(4), "little"), "wrong checksum of a stream")
        return content

    need(data[:3] == b"RDQ", "not an RDQ file")
    position = 3
    need(take(1) == b"\x01", "unsupported version")
    fingerprint, kind = take(8), take(1)[0]
    width, height, z_length, y_length = number(), number(), number(), number()
    quantizer, step = kind & 15, 1
    if quantizer in TRELLISES:
        step = number()
    quality = number() if kind & 64 else None
    sections_length = number() if kind & 32 else None
    pixel_checksum = int.from_bytes(take(4), "little") if kind & 128 else None
    need(crc32c(data[:position]) == int.from_bytes(take(4), "little"), "wrong checksum of the header")
    need(kind >> 4 & 1 == 0, "unsupported profile")
    need(quantizer == 0 or quantizer in TRELLISES, "unsupported quantizer")
    need(width > 0 and height > 0 and step > 0, "a side or the step is zero")
    need(step <= 65535, "step over the limit")
    need(quality is None or 100 <= quality <= 10000, "no such quality")
    padded = -(-width // 64) * -(-height // 64) * 64 * 64
    need(max(width, height) <= 65535 and width * height <= 1 << 28, "picture over the limits")
    need(z_length + y_length <= 128 * padded, "streams over the limits")
    need(sections_length is None or 0 < sections_length <= 1 << 22, "sections over the limits")
    z_stream, y_stream = checked(z_length), checked(y_length)
    sections: dict[int, bytes] = {}
    end = position + (sections_length or 0)
    need(end == len(data), "sections of another length, or bytes after the end")
    while position < end:
        start, section = position, take(1)[0]
        need(section > max(sections, default=0), "sections out of order")
        length = number()
        need(length > 0, "an empty section")
        sections[section] = take(length)
        covered = data[start:position]
        need(crc32c(covered) == int.from_bytes(take(4), "little"), "wrong checksum of a section")
    return Container(
        fingerprint, width, height, z_stream, y_stream, pixel_checksum, quantizer, step, quality, sections
    )


# ---- entropy coding and latents


def clip16(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -32768, 32767)


class Tables:
    """CDFs of 16-bit totals; the last interval of each is the escape."""

    def __init__(self, starts: np.ndarray, frequencies: np.ndarray, offsets: np.ndarray) -> None:
        bounds, counts = starts.tolist(), frequencies.tolist()
        need(len(bounds) == len(offsets) + 1 and bounds[0] == 0, "bad table starts")
        need(bounds[-1] == len(counts) + len(offsets), "bad table sizes")
        need(min(counts) > 0, "a CDF does not rise")
        self.offsets: list[int] = offsets.tolist()
        self.cdfs: list[list[int]] = []
        used = 0
        for first, end in pairwise(bounds):
            need(end - first >= 2, "bad table starts")
            cdf = [0]
            for count in counts[used : used + end - first - 1]:
                cdf.append(cdf[-1] + count)
            need(cdf[-1] == 1 << 16, "a CDF does not end at 2^16")
            used += end - first - 1
            self.cdfs.append(cdf)


class Stream:
    """A rANS stream, decoded part by part."""

    def __init__(self, data: bytes) -> None:
        need(len(data) >= 8 and len(data) % 4 == 0, "bad length of a stream")
        self.words = iter([int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)])
        self.state = next(self.words) | next(self.words) << 32

    def refill(self) -> None:
        if self.state < RANS_L:
            word = next(self.words, None)
            need(word is not None, "a stream is too short")
            self.state = self.state << 32 | word

    def nibble(self) -> int:
        value = self.state & 15
        self.state >>= 4
        self.refill()
        return value

    def symbol(self, tables: Tables, index: int) -> int:
        cdf = tables.cdfs[index]
        low = self.state & 0xFFFF
        value = bisect_right(cdf, low) - 1
        self.state = (cdf[value + 1] - cdf[value]) * (self.state >> 16) + low - cdf[value]
        self.refill()
        if value == len(cdf) - 2:  # the escape: how many nibbles, then the zigzag
            count = self.nibble()
            need(count <= 9, "an escape has too many nibbles")
            zigzag = sum(self.nibble() << 4 * place for place in range(count))
            value = -(zigzag >> 1) - 1 if zigzag & 1 else value + (zigzag >> 1)
        value += tables.offsets[index]
        need(-(1 << 31) <= value < 1 << 31, "a symbol does not fit 32 bits")
        return value

    def symbols(self, tables: Tables, indexes: np.ndarray) -> np.ndarray:
        """One for each table index, in its order."""
        found = [self.symbol(tables, index) for index in indexes.ravel().tolist()]
        return np.array(found, np.int64).reshape(indexes.shape)

    def latents(self, tables: Tables, indexes: np.ndarray, means: np.ndarray, bits: int) -> np.ndarray:
        """Latents with their means and fraction bits, a symbol for each table index."""
        limit = 1 << 17 - bits
        return clip16((np.clip(self.symbols(tables, indexes), -limit, limit) << bits) + means)

    def trellis(
        self, tables: Tables, indexes: np.ndarray, means: np.ndarray, step: int, trellis: tuple
    ) -> np.ndarray:
        """Latents of trellis-coded levels, ``(channels, n)``; ``indexes`` are those of quantizer 0."""
        levels, odd = np.empty_like(indexes), np.empty_like(indexes)
        for channel, row in enumerate(indexes.tolist()):
            state = 0
            for at, index in enumerate(row):
                odd[channel, at] = trellis[0][state]
                levels[channel, at] = self.symbol(tables, index + 64 * trellis[0][state])
                state = trellis[1][state][int(levels[channel, at]) & 1]
        levels = np.clip(levels, -(1 << 16), 1 << 16)
        return clip16(means + (2 * levels - np.sign(levels) * odd) * step)

    def end(self) -> None:
        at_end = self.state == RANS_L and next(self.words, None) is None
        need(at_end, "a stream does not end in the coder's end state")


# ---- integer arithmetic, on (channels, rows, columns)


def per_channel(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def convolve(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    size = weight.shape[2]
    rows, columns = (side // stride for side in x.shape[1:])
    x = np.pad(x, ((0, 0), (padding, size + stride), (padding, size + stride)))
    result = np.zeros((weight.shape[0], rows, columns), np.int64)
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            result += np.tensordot(weight[:, :, i, j], part, 1)
    return result


def convolve_transposed(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Input row r adds to output row r * stride + i - padding, and so for columns; sides grow by stride."""
    size, rows, columns = weight.shape[2], x.shape[1], x.shape[2]
    result = np.zeros((weight.shape[1], rows * stride + 2 * size, columns * stride + 2 * size), np.int64)
    for i in range(size):
        for j in range(size):
            target = result[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            target += np.tensordot(weight[:, :, i, j].T, x, 1)
    return result[:, padding : padding + rows * stride, padding : padding + columns * stride]


def scaled(values: np.ndarray, m: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """floor(values * m / 2^shift + 1/2), with one factor per channel."""
    half = per_channel(1 << shift >> 1)
    return (values * per_channel(m) + half) >> per_channel(shift)


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """floor(above / below + 1/2) of a positive ``below``."""
    return (2 * above + below) // (2 * below)


def root_of(values: np.ndarray) -> np.ndarray:
    """floor(sqrt(values * 2^10))."""
    return np.floor(np.sqrt((values << 10).astype(np.float64))).astype(np.int64)  # exact below 2^52


# ---- operations: (node, its tensors, inputs) -> output; a node is its entry in the structure


class Fields:
    """The tensors of a node, by field."""

    def __init__(self, prefix: str, tensors: dict[str, np.ndarray]) -> None:
        self.prefix, self.tensors = prefix, tensors

    def __getitem__(self, field: str) -> np.ndarray:
        return self.tensors[f"{self.prefix}.{field}"]

    def __contains__(self, field: str) -> bool:
        return f"{self.prefix}.{field}" in self.tensors

    def factor(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        return self[f"{field}.m"], self[f"{field}.shift"]


def clipped(node: dict, values: np.ndarray) -> np.ndarray:
    return np.clip(values, node["lo"], node["hi"])


def convolution(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    function = convolve_transposed if node["transposed"] else convolve
    groups = node["groups"]
    weights = np.split(get["weight"], groups)  # by output channel, or by input channel if transposed
    parts = zip(np.split(x, groups), weights, strict=True)
    outs = [function(part, weight, node["stride"], node["padding"]) for part, weight in parts]
    return np.concatenate(outs) + per_channel(get["bias"])


def requantize(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    x = abs(x) if node["absolute"] else x
    result = scaled(x, *get.factor("factor"))
    if "negative.m" in get:
        result = np.where(x < 0, scaled(x, *get.factor("negative")), result)
    return clipped(node, result)


def gdn(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    wide = clip16(scaled(x, *get.factor("widen")))
    squares = np.minimum((wide * wide + (1 << 13)) >> 14, 65535)
    root = root_of(np.tensordot(get["gamma"], squares, 1) + per_channel(get["beta"]))
    m, shift = get.factor("factor")
    if node["inverse"]:
        return clipped(node, scaled(wide * root, m, shift))
    return clipped(node, divided(wide * per_channel(m), root << per_channel(shift)))


def compensate(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    offset, feedback = get["offset"], get["feedback"]
    rest = 256 * np.clip(scaled(x, *get.factor("factor")), -(1 << 23), 1 << 23)
    result = np.empty_like(rest)
    for i in range(len(rest)):
        result[i] = np.clip((rest[i] + (1 << 15)) >> 16, node["lo"] + offset[i], node["hi"] + offset[i])
        error = np.clip(((rest[i] + 128) >> 8) - 256 * result[i], -2048, 2048)
        rest[i + 1 :] += error * per_channel(feedback[i, i + 1 :])
    return result


def add(node: dict, get: Fields, *inputs: np.ndarray) -> np.ndarray:
    total = sum(x * per_channel(m) for x, m in zip(inputs, get["m"], strict=True))
    return clipped(node, scaled(np.asarray(total), np.ones_like(get["shift"]), get["shift"]))


def multiply(node: dict, get: Fields, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return clipped(node, scaled(a * b, *get.factor("factor")))


def shuffle(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    r, (channels, rows, columns) = node["factor"], x.shape
    parts = x.reshape(channels // r**2, r, r, rows, columns).transpose(0, 3, 1, 4, 2)
    return parts.reshape(channels // r**2, rows * r, columns * r)


def unshuffle(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    r, (channels, rows, columns) = node["factor"], x.shape
    parts = x.reshape(channels, rows // r, r, columns // r, r).transpose(0, 2, 4, 1, 3)
    return parts.reshape(channels * r**2, rows // r, columns // r)


def gain(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    levels = get["log2"].reshape(-1, len(x))
    level, f = divmod(node["position"], 1024)
    if level == len(levels) - 1:
        level, f = level - 1, 1024
    log = (levels[level] * (1024 - f) + levels[level + 1] * f + 512) >> 10
    m = np.array([round(2.0 ** (15 + (v & 4095) / 4096)) for v in log.tolist()], np.int64)
    return clipped(node, scaled(x, m, 15 - (log >> 12)))


def layer_norm(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    channels = len(x)
    d = divided(channels * x - x.sum(0), np.int64(channels))
    m, shift = get.factor("factor")
    below = root_of((d * d).sum(0) + node["floor"]) << per_channel(shift)
    above = 256 * d * per_channel(m * get["sign"]) + below * per_channel(get["bias"])
    return clipped(node, divided(above, 256 * below))


def window_attention(node: dict, get: Fields, x: np.ndarray) -> np.ndarray:
    n, shift, heads = node["window"], node["shift"], node["heads"]
    _, rows, columns = x.shape
    need(rows % n == 0 and columns % n == 0, "windows do not fit")
    queries, keys, values = np.split(x, 3)
    result = np.empty_like(values)
    width = len(values) // heads
    m, down = get.factor("factor")
    logit_m, logit_shift = get.factor("logit")
    for top in range(-shift, rows - shift, n):
        for left in range(-shift, columns - shift, n):
            # positions of the window, those beyond an edge taken from around the other
            r, c = (axis.ravel() for axis in np.mgrid[top : top + n, left : left + n])
            around = 2 * (r < 0) + (c < 0)
            visible = around[:, None] == around[None, :]
            apart = (r[:, None] - r[None, :] + n - 1) * (2 * n - 1) + c[:, None] - c[None, :] + n - 1
            for head in range(heads):
                own = slice(head * width, (head + 1) * width)
                q, k, v = (t[own, r, c] for t in (queries, keys, values))  # negative indexes are around
                products = q.T @ k * logit_m[head] + (1 << logit_shift[head] >> 1)
                t = (products >> logit_shift[head]) + get["bias"][head][apart]
                largest = np.where(visible, t, t.min()).max(1, keepdims=True)
                e = np.where(visible, get["exponential"][np.clip(largest - t, 0, 1023)], 0)
                below = e.sum(1) << down[own, None]
                result[own, r, c] = divided(v @ e.T * m[own, None], below)
    return clipped(node, result)


OPERATIONS = {
    "convolution": convolution,
    "requantize": requantize,
    "gdn": gdn,
    "compensate": compensate,
    "sum": add,
    "product": multiply,
    "concatenate": lambda node, get, *inputs: np.concatenate(inputs),
    "slice": lambda node, get, x: x[node["start"] : node["stop"]],
    "shuffle": shuffle,
    "unshuffle": unshuffle,
    "table": lambda node, get, x: get["values"][x - node["lo"]],
    "gain": gain,
    "layer_norm": layer_norm,
    "window_attention": window_attention,
    "latent_shift": lambda node, get, x: clip16(x << per_channel(get.tensors["latent_shift"])),  # version 4
}


# ---- the model file


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    need(len(packed) == -(-count * bits // 8), "bad length of a packed tensor")
    flags = np.unpackbits(packed.astype(np.uint8), bitorder="little")
    need(not flags[count * bits :].any(), "bad filling of a packed tensor")
    return flags[: count * bits].reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))


def read_safetensors(path: Path) -> tuple[int, dict, dict[str, np.ndarray]]:
    need(path.stat().st_size <= 1 << 30, "the model file is too large")
    unzip = zlib.decompressobj(wbits=31)
    try:
        data = unzip.decompress(path.read_bytes(), 1 << 28)
    except zlib.error as error:
        raise ValueError("the model file is damaged") from error
    need(unzip.eof and not unzip.unused_data, "the model file ends early, late, or holds too much")
    start = 8 + int.from_bytes(data[:8], "little")
    need(8 < start <= len(data), "the model file ends early")
    header = json.loads(data[8:start])
    metadata = json.loads(header.pop("__metadata__")["rdquant"])
    need(metadata["version"] in (4, 5) and metadata["kind"] == "integer", "not an integer model")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        need(0 <= begin <= end <= len(data) - start, "a tensor lies outside the model file")
        flat = np.frombuffer(data[start + begin : start + end], TYPES[entry["dtype"]])
        tensors[name] = flat.astype(np.int64).reshape(entry["shape"])
    return metadata["version"], metadata["structure"], tensors


def trellis_tables() -> Tables:
    path = Path(__file__).parent.parent / "src" / "rdquant" / "latents" / "tcq_tables.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name].astype(np.int64) for name in ("starts", "changes", "offsets")}
    return Tables(arrays["starts"], np.cumsum(arrays["changes"]) % (1 << 16), arrays["offsets"])


def read_tables(kind: str, tensors: dict[str, np.ndarray]) -> Tables:
    frequencies = np.cumsum(tensors.pop(f"{kind}.frequencies")) % (1 << 16)
    return Tables(tensors[f"{kind}.starts"], frequencies, tensors[f"{kind}.offsets"])


def decode_weights(node: dict, get: Fields, tables: Tables) -> np.ndarray:
    groups, (first, second, *taps) = node["groups"], node["shape"]
    outs, ins = (second * groups, first // groups) if node["transposed"] else (first, second)
    rows, columns, places = (get.tensors.pop(f"{get.prefix}.{axis}") for axis in ("rows", "columns", "taps"))
    need((len(rows), len(columns), len(places)) == (outs, ins, taps[0] * taps[1]), "spreads do not fit")
    spread = rows[:, None, None] + columns[None, :, None] + places + 5
    stream = Stream(get["weight"].astype(np.uint8).tobytes())
    weight = stream.symbols(tables, np.clip(spread, 0, 19)).reshape(outs, ins, *taps)
    stream.end()
    need(int(abs(weight).max()) < 1 << node["bits"] - 1, "a weight is too large")
    if node["transposed"]:
        weight = weight.reshape(groups, second, ins, *taps).swapaxes(1, 2).reshape(node["shape"])
    return weight


def unpack_node(node: dict, get: Fields, weight_tables: Tables | None) -> None:
    """Replaces the packed tensors of a node with whole ones."""
    whole = get.tensors
    if node["kind"] == "convolution":
        if "rows" in get:
            need(weight_tables is not None, "coded weights without tables")
            whole[f"{get.prefix}.weight"] = decode_weights(node, get, weight_tables)
        else:
            top = (1 << node["bits"] - 1) - 1
            levels = get["levels"] if "levels" in get else np.arange(-top, top + 1)
            indexes = unpack(get["weight"], node["bits"], int(np.prod(node["shape"])))
            need(int(indexes.max()) < len(levels), "a weight has no level")
            whole[f"{get.prefix}.weight"] = levels[indexes].reshape(node["shape"])
    elif node["kind"] == "gdn":
        channels = len(get["beta"])
        gamma = unpack(get["gamma"], node["bits"], channels**2)
        whole[f"{get.prefix}.gamma"] = gamma.reshape(channels, channels)
    elif node["kind"] == "compensate":
        channels = len(get["offset"])
        feedback = np.zeros((channels, channels), np.int64)
        feedback[np.triu_indices(channels, 1)] = get["feedback"]
        whole[f"{get.prefix}.feedback"] = feedback


def networks_of_version_4(structure: dict) -> dict:
    """As version 5 has them. The nodes of a stage share its tensors: ``prefix``."""
    found = {}
    for name, chain, source in (
        ("analysis", "g_a", "x"), ("synthesis", "g_s", "y_hat"), ("hyper_analysis", "h_a", "y"),
        ("hyper_synthesis", "h_s", "z"),
    ):  # fmt: skip
        stages, edge, nodes = structure["stages"].get(chain), source, []
        if stages is None:
            continue
        if chain == "g_s":
            nodes, edge = [{"name": "shift", "kind": "latent_shift", "inputs": [source]}], "shift"
        for stage in stages:
            conv, (low, high), padding = stage["name"], stage["out"], stage["shape"][2] // 2
            nodes.append({**stage, "kind": "convolution", "inputs": [edge], "padding": padding, "groups": 1})
            after = {"name": f"{conv}+", "prefix": conv, "inputs": [conv], "lo": low, "hi": high}
            if "gdn" in stage:
                after |= {"kind": "gdn", **stage["gdn"]}
            else:
                kind = "compensate" if stage.get("compensate") else "requantize"
                after |= {"kind": kind, "absolute": False}
            nodes.append(after)
            edge = after["name"]
        (low, high), shape = stages[0]["in"], stages[0]["shape"]
        channels = shape[0 if stages[0]["transposed"] else 1]
        found[name] = {"inputs": [[source, channels, low, high]], "output": edge, "nodes": nodes}
    return found


def fingerprint_of(structure: dict, tensors: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name}:int64:{list(values.shape)}:".encode() + values.astype("<i8").tobytes())
    return digest.digest()[:8]


class PlainDecoder:
    """Decodes the pictures of one integer model."""

    def __init__(self, path: Path) -> None:
        try:
            self.load(path)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"bad model file: {error!r}") from error

    def load(self, path: Path) -> None:
        version, structure, self.tensors = read_safetensors(path)
        if version == 4:
            self.networks = networks_of_version_4(structure)
            kind = "hyperprior" if "h_s" in structure["stages"] else "factorized"
            self.prior = {"kind": kind, "means": structure["has_means"]}
        else:
            self.networks, self.prior = structure["networks"], structure["prior"]
        self.fraction_bits = structure["fraction_bits"]
        self.hyperprior = self.prior["kind"] != "factorized"
        weight_tables = None
        if "weight_tables.starts" in self.tensors:
            weight_tables = read_tables("weight_tables", self.tensors)
            del self.tensors["weight_tables.starts"], self.tensors["weight_tables.offsets"]
        for network in self.networks.values():
            for node in network["nodes"]:
                unpack_node(node, self.fields(node), weight_tables)
        self.tables = {}
        for kind in ("z_tables", "y_tables") if self.hyperprior else ("y_tables",):
            self.tables[kind] = read_tables(kind, self.tensors)
            flat = [value for cdf in self.tables[kind].cdfs for value in cdf]
            self.tensors[f"{kind}.cdf"] = np.array(flat, np.int64)
        self.fingerprint = fingerprint_of(structure, self.tensors)
        #: pixels of a side for a position of y, of the smallest latent, and what pictures are padded to
        self.stride = int(1 / self.scales("analysis")[self.networks["analysis"]["output"]])
        self.z_stride = self.stride
        if self.hyperprior:
            hyper = self.scales("hyper_analysis")[self.networks["hyper_analysis"]["output"]]
            self.z_stride = int(self.stride / hyper)
        self.unit = self.z_stride
        for name, network in self.networks.items():
            start = {"analysis": 1, "hyper_synthesis": self.z_stride}.get(name, self.stride)
            for node in network["nodes"]:
                if node["kind"] == "window_attention":
                    pixels = node["window"] * start / self.scales(name)[node["inputs"][0]]
                    self.unit = math.lcm(self.unit, pixels.numerator)

    def fields(self, node: dict) -> Fields:
        return Fields(node.get("prefix", node["name"]), self.tensors)

    def scales(self, network: str) -> dict[str, Fraction]:
        """Positions of each node by one of the input, a side."""
        graph = self.networks[network]
        found = {name: Fraction(1) for name, *_ in graph["inputs"]}
        for node in graph["nodes"]:
            factor = node["stride"] if node["kind"] == "convolution" else node.get("factor", 1)
            grows = node["kind"] == "shuffle" or node.get("transposed", False)
            at = found[node["inputs"][0]]
            found[node["name"]] = at * factor if grows else at / factor
        return found

    def run(self, network: str, *inputs: np.ndarray) -> np.ndarray:
        graph = self.networks[network]
        found = {}
        for (name, _, low, high), x in zip(graph["inputs"], inputs, strict=True):
            found[name] = np.clip(x, low, high)
        for node in graph["nodes"]:
            given = (found[edge] for edge in node["inputs"])
            found[node["name"]] = OPERATIONS[node["kind"]](node, self.fields(node), *given)
        return found[graph["output"]]

    # the parts of a latent: channels, and the positions of each, (channels, positions)

    def parts(self, channels: int, rows: int, columns: int) -> list[tuple[slice, np.ndarray]]:
        kind, every = self.prior["kind"], np.arange(rows * columns)
        r, c = every // columns, every % columns
        if kind == "serial":
            steps = [every[c + 3 * r == k] for k in range(columns + 3 * (rows - 1))]
            chosen = [(slice(0, channels), [at] * channels) for at in steps if len(at)]
        elif kind == "channel_groups":
            ends = np.cumsum(self.prior["groups"])
            groups = [slice(int(e) - n, int(e)) for e, n in zip(ends, self.prior["groups"], strict=True)]
            passes = [every[(r + c) % 2 == p] for p in (0, 1)] if self.prior["checkerboard"] else [every]
            chosen = [(g, [at] * (g.stop - g.start)) for g in groups for at in passes]
        elif kind == "four_part":
            squares, quarter = 2 * (r % 2) + c % 2, channels // 4
            each = [[every[squares == order[i // quarter]] for i in range(channels)] for order in FOUR_PARTS]
            chosen = [(slice(0, channels), positions) for positions in each]
        else:
            chosen = [(slice(0, channels), [every] * channels)]
        return [(own, np.array(positions)) for own, positions in chosen]

    def parameters(self, k: int, features: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
        """What the networks give for part k: of the channels of the part, scales, and then means."""
        kind = self.prior["kind"]
        if kind == "serial":
            return self.run("parameters", features, self.run("context", y_hat))
        if kind == "four_part":
            return self.run(f"parameters_{k}", features, *([y_hat] if k else []))
        if kind != "channel_groups":
            return features
        g, second = divmod(k, 2) if self.prior["checkerboard"] else (k, 0)
        first, inputs = sum(self.prior["groups"][:g]), []
        if self.prior["checkerboard"]:
            context = self.run(f"spatial_context_{g}", y_hat[first : first + self.prior["groups"][g]])
            inputs.append(context if second else 0 * context)
        if g:
            inputs.append(self.run(f"channel_context_{g}", y_hat[:first]))
        return self.run(f"parameters_{g}", *inputs, features)

    def latent(self, file: Container, features: np.ndarray) -> np.ndarray:
        """y_hat, part by part."""
        stream, bits = Stream(file.y_stream), self.fraction_bits
        _, rows, columns = features.shape
        ((_, channels, *_),) = self.networks["synthesis"]["inputs"]
        thresholds = self.tensors["thresholds"]
        if file.quantizer:
            thresholds = (thresholds * 2 * file.step) >> bits
        y_hat = np.zeros((channels, rows * columns), np.int64)
        for k, (own, positions) in enumerate(self.parts(channels, rows, columns)):
            found = self.parameters(k, features, y_hat.reshape(channels, rows, columns))
            found = found.reshape(len(found), -1)
            scales, means = np.split(found, 2) if self.prior["means"] else (found, np.zeros_like(found))
            scales, means = (np.take_along_axis(t, positions, 1) for t in (scales, means))
            indexes = np.searchsorted(thresholds, scales, side="left")
            if file.quantizer:
                trellis = TRELLISES[file.quantizer]
                values = stream.trellis(trellis_tables(), indexes, means, file.step, trellis)
            else:
                values = stream.latents(self.tables["y_tables"], indexes, means, bits)
            np.put_along_axis(y_hat[own], positions, values, 1)
        stream.end()
        return y_hat.reshape(channels, rows, columns)

    def decode(self, data: bytes) -> np.ndarray:
        """The picture of a file: (height, width, 3), uint8."""
        file = parse_container(data)
        need(file.fingerprint == self.fingerprint, "the picture is of another model")
        gains = [n for g in self.networks.values() for n in g["nodes"] if n["kind"] == "gain"]
        need((file.quality is None) == (not gains), "a quality without gains, or gains without one")
        for node in gains:
            last = 1024 * (len(self.fields(node)["log2"]) - 1)
            node["position"] = (2 * (file.quality - 100) * last + 9900) // 19800
        padded = [-(-side // self.unit) * self.unit for side in (file.height, file.width)]
        rows, columns = (side // self.z_stride for side in padded)
        medians = per_channel(self.tensors["medians"])
        each_channel = np.broadcast_to(per_channel(np.arange(len(medians))), (len(medians), rows, columns))
        first = Stream(file.z_stream if self.hyperprior else file.y_stream)
        kind, bits = ("z_tables", 8) if self.hyperprior else ("y_tables", self.fraction_bits)
        y_hat = first.latents(self.tables[kind], each_channel, medians, bits)
        first.end()
        if self.hyperprior:
            y_hat = self.latent(file, self.run("hyper_synthesis", y_hat))
        else:
            need(not file.quantizer, "trellis-coded, and the model has no hyperprior")
            need(not file.z_stream, "a z stream without a hyperprior")
        pixels = self.run("synthesis", y_hat)
        picture = pixels.transpose(1, 2, 0)[: file.height, : file.width].astype(np.uint8)
        if file.pixel_checksum is not None:
            need(crc32c(picture.tobytes()) == file.pixel_checksum, "wrong checksum of the pixels")
        return picture
