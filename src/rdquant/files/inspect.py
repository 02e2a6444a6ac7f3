"""What is in a file, as rows: image containers and model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..codecs import FloatCodec
from ..errors import UnknownModel
from ..integer import Compensate, DivisiveNormalization, IntegerCodec
from .bits import packed_size
from .container import MAGIC, describe
from .float_models import float_fingerprint, load_float
from .integer_models import integer_fingerprint, load_integer, weight_bytes
from .model_file import model_kind

CONTAINER_COLUMNS = ("field", "offset", "bytes", "value")
#: bits: of a weight in arithmetic, and in the file on average; bytes: before the file's gzip
MODEL_COLUMNS = ("layer", "kind", "shape", "bits", "coded bits", "in", "out", "bytes")


def is_container(path: Path) -> bool:
    """Whether a file begins like an image container. Raises `UnknownModel` if there is none."""
    if not path.is_file():
        raise UnknownModel(f"no such file: {path}")
    with path.open("rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def inspect_container(path: Path) -> dict[str, Any]:
    """``{"rows": ..., "bytes": ...}``; raises as decoding does."""
    data = path.read_bytes()
    return {"kind": "image", "bytes": len(data), "rows": [list(row) for row in describe(data)]}


def inspect_model(path: Path) -> dict[str, Any]:
    """Header fields and one row per layer. Raises `UnknownModel` or `BadModel`."""
    if model_kind(path) == "integer":
        return _integer(load_integer(path), path)
    return _float(load_float(path), path)


def _float(codec: FloatCodec, path: Path) -> dict[str, Any]:
    rows = [
        [name, "parameter", "x".join(map(str, t.shape)), 16, None, None, None, 2 * t.numel()]
        for name, t in codec.state_dict().items()
    ]
    return {
        "kind": "float model",
        "architecture": codec.architecture,
        "N": codec.N,
        "M": codec.M,
        "fingerprint": float_fingerprint(codec).hex(),
        "bytes": path.stat().st_size,
        "rows": rows,
    }


def _integer(codec: IntegerCodec, path: Path) -> dict[str, Any]:
    rows, stored = [], weight_bytes(codec)
    for network in codec.networks.values():
        for s in network.stages:
            kind = "deconv" if s.conv.transposed else "conv"
            size = stored[s.name]
            coded = round(8 * size / s.conv.weight.numel(), 2)
            e = s.epilogue
            if isinstance(e, DivisiveNormalization):
                kind += " + " + ("IGDN" if e.inverse else "GDN")
                size += packed_size(e.gamma.numel(), e.bits)
            elif isinstance(e, Compensate):
                kind += " + compensated rounding"
                size += e.feedback.numel() - len(e.feedback)
            elif e.negative is not None:
                kind += " + leaky ReLU"
            elif e.lo == 0 and e.hi != 255:
                kind += " + ReLU"
            shape = "x".join(map(str, s.conv.weight.shape))
            ranges = str([s.conv.lo, s.conv.hi]), str(list(e.reach()))
            rows.append([s.name, kind, shape, s.conv.bits, coded, *ranges, size])
    for name, tables in (("y tables", codec.y_tables), ("z tables", codec.z_tables)):
        if tables is not None:
            size = 2 * (len(tables.cdf) - len(tables))
            rows.append([name, "CDF", f"{len(tables)} tables", None, None, None, None, size])
    return {
        "kind": "integer model",
        "architecture": codec.architecture,
        "N": codec.N,
        "M": codec.M,
        "fraction_bits": codec.fraction_bits,
        "fingerprint": integer_fingerprint(codec).hex(),
        "bytes": path.stat().st_size,
        "description": codec.description,
        "rows": rows,
    }
