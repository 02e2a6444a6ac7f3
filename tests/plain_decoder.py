"""A plain decoder of .rdq pictures, written from docs/format.md, not from rdquant, as a test of that page.

It needs the standard library and NumPy, and decodes the integer profile exactly: every value between the
file and the pixels is an int64. Clarity comes before speed. Anything wrong with a file is a ValueError.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_right
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
PLAIN = ((0,), ((0, 0),))


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
    pixel_checksum = int.from_bytes(take(4), "little") if kind & 128 else None
    need(crc32c(data[:position]) == int.from_bytes(take(4), "little"), "wrong checksum of the header")
    need(kind >> 4 & 7 == 0, "unsupported profile")
    need(quantizer == 0 or quantizer in TRELLISES, "unsupported quantizer")
    need(width > 0 and height > 0 and step > 0, "a side or the step is zero")
    need(step <= 65535, "step over the limit")
    padded = -(-width // 64) * -(-height // 64) * 64 * 64
    need(max(width, height) <= 65535 and width * height <= 1 << 28, "picture over the limits")
    need(z_length + y_length <= 128 * padded, "streams over the limits")
    z_stream, y_stream = checked(z_length), checked(y_length)
    need(position == len(data), "bytes after the end")
    return Container(fingerprint, width, height, z_stream, y_stream, pixel_checksum, quantizer, step)


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

    def latents(self, stream: bytes, indexes: np.ndarray, means: np.ndarray, bits: int) -> np.ndarray:
        """The latents of a rANS stream with their means and fraction bits, a symbol for each table index."""
        limit = 1 << 17 - bits
        return clip16((np.clip(self.decode(stream, indexes), -limit, limit) << bits) + means)

    def trellis(
        self, stream: bytes, indexes: np.ndarray, means: np.ndarray, step: int, trellis: tuple
    ) -> np.ndarray:
        """The latents of a rANS stream of trellis-coded levels, ``indexes`` being those of quantizer 0."""
        levels = self.decode(stream, indexes, trellis, indexes[0].size)
        odd = np.empty_like(levels)
        for channel, sequence in enumerate(levels.reshape(len(levels), -1).tolist()):
            state = 0
            for at, level in enumerate(sequence):
                odd.reshape(len(odd), -1)[channel, at] = trellis[0][state]
                state = trellis[1][state][level & 1]
        levels = np.clip(levels, -(1 << 16), 1 << 16)
        return clip16(means + (2 * levels - np.sign(levels) * odd) * step)

    def decode(
        self, stream: bytes, indexes: np.ndarray, trellis: tuple = PLAIN, run: int = 1 << 62
    ) -> np.ndarray:
        """The symbols of a rANS stream, one for each table index; a trellis begins anew after each run."""
        need(len(stream) >= 8 and len(stream) % 4 == 0, "bad length of a stream")
        words = iter([int.from_bytes(stream[at : at + 4], "little") for at in range(0, len(stream), 4)])
        state = next(words) | next(words) << 32

        def refill() -> None:
            nonlocal state
            if state < RANS_L:
                word = next(words, None)
                need(word is not None, "a stream is too short")
                state = state << 32 | word

        def nibble() -> int:
            nonlocal state
            value = state & 15
            state >>= 4
            refill()
            return value

        symbols = []
        machine_state = 0
        for position, plain_index in enumerate(indexes.ravel().tolist()):
            if position % run == 0:
                machine_state = 0
            index = plain_index + 64 * trellis[0][machine_state]
            cdf = self.cdfs[index]
            low = state & 0xFFFF
            value = bisect_right(cdf, low) - 1
            state = (cdf[value + 1] - cdf[value]) * (state >> 16) + low - cdf[value]
            refill()
            if value == len(cdf) - 2:  # the escape: how many nibbles, then the zigzag
                count = nibble()
                need(count <= 9, "an escape has too many nibbles")
                zigzag = sum(nibble() << 4 * place for place in range(count))
                value = -(zigzag >> 1) - 1 if zigzag & 1 else value + (zigzag >> 1)
            symbols.append(value + self.offsets[index])
            need(-(1 << 31) <= symbols[-1] < 1 << 31, "a symbol does not fit 32 bits")
            machine_state = trellis[1][machine_state][symbols[-1] & 1]
        need(state == RANS_L and next(words, None) is None, "a stream does not end in the coder's end state")
        return np.array(symbols, np.int64).reshape(indexes.shape)


# ---- integer arithmetic, on (channels, rows, columns)


def per_channel(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    size = weight.shape[2]
    margin = size // 2
    rows, columns = (-(-side // stride) for side in x.shape[1:])
    x = np.pad(x, ((0, 0), (margin, margin + stride), (margin, margin + stride)))
    result = np.zeros((weight.shape[0], rows, columns), np.int64)
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            result += np.tensordot(weight[:, :, i, j], part, 1)
    return result


def convolve_transposed(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Input row r adds to output row r * stride + i - k // 2, and so for columns; sides grow by stride."""
    size = weight.shape[2]
    margin, rows, columns = size // 2, x.shape[1], x.shape[2]
    result = np.zeros((weight.shape[1], rows * stride + 2 * size, columns * stride + 2 * size), np.int64)
    for i in range(size):
        for j in range(size):
            target = result[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            target += np.tensordot(weight[:, :, i, j].T, x, 1)
    return result[:, margin : margin + rows * stride, margin : margin + columns * stride]


def scaled(values: np.ndarray, m: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """floor(values * m / 2^shift + 1/2), with one factor per channel."""
    half = per_channel(1 << shift >> 1)
    return (values * per_channel(m) + half) >> per_channel(shift)


def run_stage(x: np.ndarray, stage: dict, tensors: dict[str, np.ndarray]) -> np.ndarray:
    def get(what: str) -> np.ndarray:
        return tensors[f"{stage['name']}.{what}"]

    convolution = convolve_transposed if stage["transposed"] else convolve
    accumulator = convolution(x, get("weight"), stage["stride"]) + per_channel(get("bias"))
    m, shift, (low, high) = get("factor.m"), get("factor.shift"), stage["out"]

    if "gdn" in stage:
        need(stage["gdn"]["inverse"], "a decoder has inverse GDN only")
        wide = clip16(scaled(accumulator, get("widen.m"), get("widen.shift")))
        squares = np.minimum((wide * wide + (1 << 13)) >> 14, 65535)
        norm = np.tensordot(get("gamma"), squares, 1) + per_channel(get("beta"))
        root = np.floor(np.sqrt((norm << 10).astype(np.float64))).astype(np.int64)  # exact below 2^52
        return np.clip(scaled(wide * root, m, shift), low, high)

    if stage.get("compensate"):
        offset, feedback = get("offset"), get("feedback")
        rest = 256 * np.clip(scaled(accumulator, m, shift), -(1 << 23), 1 << 23)
        result = np.empty_like(rest)
        for i in range(len(rest)):
            result[i] = np.clip((rest[i] + (1 << 15)) >> 16, low + offset[i], high + offset[i])
            error = np.clip(((rest[i] + 128) >> 8) - 256 * result[i], -2048, 2048)
            rest[i + 1 :] += error * per_channel(feedback[i, i + 1 :])
        return result

    result = scaled(accumulator, m, shift)
    if stage.get("leaky"):
        negative = scaled(accumulator, get("negative.m"), get("negative.shift"))
        result = np.where(accumulator < 0, negative, result)
    return np.clip(result, low, high)


# ---- the model file


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    need(len(packed) == -(-count * bits // 8), "bad length of a packed tensor")
    flags = np.unpackbits(packed.astype(np.uint8), bitorder="little")
    need(not flags[count * bits :].any(), "bad filling of a packed tensor")
    return flags[: count * bits].reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))


def read_safetensors(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
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
    need(metadata["version"] == 4 and metadata["kind"] == "integer", "not an integer model of version 4")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        need(0 <= begin <= end <= len(data) - start, "a tensor lies outside the model file")
        flat = np.frombuffer(data[start + begin : start + end], TYPES[entry["dtype"]])
        tensors[name] = flat.astype(np.int64).reshape(entry["shape"])
    return metadata["structure"], tensors


def trellis_tables() -> Tables:
    path = Path(__file__).parent.parent / "src" / "rdquant" / "latents" / "tcq_tables.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name].astype(np.int64) for name in ("starts", "changes", "offsets")}
    return Tables(arrays["starts"], np.cumsum(arrays["changes"]) % (1 << 16), arrays["offsets"])


def read_tables(kind: str, tensors: dict[str, np.ndarray]) -> Tables:
    frequencies = np.cumsum(tensors.pop(f"{kind}.frequencies")) % (1 << 16)
    return Tables(tensors[f"{kind}.starts"], frequencies, tensors[f"{kind}.offsets"])


def decode_weights(stage: dict, tensors: dict[str, np.ndarray], tables: Tables) -> np.ndarray:
    name, (first, second, *taps) = stage["name"], stage["shape"]
    ins, outs = (first, second) if stage["transposed"] else (second, first)
    rows, columns, places = (tensors.pop(f"{name}.{axis}") for axis in ("rows", "columns", "taps"))
    need((len(rows), len(columns), len(places)) == (outs, ins, taps[0] * taps[1]), "spreads do not fit")
    spread = rows[:, None, None] + columns[None, :, None] + places + 5
    stream = tensors[f"{name}.weight"].astype(np.uint8).tobytes()
    weight = tables.decode(stream, np.clip(spread, 0, 19)).reshape(outs, ins, *taps)
    need(int(abs(weight).max()) < 1 << stage["bits"] - 1, "a weight is too large")
    return weight.transpose(1, 0, 2, 3) if stage["transposed"] else weight


def unpack_stage(stage: dict, tensors: dict[str, np.ndarray], weight_tables: Tables | None) -> None:
    """Replaces the packed tensors of a stage with whole ones."""
    name, shape, bits = stage["name"], stage["shape"], stage["bits"]
    channels = shape[1 if stage["transposed"] else 0]
    if f"{name}.rows" in tensors:
        need(weight_tables is not None, "coded weights without tables")
        tensors[f"{name}.weight"] = decode_weights(stage, tensors, weight_tables)
    else:
        levels = tensors.get(f"{name}.levels", np.arange(1 - (1 << bits - 1), 1 << bits - 1))
        indexes = unpack(tensors[f"{name}.weight"], bits, int(np.prod(shape)))
        need(int(indexes.max()) < len(levels), "a weight has no level")
        tensors[f"{name}.weight"] = levels[indexes].reshape(shape)
    if "gdn" in stage:
        gamma = unpack(tensors[f"{name}.gamma"], stage["gdn"]["bits"], channels**2)
        tensors[f"{name}.gamma"] = gamma.reshape(channels, channels)
    if stage.get("compensate"):
        feedback = np.zeros((channels, channels), np.int64)
        feedback[np.triu_indices(channels, 1)] = tensors[f"{name}.feedback"]
        tensors[f"{name}.feedback"] = feedback


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
        self.structure, self.tensors = read_safetensors(path)
        self.hyperprior = "h_s" in self.structure["stages"]
        weight_tables = None
        if "weight_tables.starts" in self.tensors:
            weight_tables = read_tables("weight_tables", self.tensors)
            del self.tensors["weight_tables.starts"], self.tensors["weight_tables.offsets"]
        for stages in self.structure["stages"].values():
            for stage in stages:
                unpack_stage(stage, self.tensors, weight_tables)
        self.tables = {}
        for kind in ("z_tables", "y_tables") if self.hyperprior else ("y_tables",):
            self.tables[kind] = read_tables(kind, self.tensors)
            flat = [value for cdf in self.tables[kind].cdfs for value in cdf]
            self.tensors[f"{kind}.cdf"] = np.array(flat, np.int64)
        self.fingerprint = fingerprint_of(self.structure, self.tensors)

    def run(self, network: str, x: np.ndarray) -> np.ndarray:
        for stage in self.structure["stages"][network]:
            x = run_stage(x, stage, self.tensors)
        return x

    def decode(self, data: bytes) -> np.ndarray:
        """The picture of a file: (height, width, 3), uint8."""
        file = parse_container(data)
        need(file.fingerprint == self.fingerprint, "the picture is of another model")
        unit = 64 if self.hyperprior else 16
        rows, columns = -(-file.height // unit), -(-file.width // unit)
        medians = per_channel(self.tensors["medians"])
        each_channel = np.broadcast_to(per_channel(np.arange(len(medians))), (len(medians), rows, columns))
        bits = self.structure["fraction_bits"]
        if self.hyperprior:
            z_hat = self.tables["z_tables"].latents(file.z_stream, each_channel, medians, 8)
            scales = self.run("h_s", z_hat)
            means = np.zeros_like(scales)
            if self.structure["has_means"]:
                scales, means = np.split(scales, 2)
            thresholds = self.tensors["thresholds"]
            if file.quantizer:
                thresholds = (thresholds * 2 * file.step) >> bits
            indexes = np.searchsorted(thresholds, scales, side="left")
            if file.quantizer:
                trellis = TRELLISES[file.quantizer]
                y_hat = trellis_tables().trellis(file.y_stream, indexes, means, file.step, trellis)
            else:
                y_hat = self.tables["y_tables"].latents(file.y_stream, indexes, means, bits)
        else:
            need(not file.quantizer, "trellis-coded, and the model has no hyperprior")
            need(not file.z_stream, "a z stream without a hyperprior")
            y_hat = self.tables["y_tables"].latents(file.y_stream, each_channel, medians, bits)
        pixels = self.run("g_s", clip16(y_hat << per_channel(self.tensors["latent_shift"])))
        picture = pixels.transpose(1, 2, 0)[: file.height, : file.width].astype(np.uint8)
        if file.pixel_checksum is not None:
            need(crc32c(picture.tobytes()) == file.pixel_checksum, "wrong checksum of the pixels")
        return picture
