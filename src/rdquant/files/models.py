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
    DivisiveNormalization,
    IntegerCodec,
    IntegerConv,
    IntegerNetwork,
    Requantize,
    Stage,
)
from ..integer.arithmetic import Multiplier
from .atomic import atomic_write

FORMAT_VERSION = 1
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


def _write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    data = to_safetensors({k: t.contiguous() for k, t in tensors.items()}, {"rdquant": json.dumps(header)})
    with atomic_write(path) as handle:
        handle.write(data)


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
    except (KeyError, ValueError):
        raise BadModel(f"{path} is a safetensors file without a readable rdquant header") from None
    if not isinstance(header, dict) or header.get("version") != FORMAT_VERSION:
        version = header.get("version") if isinstance(header, dict) else header
        raise BadModel(f"{path} has model format {version!r}, this release reads {FORMAT_VERSION}")
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
        "version": FORMAT_VERSION,
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
    except (KeyError, TypeError, ValueError, RdquantError) as error:
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
    """The smallest of int8, int16, int32, int64 that holds the values: how integers are stored."""
    low, high = (int(t.min()), int(t.max())) if t.numel() else (0, 0)
    for dtype in (torch.int8, torch.int16, torch.int32):
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
                "in": [c.lo, c.hi], "bits": c.bits, "out": [e.lo, e.hi],
            }  # fmt: skip
            if c.levels is not None:
                tensors[f"{s.name}.levels"] = c.levels
            multiplier(f"{s.name}.factor", e.factor)
            if isinstance(e, DivisiveNormalization):
                entry["gdn"] = {"inverse": e.inverse, "bits": e.bits}
                multiplier(f"{s.name}.widen", e.widen)
                tensors[f"{s.name}.gamma"], tensors[f"{s.name}.beta"] = e.gamma, e.beta
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
    tensors["medians"] = codec.medians
    if codec.thresholds is not None and codec.hyper_input is not None:
        tensors["thresholds"] = codec.thresholds
        multiplier("hyper_input.factor", codec.hyper_input.factor)
        structure["hyper_input"] = [codec.hyper_input.lo, codec.hyper_input.hi]
    return structure, tensors


def integer_fingerprint(codec: IntegerCodec) -> bytes:
    """8 bytes that name an integer codec: its integers and tables, not its description."""
    structure, tensors = _pack(codec)
    return _digest(structure, {k: t.to(torch.int64) for k, t in tensors.items()})


def save_integer(codec: IntegerCodec, path: Path) -> None:
    """Write an integer codec, each tensor in the narrowest integer type that holds it."""
    codec.check()
    structure, tensors = _pack(codec)
    header = {
        "version": FORMAT_VERSION,
        "kind": "integer",
        "structure": structure,
        "description": codec.description,
    }
    _write(path, header, {k: _narrow(t) for k, t in tensors.items()})


def load_integer(path: Path) -> IntegerCodec:
    """An integer codec, every bound of the contract checked. Raises `UnknownModel` or `BadModel`."""
    header, tensors = _read(path)
    if header.get("kind") != "integer":
        raise BadModel(f"{path} holds a {header.get('kind')!r} model; this needs a quantized one")
    for name, t in tensors.items():
        if t.is_floating_point() or t.is_complex():
            raise BadModel(f"{path}: {name} is {t.dtype}; an integer model holds integers only")
    try:
        codec = _unpack(header["structure"], tensors, header.get("description", {}))
        codec.check()
    except KeyError as error:
        raise BadModel(f"{path}: missing {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise BadModel(f"{path}: bad structure: {error}") from None
    except BadModel as error:
        raise BadModel(f"{path}: {error}") from None
    return codec


def _unpack(s: dict[str, Any], tensors: dict[str, Tensor], description: dict[str, Any]) -> IntegerCodec:
    if s["architecture"] not in ARCHITECTURES:
        raise BadModel(f"unknown architecture {s['architecture']!r}")

    def get(name: str, dtype: torch.dtype) -> Tensor:
        t = tensors[name]
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
        get("medians", torch.int32), int(s["fraction_bits"]), bool(s["has_means"]), dict(description),
    )  # fmt: skip
