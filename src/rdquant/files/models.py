"""Model files: safetensors for the numbers, one JSON object in its header for the rest.

Two kinds. ``float``: a `FloatCodec`'s parameters, stored as float16 or float32. ``integer``: an
`IntegerCodec`, integers and CDF tables only. Loading is a pure function of the file: nothing is
unpickled, nothing is recomputed, and everything is checked before it is used.

The fingerprint names a model in every image file: the first 8 bytes of SHA-256 over the canonical
JSON of the structure and over each tensor's name, type, shape and bytes. Descriptions do not enter.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..codecs import ARCHITECTURES, FloatCodec, build
from ..entropy import CdfTables
from ..errors import BadModel, RdquantError, UnknownModel
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
from .atomic import atomic_write
from .bits import pack, unpack

FLOAT_VERSION = 1
INTEGER_VERSION = 3
VERSIONS = {"float": FLOAT_VERSION, "integer": INTEGER_VERSION}
#: a model file larger than this is refused before it is read
SIZE_LIMIT = 2**30


def _digest(structure: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    h = hashlib.sha256(json.dumps(structure, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name}:{array.dtype.name}:{list(array.shape)}:".encode())
        h.update(little.tobytes())
    return h.digest()[:8]


def _serialize(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    return to_safetensors({k: t.contiguous() for k, t in tensors.items()}, {"rdquant": json.dumps(header)})


def _write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with atomic_write(path) as handle:
        handle.write(_serialize(header, tensors))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UnknownModel(f"no such model file: {path}")
    if path.stat().st_size > SIZE_LIMIT:
        raise BadModel(f"{path} has {path.stat().st_size} bytes, over the limit of {SIZE_LIMIT}")
    try:
        with safe_open(str(path), "pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BadModel(f"{path} is not a safetensors file: {error}") from None
    try:
        header = json.loads(metadata["rdquant"])
    except (KeyError, ValueError, RecursionError):
        raise BadModel(f"{path} is a safetensors file without a readable rdquant header") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise BadModel(f"{path} has an rdquant header that does not say its kind")
    expected = VERSIONS.get(header["kind"])
    if expected is not None and header.get("version") != expected:
        raise BadModel(
            f"{path} is a {header['kind']} model of format {header.get('version')!r}, "
            f"this release reads {expected}"
        )
    return header, tensors


def model_kind(path: Path) -> str:
    """``"float"`` or ``"integer"``. Raises `UnknownModel` or `BadModel`."""
    return str(_read(path)[0].get("kind"))


def model_description(path: Path) -> dict[str, Any]:
    """What the file says of how the model was made, e.g. its ``lambda``."""
    found = _read(path)[0].get("description")
    return found if isinstance(found, dict) else {}


# float models


def save_float(
    codec: FloatCodec, path: Path, description: dict[str, Any] | None = None, half: bool = True
) -> None:
    """Write a float codec; ``half`` stores float16 (the zoo's form), else float32."""
    dtype = torch.float16 if half else torch.float32
    tensors = {k: t.detach().cpu().to(dtype) for k, t in codec.state_dict().items()}
    for name, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            raise BadModel(f"{name} is not finite" + (" in float16; store float32 instead" if half else ""))
    header = {
        "version": FLOAT_VERSION,
        "kind": "float",
        "structure": {"architecture": codec.architecture, **codec.widths()},
        "description": description or {},
    }
    _write(path, header, tensors)


def load_float(path: Path) -> FloatCodec:
    """A float codec in evaluation mode, float32. Raises `UnknownModel` or `BadModel`."""
    header, tensors = _read(path)
    if header.get("kind") != "float":
        raise BadModel(f"{path} holds a {header.get('kind')!r} model; this needs a float one")
    try:
        s = header["structure"]
        codec = build(str(s["architecture"]), int(s["N"]), int(s["M"]))
    except (KeyError, TypeError, ValueError, ArithmeticError, RdquantError) as error:
        raise BadModel(f"{path}: bad structure: {error}") from None
    expected = codec.state_dict()
    if missing := sorted(set(expected) ^ set(tensors)):
        raise BadModel(f"{path}: missing or unexpected tensors: {', '.join(missing[:5])}")
    for name, t in tensors.items():
        if t.shape != expected[name].shape:
            raise BadModel(f"{path}: {name} has shape {tuple(t.shape)}, needs {tuple(expected[name].shape)}")
        if not t.is_floating_point() or not bool(torch.isfinite(t.float()).all()):
            raise BadModel(f"{path}: {name} must be finite floats")
    codec.load_state_dict({k: t.float() for k, t in tensors.items()})
    return codec.eval()


def float_fingerprint(codec: FloatCodec) -> bytes:
    """8 bytes that name a float codec's exact weights."""
    structure = {"kind": "float", "architecture": codec.architecture, **codec.widths()}
    return _digest(structure, {k: t.detach().cpu() for k, t in codec.state_dict().items()})


# integer models


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
    return _digest(structure, {k: t.to(torch.int64) for k, t in tensors.items()})


def _levels(tensors: dict[str, Tensor], entry: dict[str, Any]) -> np.ndarray:
    """The integers that a stage's weights can be, int64, rising."""
    name, bits = f"{entry['name']}.levels", int(entry["bits"])
    if name in tensors:
        return tensors[name].to(torch.int64).numpy()
    if not 2 <= bits <= 16:  # before anything of that size is made
        raise BadModel(f"{entry['name']}.bits must be 2..16, got {bits}")
    top = 2 ** (bits - 1) - 1
    return np.arange(-top, top + 1)


def _above_diagonal(channels: int) -> Tensor:
    return torch.ones(channels, channels, dtype=torch.bool).triu(1)


def _compress(structure: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds: weights and gammas packed at their bits, CDFs as frequencies, the rest narrow."""
    stored = dict(tensors)
    for entry in (e for stages in structure["stages"].values() for e in stages):
        name = f"{entry['name']}.weight"
        indexes = np.searchsorted(_levels(tensors, entry), tensors[name].numpy().reshape(-1))
        stored[name] = torch.from_numpy(pack(indexes, entry["bits"]))
        if "gdn" in entry:
            name = f"{entry['name']}.gamma"
            stored[name] = torch.from_numpy(pack(tensors[name].numpy(), entry["gdn"]["bits"]))
        if "compensate" in entry:
            feedback = tensors[f"{entry['name']}.feedback"]
            stored[f"{entry['name']}.feedback"] = feedback[_above_diagonal(len(feedback))]
    for name in ("y_tables", "z_tables"):
        if f"{name}.cdf" in stored:
            cdf, starts = (stored[f"{name}.{part}"].numpy() for part in ("cdf", "starts"))
            inner = np.ones(len(cdf), bool)
            inner[starts[:-1]] = False
            stored[f"{name}.frequencies"] = torch.from_numpy(np.diff(cdf, prepend=0)[inner])
            del stored[f"{name}.cdf"]
    return {k: t if t.dtype == torch.uint8 else _narrow(t) for k, t in stored.items()}


def _expand(structure: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_compress`."""
    out = dict(tensors)
    for entry in (e for stages in structure["stages"].values() for e in stages):
        name, shape = f"{entry['name']}.weight", [int(n) for n in entry["shape"]]
        if len(shape) != 4 or min(shape) < 1:
            raise BadModel(f"{name} must have 4 axes, got {shape}")
        levels = _levels(tensors, entry)
        indexes = unpack(tensors[name].numpy(), int(entry["bits"]), math.prod(shape))
        if int(indexes.max()) >= len(levels):
            raise BadModel(f"{name} holds index {int(indexes.max())}, it has {len(levels)} levels")
        out[name] = torch.from_numpy(levels[indexes]).reshape(shape)
        if "gdn" in entry:
            name, channels = f"{entry['name']}.gamma", shape[1 if entry["transposed"] else 0]
            gamma = unpack(tensors[name].numpy(), int(entry["gdn"]["bits"]), channels**2)
            out[name] = torch.from_numpy(gamma.astype(np.int64)).reshape(channels, channels)
        if "compensate" in entry:
            stored, count = tensors[f"{entry['name']}.feedback"], shape[0] * (shape[0] - 1) // 2
            if stored.shape != (count,):
                raise BadModel(f"{entry['name']}.feedback must be flat {count}, got {tuple(stored.shape)}")
            feedback = torch.zeros(shape[0], shape[0], dtype=torch.int64)
            feedback[_above_diagonal(shape[0])] = stored.to(torch.int64)
            out[f"{entry['name']}.feedback"] = feedback
    for name in ("y_tables", "z_tables"):
        if f"{name}.frequencies" in tensors:
            frequencies = tensors[f"{name}.frequencies"].to(torch.int64).numpy()
            starts = tensors[f"{name}.starts"].to(torch.int64).numpy()
            lengths = np.diff(starts) - 1
            if len(starts) < 2 or lengths.min() < 2 or int(lengths.sum()) != len(frequencies):
                raise BadModel(f"{name}.starts do not fit {len(frequencies)} frequencies")
            sums = np.concatenate([[0], np.cumsum(frequencies)])
            ends = np.cumsum(lengths)
            rows = [sums[a : b + 1] - sums[a] for a, b in zip(ends - lengths, ends, strict=True)]
            out[f"{name}.cdf"] = torch.from_numpy(np.concatenate(rows))
            del out[f"{name}.frequencies"]
    return out


def _integer_contents(codec: IntegerCodec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    codec.check()
    structure, tensors = _pack(codec)
    header = {
        "version": INTEGER_VERSION,
        "kind": "integer",
        "structure": structure,
        "description": codec.description,
    }
    return header, _compress(structure, tensors)


def save_integer(codec: IntegerCodec, path: Path) -> None:
    """Write an integer codec: weights packed at their bits, other tensors in the narrowest type."""
    _write(path, *_integer_contents(codec))


def integer_file_bytes(codec: IntegerCodec) -> int:
    """Size of the file that `save_integer` would write."""
    return len(_serialize(*_integer_contents(codec)))


def load_integer(path: Path) -> IntegerCodec:
    """An integer codec, every bound of the contract checked. Raises `UnknownModel` or `BadModel`."""
    header, tensors = _read(path)
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
        t = tensors[name].to(torch.int64)
        if t.numel() and not torch.iinfo(dtype).min <= int(t.min()) <= int(t.max()) <= torch.iinfo(dtype).max:
            raise BadModel(f"{name} does not fit {dtype}")
        return t.to(dtype)

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

    def tables(name: str) -> CdfTables:
        cdf, starts, offsets = (
            np.ascontiguousarray(get(f"{name}.{part}", torch.int32).numpy())
            for part in ("cdf", "starts", "offsets")
        )
        return CdfTables(cdf, starts, offsets)

    networks = {
        part: IntegerNetwork(tuple(stage(entry) for entry in entries))
        for part, entries in s["stages"].items()
    }
    hyper = "hyper_input" in s
    return IntegerCodec(
        str(s["architecture"]), int(s["N"]), int(s["M"]), networks,
        tables("y_tables"), tables("z_tables") if hyper else None,
        get("thresholds", torch.int32) if hyper else None,
        Requantize(multiplier("hyper_input.factor"), None, int(s["hyper_input"][0]), int(s["hyper_input"][1]))
        if hyper else None,
        get("medians", torch.int32), int(s["fraction_bits"]), bool(s["has_means"]),
        get("latent_shift", torch.int32), dict(description),
    )  # fmt: skip
