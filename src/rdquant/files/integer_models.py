"""Files of integer models: packed, entropy-coded, checked. Layout: docs/format.md."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codecs import ARCHITECTURES
from ..entropy import CdfTables
from ..errors import BadModel
from ..integer import (
    Compensate,
    DivisiveNormalization,
    IntegerCodec,
    IntegerConv,
    IntegerNetwork,
    Requantize,
    Stage,
)
from ..integer.arithmetic import Multiplier
from .bits import pack, packed_size, unpack
from .model_file import VERSIONS, digest, read, serialize, write
from .weight_streams import WEIGHT_LIMIT, CodedWeights, decode_weights, encode_weights

WEIGHT_TABLES = "weight_tables"
TABLES = ("y_tables", "z_tables", WEIGHT_TABLES)
#: of coded weights: terms of the spreads of output channels, input channels and taps
SPREADS = ("rows", "columns", "taps")
#: uniform weights of more bits are packed, not coded
MOST_CODED_BITS = 8


def _narrow(t: Tensor) -> Tensor:
    """The smallest integer type that holds the values: how whole integers are stored."""
    low, high = (int(t.min()), int(t.max())) if t.numel() else (0, 0)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return t.to(dtype)
    return t.to(torch.int64)


def _pack(codec: IntegerCodec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}

    def multiplier(name: str, value: Multiplier | None) -> None:
        if value is not None:
            tensors[f"{name}.m"], tensors[f"{name}.shift"] = value.m, value.shift

    stages: dict[str, list[dict[str, Any]]] = {}
    for part, network in codec.networks.items():
        stages[part] = []
        for s in network.stages:
            c, e = s.conv, s.epilogue
            tensors[f"{s.name}.weight"], tensors[f"{s.name}.bias"] = c.weight, c.bias
            entry: dict[str, Any] = {
                "name": s.name, "stride": c.stride, "transposed": c.transposed,
                "shape": list(c.weight.shape), "in": [c.lo, c.hi], "bits": c.bits, "out": [e.lo, e.hi],
            }  # fmt: skip
            if c.levels is not None:
                tensors[f"{s.name}.levels"] = c.levels
            multiplier(f"{s.name}.factor", e.factor)
            if isinstance(e, DivisiveNormalization):
                entry["gdn"] = {"inverse": e.inverse, "bits": e.bits}
                multiplier(f"{s.name}.widen", e.widen)
                tensors[f"{s.name}.gamma"], tensors[f"{s.name}.beta"] = e.gamma, e.beta
            elif isinstance(e, Compensate):
                entry["compensate"] = True
                tensors[f"{s.name}.offset"], tensors[f"{s.name}.feedback"] = e.offset, e.feedback
            else:
                entry["leaky"] = e.negative is not None
                multiplier(f"{s.name}.negative", e.negative)
            stages[part].append(entry)
    for name, tables in (("y_tables", codec.y_tables), ("z_tables", codec.z_tables)):
        if tables is not None:
            for part in ("cdf", "starts", "offsets"):
                tensors[f"{name}.{part}"] = torch.from_numpy(getattr(tables, part))
    structure: dict[str, Any] = {
        "architecture": codec.architecture, "N": codec.N, "M": codec.M, "stages": stages,
        "fraction_bits": codec.fraction_bits, "has_means": codec.has_means,
    }  # fmt: skip
    tensors["medians"], tensors["latent_shift"] = codec.medians, codec.latent_shift
    if codec.thresholds is not None and codec.hyper_input is not None:
        tensors["thresholds"] = codec.thresholds
        multiplier("hyper_input.factor", codec.hyper_input.factor)
        structure["hyper_input"] = [codec.hyper_input.lo, codec.hyper_input.hi]
    return structure, tensors


def integer_fingerprint(codec: IntegerCodec) -> bytes:
    """8 bytes that name an integer codec: its integers and tables, not its description."""
    structure, tensors = _pack(codec)
    return digest(structure, {k: t.to(torch.int64) for k, t in tensors.items()})


def _fit(name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in another integer type. Raises `BadModel` if that cannot hold its values."""
    t = t.to(torch.int64)
    if t.numel() and not torch.iinfo(dtype).min <= int(t.min()) <= int(t.max()) <= torch.iinfo(dtype).max:
        raise BadModel(f"{name} does not fit {dtype}")
    return t.to(dtype)


def _array(name: str, part: str, tensors: dict[str, Tensor]) -> np.ndarray:
    return np.ascontiguousarray(_fit(f"{name}.{part}", tensors[f"{name}.{part}"], torch.int32).numpy())


def _tables(name: str, tensors: dict[str, Tensor]) -> CdfTables:
    return CdfTables(*(_array(name, part, tensors) for part in ("cdf", "starts", "offsets")))


def _levels(tensors: dict[str, Tensor], entry: dict[str, Any]) -> np.ndarray:
    """The integers that a stage's weights can be, int64, rising."""
    name, bits = f"{entry['name']}.levels", int(entry["bits"])
    if name in tensors:
        return tensors[name].to(torch.int64).numpy()
    if not 2 <= bits <= 16:  # before anything of that size is made
        raise BadModel(f"{entry['name']}.bits must be 2..16, got {bits}")
    top = 2 ** (bits - 1) - 1
    return np.arange(-top, top + 1)


def _entries(structure: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for stages in structure["stages"].values() for entry in stages]


def _above_diagonal(channels: int) -> Tensor:
    return torch.ones(channels, channels, dtype=torch.bool).triu(1)


def _order(entry: dict[str, Any]) -> tuple[int, int]:
    """Axes of output and input channels in a kernel."""
    return (1, 0) if entry["transposed"] else (0, 1)


def _code_weights(structure: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Streams of the layers that are smaller so than packed, and their tables."""
    layers: dict[str, np.ndarray] = {}
    for entry in _entries(structure):
        name = entry["name"]
        if f"{name}.levels" not in tensors and entry["bits"] <= MOST_CODED_BITS:
            kernel = tensors[f"{name}.weight"].permute(*_order(entry), 2, 3)
            layers[name] = np.ascontiguousarray(kernel.flatten(2).numpy())
    if not layers:
        return {}
    bits = {entry["name"]: entry["bits"] for entry in _entries(structure)}
    tables, coded = encode_weights(layers)
    found = {}
    for name, c in coded.items():
        if c.size < packed_size(layers[name].size, bits[name]):
            found[f"{name}.weight"] = torch.frombuffer(bytearray(c.stream), dtype=torch.uint8)
            for axis, spread in zip(SPREADS, c.spreads, strict=True):
                found[f"{name}.{axis}"] = torch.from_numpy(spread)
    if found:
        for part in ("cdf", "starts", "offsets"):
            found[f"{WEIGHT_TABLES}.{part}"] = torch.from_numpy(getattr(tables, part))
    return found


def _decode_weights(
    entry: dict[str, Any], shape: list[int], tensors: dict[str, Tensor], tables: CdfTables | None
) -> Tensor:
    """The inverse for one layer."""
    name, (first, second) = entry["name"], _order(entry)
    if tables is None:
        raise BadModel(f"{name}.weight is coded, and there are no {WEIGHT_TABLES}")
    spreads = [tensors[f"{name}.{axis}"] for axis in SPREADS]
    sizes = [shape[first], shape[second], shape[2] * shape[3]]
    for axis, t, size in zip(SPREADS, spreads, sizes, strict=True):
        if t.shape != (size,) or t.dtype != torch.int8:
            raise BadModel(f"{name}.{axis} must be {size} int8, got {tuple(t.shape)} {t.dtype}")
    stream = tensors[f"{name}.weight"]
    if stream.dtype != torch.uint8 or stream.ndim != 1:
        raise BadModel(f"{name}.weight must be flat bytes, got {tuple(stream.shape)} {stream.dtype}")
    rows, columns, taps = (t.numpy() for t in spreads)
    q = decode_weights(CodedWeights(stream.numpy().tobytes(), (rows, columns, taps)), tables)
    top = 2 ** (int(entry["bits"]) - 1) - 1
    if max(-int(q.min()), int(q.max())) > top:
        raise BadModel(f"{name}.weight holds {int(q.min())}..{int(q.max())}, over +-{top}")
    kernel = torch.from_numpy(q).reshape(shape[first], shape[second], *shape[2:])
    return kernel.permute(*_order(entry), 2, 3)


def _compress(structure: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds: weights coded, or packed at their bits as gammas are, CDFs as differences of their
    frequencies modulo 2^16, the rest narrow.
    """
    stored = {**tensors, **(coded := _code_weights(structure, tensors))}
    for entry in _entries(structure):
        name = f"{entry['name']}.weight"
        if name not in coded:
            indexes = np.searchsorted(_levels(tensors, entry), tensors[name].numpy().reshape(-1))
            stored[name] = torch.from_numpy(pack(indexes, entry["bits"]))
        if "gdn" in entry:
            name = f"{entry['name']}.gamma"
            stored[name] = torch.from_numpy(pack(tensors[name].numpy(), entry["gdn"]["bits"]))
        if "compensate" in entry:
            feedback = tensors[f"{entry['name']}.feedback"]
            stored[f"{entry['name']}.feedback"] = feedback[_above_diagonal(len(feedback))]
    for name in TABLES:
        if f"{name}.cdf" in stored:
            stored[f"{name}.frequencies"] = torch.from_numpy(_tables(name, stored).changes().astype(np.int64))
            del stored[f"{name}.cdf"]
    return {k: t if t.dtype == torch.uint8 else _narrow(t) for k, t in stored.items()}


def _expand(structure: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_compress`."""
    out = dict(tensors)
    for name in TABLES:
        if f"{name}.frequencies" in tensors:
            changes = out.pop(f"{name}.frequencies").to(torch.int64).numpy()
            starts, offsets = (_array(name, part, tensors) for part in ("starts", "offsets"))
            out[f"{name}.cdf"] = torch.from_numpy(CdfTables.from_changes(changes, starts, offsets).cdf)
    weight_tables = None
    if f"{WEIGHT_TABLES}.cdf" in out:
        weight_tables = _tables(WEIGHT_TABLES, out)
        weight_tables.validate()
        for part in ("cdf", "starts", "offsets"):
            del out[f"{WEIGHT_TABLES}.{part}"]
    count = 0
    for entry in _entries(structure):
        name, shape = f"{entry['name']}.weight", [int(n) for n in entry["shape"]]
        if len(shape) != 4 or min(shape) < 1:
            raise BadModel(f"{name} must have 4 axes, got {shape}")
        levels = _levels(tensors, entry)
        count += math.prod(shape)
        if f"{entry['name']}.{SPREADS[0]}" in tensors:
            if count > WEIGHT_LIMIT:
                raise BadModel(f"the model has over {WEIGHT_LIMIT} weights")
            out[name] = _decode_weights(entry, shape, tensors, weight_tables)
            for axis in SPREADS:
                del out[f"{entry['name']}.{axis}"]
        else:
            indexes = unpack(tensors[name].numpy(), int(entry["bits"]), math.prod(shape))
            if int(indexes.max()) >= len(levels):
                raise BadModel(f"{name} holds index {int(indexes.max())}, it has {len(levels)} levels")
            out[name] = torch.from_numpy(levels[indexes]).reshape(shape)
        if "gdn" in entry:
            name, channels = f"{entry['name']}.gamma", shape[1 if entry["transposed"] else 0]
            gamma = unpack(tensors[name].numpy(), int(entry["gdn"]["bits"]), channels**2)
            out[name] = torch.from_numpy(gamma.astype(np.int64)).reshape(channels, channels)
        if "compensate" in entry:
            stored, pairs = tensors[f"{entry['name']}.feedback"], shape[0] * (shape[0] - 1) // 2
            if stored.shape != (pairs,):
                raise BadModel(f"{entry['name']}.feedback must be flat {pairs}, got {tuple(stored.shape)}")
            feedback = torch.zeros(shape[0], shape[0], dtype=torch.int64)
            feedback[_above_diagonal(shape[0])] = stored.to(torch.int64)
            out[f"{entry['name']}.feedback"] = feedback
    return out


def _integer_contents(codec: IntegerCodec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    codec.check()
    structure, tensors = _pack(codec)
    header = {
        "version": VERSIONS["integer"],
        "kind": "integer",
        "structure": structure,
        "description": codec.description,
    }
    return header, _compress(structure, tensors)


def save_integer(codec: IntegerCodec, path: Path) -> None:
    """Write an integer codec: weights coded or packed, other tensors in the narrowest type, all of it in
    gzip.
    """
    write(path, *_integer_contents(codec), compressed=True)


def file_bytes(codec: IntegerCodec) -> int:
    """Size of the file that `save_integer` would write."""
    return len(serialize(*_integer_contents(codec), compressed=True))


def weight_bytes(codec: IntegerCodec) -> dict[str, int]:
    """Of those, what each stage's weights take, spreads and levels included."""
    _, tensors = _integer_contents(codec)
    sizes = {n: t.numel() * t.element_size() for n, t in tensors.items()}
    parts = ("weight", "levels", *SPREADS)
    stages = [s.name for network in codec.networks.values() for s in network.stages]
    return {s: sum(sizes.get(f"{s}.{part}", 0) for part in parts) for s in stages}


def load_integer(path: Path) -> IntegerCodec:
    """An integer codec, every bound of the contract checked. Raises `UnknownModel` or `BadModel`."""
    header, tensors = read(path)
    if header.get("kind") != "integer":
        raise BadModel(f"{path} holds a {header.get('kind')!r} model; this needs a quantized one")
    for name, t in tensors.items():
        if t.is_floating_point() or t.is_complex():
            raise BadModel(f"{path}: {name} is {t.dtype}; an integer model holds integers only")
    try:
        tensors = _expand(header["structure"], tensors)
        codec = _unpack(header["structure"], tensors, header.get("description", {}))
        codec.check()
    except KeyError as error:
        raise BadModel(f"{path}: missing {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise BadModel(f"{path}: bad structure: {error}") from None
    except BadModel as error:
        raise BadModel(f"{path}: {error}") from None
    return codec


def _unpack(s: dict[str, Any], tensors: dict[str, Tensor], description: dict[str, Any]) -> IntegerCodec:
    if s["architecture"] not in ARCHITECTURES:
        raise BadModel(f"unknown architecture {s['architecture']!r}")

    def get(name: str, dtype: torch.dtype) -> Tensor:
        return _fit(name, tensors[name], dtype)

    def multiplier(name: str) -> Multiplier:
        return Multiplier(get(f"{name}.m", torch.int32), get(f"{name}.shift", torch.int32))

    def stage(entry: dict[str, Any]) -> Stage:
        name, (lo, hi), (out_lo, out_hi) = str(entry["name"]), entry["in"], entry["out"]
        conv = IntegerConv(
            get(f"{name}.weight", torch.int16), get(f"{name}.bias", torch.int64),
            int(entry["stride"]), bool(entry["transposed"]), int(lo), int(hi), int(entry["bits"]),
            get(f"{name}.levels", torch.int16) if f"{name}.levels" in tensors else None,
        )  # fmt: skip
        if "gdn" in entry:
            return Stage(name, conv, DivisiveNormalization(
                bool(entry["gdn"]["inverse"]), multiplier(f"{name}.widen"),
                get(f"{name}.gamma", torch.int16), get(f"{name}.beta", torch.int64),
                multiplier(f"{name}.factor"), int(out_lo), int(out_hi), int(entry["gdn"]["bits"]),
            ))  # fmt: skip
        if entry.get("compensate"):
            offset, feedback = get(f"{name}.offset", torch.int32), get(f"{name}.feedback", torch.int16)
            factor = multiplier(f"{name}.factor")
            return Stage(name, conv, Compensate(factor, int(out_lo), int(out_hi), offset, feedback))
        negative = multiplier(f"{name}.negative") if entry["leaky"] else None
        return Stage(name, conv, Requantize(multiplier(f"{name}.factor"), negative, int(out_lo), int(out_hi)))

    networks = {
        part: IntegerNetwork(tuple(stage(entry) for entry in entries))
        for part, entries in s["stages"].items()
    }
    hyper = "hyper_input" in s
    return IntegerCodec(
        str(s["architecture"]), int(s["N"]), int(s["M"]), networks,
        _tables("y_tables", tensors), _tables("z_tables", tensors) if hyper else None,
        get("thresholds", torch.int32) if hyper else None,
        Requantize(multiplier("hyper_input.factor"), None, int(s["hyper_input"][0]), int(s["hyper_input"][1]))
        if hyper else None,
        get("medians", torch.int32), int(s["fraction_bits"]), bool(s["has_means"]),
        get("latent_shift", torch.int32), dict(description),
    )  # fmt: skip
