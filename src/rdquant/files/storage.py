"""Tensors as a model file holds them: weights coded or packed, other integers narrow.

=========================  ============================================================================
weights                    coded (`rdquant.files.weight_streams`), or packed at their bits where that is less
``gamma``                  packed at ``bits``
``feedback``               what is above the diagonal
CDF tables                 changes of their frequencies
everything else            in the smallest integer type that holds it
=========================  ============================================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..entropy import CdfTables
from ..errors import BadModel
from ..graph.operations import Compensate, Convolution, DivisiveNormalization
from ..threads import share
from .bits import pack, packed_size, unpack
from .structure import ARRAYS, entries_of, fit, take_tables
from .weight_streams import WEIGHT_LIMIT, CodedWeights, decode_weights, encode_weights

WEIGHT_TABLES = "weight_tables"
TABLES = ("y_tables", "z_tables", WEIGHT_TABLES)
#: of coded weights: terms of the spreads of output channels, input channels of a group, and taps
SPREADS = ("rows", "columns", "taps")
#: uniform weights of more bits are packed, not coded
MOST_CODED_BITS = 8


def _narrow(t: np.ndarray) -> np.ndarray:
    low, high = (int(t.min()), int(t.max())) if t.size else (0, 0)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return t.astype(dtype)
    return t.astype(np.int64)


def _levels(tensors: dict[str, np.ndarray], entry: dict[str, Any]) -> np.ndarray:
    """The integers that a convolution's weights can be, int64, rising."""
    name, bits = f"{entry['name']}.levels", entry["bits"]
    if name in tensors:
        return tensors[name].astype(np.int64)
    if not 2 <= bits <= 16:  # before anything of that size is made
        raise BadModel(f"{entry['name']}.bits must be 2..16, got {bits}")
    top = 2 ** (bits - 1) - 1
    return np.arange(-top, top + 1)


def _of_kind(structure: dict[str, Any], operation: Any) -> list[dict[str, Any]]:
    return [entry for entry in entries_of(structure) if entry["kind"] == operation.kind]


def _above_diagonal(channels: int) -> np.ndarray:
    return np.triu(np.ones((channels, channels), bool), 1)


def _laid_out(entry: dict[str, Any], kernel: np.ndarray) -> Convolution:
    """A convolution that knows how to turn a kernel, and no more."""
    return Convolution(kernel, kernel, transposed=entry["transposed"], groups=entry["groups"])


def _code_weights(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Streams of the kernels that are smaller so than packed, and their tables."""
    layers: dict[str, np.ndarray] = {}
    bits = {entry["name"]: entry["bits"] for entry in _of_kind(structure, Convolution)}
    for entry in _of_kind(structure, Convolution):
        name = entry["name"]
        if f"{name}.levels" not in tensors and bits[name] <= MOST_CODED_BITS:
            kernel = _laid_out(entry, tensors[f"{name}.weight"]).by_output()
            layers[name] = np.ascontiguousarray(kernel.reshape(*kernel.shape[:2], -1))
    if not layers:
        return {}
    tables, coded = encode_weights(layers)
    found = {}
    for name, c in coded.items():
        if c.size < packed_size(layers[name].size, bits[name]):
            found[f"{name}.weight"] = np.frombuffer(c.stream, np.uint8)
            for axis, spread in zip(SPREADS, c.spreads, strict=True):
                found[f"{name}.{axis}"] = spread
    if found:
        found |= {f"{WEIGHT_TABLES}.{array}": getattr(tables, array) for array in ARRAYS}
    return found


def _decode_weights(entry: dict[str, Any], tensors: dict[str, np.ndarray], tables: CdfTables) -> np.ndarray:
    """The inverse for one kernel; takes its spreads out of ``tensors``."""
    name = entry["name"]
    first, second, *taps = entry["shape"]
    shape = (first, second, *taps)
    if entry["transposed"]:
        shape = (second * entry["groups"], first // entry["groups"], *taps)
    spreads = [tensors.pop(f"{name}.{axis}") for axis in SPREADS]
    for axis, t, size in zip(SPREADS, spreads, (*shape[:2], math.prod(shape[2:])), strict=True):
        if t.shape != (size,) or t.dtype != np.int8:
            raise BadModel(f"{name}.{axis} must be {size} int8, got {tuple(t.shape)} {t.dtype}")
    stream = tensors[f"{name}.weight"]
    if stream.dtype != np.uint8 or stream.ndim != 1:
        raise BadModel(f"{name}.weight must be flat bytes, got {tuple(stream.shape)} {stream.dtype}")
    q = decode_weights(CodedWeights(stream.tobytes(), (spreads[0], spreads[1], spreads[2])), tables)
    top = 2 ** (entry["bits"] - 1) - 1
    if max(-int(q.min()), int(q.max())) > top:
        raise BadModel(f"{name}.weight holds {int(q.min())}..{int(q.max())}, over +-{top}")
    return _laid_out(entry, q).stored_as(q.reshape(shape))


def compress(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a file holds of whole tensors (`rdquant.files.structure.take_apart`)."""
    stored = {**tensors, **(coded := _code_weights(structure, tensors))}
    for entry in _of_kind(structure, Convolution):
        name = f"{entry['name']}.weight"
        if name not in coded:
            indexes = np.searchsorted(_levels(tensors, entry), tensors[name].reshape(-1))
            stored[name] = pack(indexes, entry["bits"])
    for entry in _of_kind(structure, DivisiveNormalization):
        name = f"{entry['name']}.gamma"
        stored[name] = pack(tensors[name], entry["bits"])
    for entry in _of_kind(structure, Compensate):
        name = f"{entry['name']}.feedback"
        stored[name] = tensors[name][_above_diagonal(len(tensors[name]))]
    for name in TABLES:
        if f"{name}.cdf" in stored:
            arrays = {f"{name}.{array}": stored[f"{name}.{array}"] for array in ARRAYS}
            stored[f"{name}.frequencies"] = take_tables(name, arrays).changes()
            del stored[f"{name}.cdf"]
    return {k: t if t.dtype == np.uint8 else _narrow(t) for k, t in stored.items()}


def expand(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `compress`, of a structure that `rdquant.files.structure.check_structure` has seen.

    Raises `BadModel` for tensors that do not fit, `KeyError` for what is missing; what a file says of sizes
    is checked before anything is made of it.
    """
    out = dict(tensors)
    for name in TABLES:
        if f"{name}.cdf" in out:
            raise BadModel(f"{name}.cdf is no form that files have")
        if f"{name}.frequencies" in out:
            changes = out.pop(f"{name}.frequencies")
            starts, offsets = (fit(name, tensors[f"{name}.{a}"], np.int32) for a in ARRAYS[1:])
            out[f"{name}.cdf"] = CdfTables.from_changes(changes, starts, offsets).cdf
    convolutions = _of_kind(structure, Convolution)
    if sum(math.prod(entry["shape"]) for entry in convolutions) > WEIGHT_LIMIT:
        raise BadModel(f"the model has over {WEIGHT_LIMIT} weights")
    levels_of = {entry["name"]: _levels(tensors, entry) for entry in convolutions}
    coded = [entry for entry in convolutions if f"{entry['name']}.{SPREADS[0]}" in tensors]
    if coded:
        weight_tables = take_tables(WEIGHT_TABLES, out)
        weight_tables.validate()

        def decode(first: int, last: int) -> None:
            for entry in coded[first:last]:
                out[f"{entry['name']}.weight"] = _decode_weights(entry, out, weight_tables)

        share(len(coded), decode)
    for entry in convolutions:
        if f"{entry['name']}.{SPREADS[0]}" in tensors:
            continue
        name, levels = f"{entry['name']}.weight", levels_of[entry["name"]]
        indexes = unpack(tensors[name], entry["bits"], math.prod(entry["shape"]))
        if int(indexes.max()) >= len(levels):
            raise BadModel(f"{name} holds index {int(indexes.max())}, it has {len(levels)} levels")
        out[name] = levels[indexes].reshape(entry["shape"])
    for entry in _of_kind(structure, DivisiveNormalization):
        name, channels = f"{entry['name']}.gamma", tensors[f"{entry['name']}.beta"].size
        gamma = unpack(tensors[name], entry["bits"], channels**2)
        out[name] = gamma.reshape(channels, channels)
    for entry in _of_kind(structure, Compensate):
        name, channels = f"{entry['name']}.feedback", tensors[f"{entry['name']}.offset"].size
        pairs = channels * (channels - 1) // 2
        if tensors[name].shape != (pairs,):
            raise BadModel(f"{name} must be flat {pairs}, got {tuple(tensors[name].shape)}")
        feedback = np.zeros((channels, channels), np.int64)
        feedback[_above_diagonal(channels)] = tensors[name]
        out[name] = feedback
    return out
