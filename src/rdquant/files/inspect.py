"""What is in a model file, as rows. (Of an image container: `rdquant.files.container.inspect_container`.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..codec import Codec
from ..graph import Node, Operation, Port
from ..graph.operations import (
    Compensate,
    Convolution,
    DivisiveNormalization,
    Pointwise,
    Requantize,
    WindowAttention,
)
from ..lazy import extras
from .integer_models import integer_fingerprint, load_integer, stored_bytes
from .model_file import model_kind, read
from .storage import SPREADS
from .structure import tensors_of

#: bits: of a weight in arithmetic, and in the file on average; bytes: before the file's gzip
MODEL_COLUMNS = ("node", "kind", "inputs", "shape", "bits", "coded bits", "in", "out", "bytes")


def inspect_model(path: Path) -> dict[str, Any]:
    """Header fields and one row per node of each network. Raises `UnknownModel` or `BadModel`."""
    if model_kind(path) == "integer":
        return _integer(load_integer(path), path)
    return _float(path)


def _float(path: Path) -> dict[str, Any]:
    with extras():
        from .float_models import float_fingerprint, load_float

    codec, stored = load_float(path), read(path)[1]
    rows = [
        [name, "parameter", None, "x".join(map(str, t.shape)), 8 * t.itemsize, None, None, None, t.nbytes]
        for name, t in ((name, stored[name]) for name in codec.state_dict())
    ]
    return {
        "kind": "float model",
        "architecture": codec.architecture,
        **codec.options(),
        "fingerprint": float_fingerprint(codec).hex(),
        "bytes": path.stat().st_size,
        "rows": rows,
    }


def _label(op: Operation) -> str:
    """What an operation is, in a word or two."""
    match op:
        case Convolution():
            return (
                ("de" if op.transposed else "")
                + "conv"
                + (f" in {op.groups} groups" if op.groups > 1 else "")
            )
        case DivisiveNormalization():
            return "IGDN" if op.inverse else "GDN"
        case Compensate():
            return "compensated rounding"
        case Requantize():
            return "leaky ReLU" if op.negative is not None else "absolute" if op.absolute else "requantize"
        case Pointwise():
            return f"table of {op.function}"
        case WindowAttention():
            return f"attention, {op.heads} heads in windows of {op.window}"
    return op.kind.replace("_", " ")


def _range(port: Port) -> str:
    return str([port.lo, port.hi])


def _node(node: Node, ports: dict[str, Port], stored: dict[str, int]) -> list[Any]:
    parts, op = (*tensors_of(node.op), *SPREADS), node.op
    sizes = {part: stored.get(f"{node.name}.{part}", 0) for part in parts}
    shape = bits = coded = None
    if isinstance(op, Convolution):
        weights = sum(sizes.get(part, 0) for part in ("weight", "levels", *SPREADS))
        shape, bits = "x".join(map(str, op.weight.shape)), op.bits
        coded = round(8 * weights / op.weight.size, 2)
    elif isinstance(op, DivisiveNormalization):
        shape, bits = "x".join(map(str, op.gamma.shape)), op.bits
    given = ", ".join(_range(ports[edge]) for edge in node.inputs)
    row = [node.name, _label(op), ", ".join(node.inputs), shape, bits, coded, given]
    return [*row, _range(ports[node.name]), sum(sizes.values())]


def _integer(codec: Codec, path: Path) -> dict[str, Any]:
    rows, stored = [], stored_bytes(codec)
    for graph in codec.networks.values():
        ports = graph.ports()
        rows += [_node(node, ports, stored) for node in graph.nodes]
    for name, tables in (("y tables", codec.y_tables), ("z tables", codec.z_tables)):
        if tables is not None:
            size = 2 * (len(tables.cdf) - len(tables))
            rows.append([name, "CDF", None, f"{len(tables)} tables", None, None, None, None, size])
    return {
        "kind": "integer model",
        "architecture": codec.architecture,
        "prior": codec.prior.to_json(),
        "networks": {name: len(graph.nodes) for name, graph in codec.networks.items()},
        "downsampling": codec.downsampling,
        "fraction_bits": codec.fraction_bits,
        "fingerprint": integer_fingerprint(codec).hex(),
        "bytes": path.stat().st_size,
        "description": codec.description,
        "rows": rows,
    }
