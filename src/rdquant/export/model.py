"""Networks of a codec as ONNX models, and as files for ONNX Runtime and OpenVINO."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from ..codec import Codec
from ..errors import UsageError
from ..files.atomic import atomic_write
from ..graph import Graph
from .handlers import write
from .writer import IR_VERSION, OPSET, Edge, Form, Target, Writer, is_narrow, zero_point

#: networks that no symbol depends on
FREE = ("analysis", "synthesis")
_TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


@dataclass(frozen=True)
class Exported:
    """A network in ONNX, and which of its operations have 8 bits."""

    model: ModelProto
    forms: list[Form]

    @property
    def int8_share(self) -> float:
        """Of the multiplications of its matrix products and normalizations."""
        total = sum(f.weights for f in self.forms)
        return sum(f.weights for f in self.forms if f.form == "int8") / max(1, total)


def onnx_model(graph: Graph, target: Target, name: str = "network") -> Exported:
    """``target``: whose int8 operations there are to be.

    Inputs and output are integers, in order and under the names of the graph's: uint8 or int8 where they have
    8 bits, else float32, all ``(1, C, H, W)`` of any H and W. Raises `UsageError` for an operation that
    cannot be written.
    """
    graph = graph.trimmed()
    w = Writer(graph, target)
    inputs = []
    for edge, port in graph.inputs.items():
        kind = TensorProto.FLOAT
        w.edges[edge] = Edge(edge, rounded=True)
        if is_narrow(port.lo, port.hi) and not (zero := zero_point(port.lo, port.hi)):
            kind = _TYPES[zero.dtype.name]
            form = [w.scale_of_one(), w.constant("zero", zero)]
            w.edges[edge] = Edge(w.emit("DequantizeLinear", [edge, *form], edge), True, edge)
        inputs.append(helper.make_tensor_value_info(edge, kind, [1, port.channels, None, None]))
    for node in graph.nodes:
        write(w, node)
    end, port = w.edges[graph.output], w.ports[graph.output]
    kind = TensorProto.FLOAT
    if end.integers is not None and not zero_point(port.lo, port.hi):
        found, kind = end.integers, _TYPES[zero_point(port.lo, port.hi).dtype.name]
    else:
        found = end.name if end.rounded else w.round("end", end.name)
    w.nodes.append(helper.make_node("Identity", [found], [graph.output], name="end"))
    output = helper.make_tensor_value_info(graph.output, kind, [1, port.channels, None, None])
    body = helper.make_graph(w.nodes, name, inputs, [output], w.tensors)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="rdquant"
    )
    return Exported(model, w.forms)


def export_codec(
    codec: Codec, target: Target, folder: Path, networks: tuple[str, ...] = FREE
) -> dict[str, dict[str, Any]]:
    """Files ``NETWORK.onnx``, or ``.xml`` and ``.bin``, and ``report.json``, which is also given back.

    Raises `UsageError` for a float codec, an unknown network or an operation that cannot be written.
    """
    if not codec.integer:
        raise UsageError(f"{codec.architecture} is a float codec; quantize it first")
    if unknown := sorted(set(networks) - set(codec.networks)):
        raise UsageError(f"no network {', '.join(unknown)}; there are {', '.join(codec.networks)}")
    found = {n: onnx_model(codec.networks[n], target, n) for n in networks}
    folder.mkdir(parents=True, exist_ok=True)
    for name, exported in found.items():
        data = exported.model.SerializeToString()
        if target == "onnx":
            with atomic_write(folder / f"{name}.onnx") as handle:
                handle.write(data)
        else:
            import openvino

            read = openvino.Core().read_model(io.BytesIO(data))
            openvino.save_model(read, folder / f"{name}.xml", compress_to_fp16=False)
    report = {
        name: {
            "int8 share of multiplications": round(e.int8_share, 4),
            "operations": [dataclasses.asdict(f) for f in e.forms],
        }
        for name, e in found.items()
    }
    with atomic_write(folder / "report.json") as handle:
        handle.write(json.dumps(report, indent=1).encode())
    return report
