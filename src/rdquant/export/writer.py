"""An integer graph as an ONNX graph that any int8 engine runs: quantize-dequantize pairs with our ranges.

Real numbers of the ONNX graph are our integers: every scale of an activation is 1, and the factor from a
convolution's accumulators to what follows is the scale of its weights, one for each output channel. So an
edge of at most 8 bits is one pair ``QuantizeLinear, DequantizeLinear`` of one scale for the tensor, although
each channel's integers may stand for something else. What has more bits flows in float32, rounded and clipped
as in our arithmetic, so that results differ only where a float error meets a tie.

`rdquant.export.handlers` has a handler for each kind of operation; this is what they write with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ..graph import Graph, Port

Target = Literal["onnx", "openvino"]
#: opset 19 and IR 9 are old enough for every engine of the last years
OPSET, IR_VERSION = 19, 9


def is_narrow(lo: int, hi: int) -> bool:
    """Whether integers of a range have 8 bits, with a zero point if need be."""
    return hi - lo <= 255


def zero_point(lo: int, hi: int) -> np.ndarray:
    """Of a range of at most 8 bits: 0 where its integers are int8 or uint8 as they are."""
    if lo >= -128 and hi <= 127:
        return np.zeros((), np.int8)
    return np.array(-min(lo, 0), np.uint8)


@dataclass(frozen=True)
class Edge:
    """A float32 tensor of the ONNX graph.

    ``rounded``: it holds integers; ``integers``: the 8-bit tensor that a `DequantizeLinear` makes it of.
    """

    name: str
    rounded: bool = False
    integers: str | None = None


@dataclass(frozen=True)
class Form:
    """How an operation is exported: "int8" or "float", and why not int8."""

    node: str
    operation: str
    form: Literal["int8", "float"]
    why: str = ""
    weights: int = 0  #: multiplications for each position of the output


@dataclass
class Writer:
    """Nodes and tensors of one ONNX graph in the making."""

    graph: Graph
    target: Target
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    edges: dict[str, Edge] = field(default_factory=dict)
    forms: list[Form] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ports: dict[str, Port] = self.graph.ports()
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    def fresh(self, name: str) -> str:
        """A tensor name that starts with ``name``."""
        return f"{name}:{len(self.nodes) + len(self.tensors)}"

    def emit(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """One ONNX node; the name of what it gives."""
        out = self.fresh(name)
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: np.ndarray) -> str:
        key = (value.tobytes(), value.dtype.str, value.shape)
        if key not in self._constants:
            self._constants[key] = self.fresh(name)
            self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), self._constants[key]))
        return self._constants[key]

    def real(self, name: str, value: np.ndarray) -> str:
        return self.constant(name, np.asarray(value, np.float32))

    def scale_of_one(self) -> str:
        return self.real("one", np.array(1.0))

    def by_channel(self, name: str, value: np.ndarray) -> str:
        """``(C,)`` -> a constant that meets ``(1, C, H, W)``."""
        return self.real(name, np.asarray(value, np.float64).reshape(1, -1, 1, 1))

    def scaled(self, name: str, tensor: str, factor: np.ndarray) -> str:
        """A factor for each channel, left out where all are 1."""
        if bool(np.all(factor == 1)):
            return tensor
        return self.emit("Mul", [tensor, self.by_channel(name, factor)], name)

    def clip(self, name: str, tensor: str, lo: float, hi: float) -> str:
        bounds = [self.real(f"{name}.{end}", np.array(v)) for end, v in (("lo", lo), ("hi", hi))]
        return self.emit("Clip", [tensor, *bounds], name)

    def round(self, name: str, tensor: str) -> str:
        """``floor(x + 1/2)``."""
        return self.emit("Floor", [self.emit("Add", [tensor, self.real("half", np.array(0.5))], name)], name)

    def quantized(self, name: str, tensor: str, lo: int, hi: int) -> tuple[str, list[str]]:
        """8-bit integers of a float tensor, and the scale and zero point that they have."""
        zero = zero_point(lo, hi)
        limits, z = np.iinfo(zero.dtype), int(zero)
        if (lo + z, hi + z) != (limits.min, limits.max):
            tensor = self.clip(name, tensor, lo, hi)
        form = [self.scale_of_one(), self.constant("zero", zero)]
        return self.emit("QuantizeLinear", [tensor, *form], name), form

    def paired(self, name: str, tensor: str, lo: int, hi: int) -> Edge:
        """Through 8-bit integers and back."""
        q, form = self.quantized(name, tensor, lo, hi)
        return Edge(self.emit("DequantizeLinear", [q, *form], name), rounded=True, integers=q)

    def finish(self, name: str, tensor: str, lo: int, hi: int) -> Edge:
        """The end of an operation whose integers are in [lo, hi]."""
        if is_narrow(lo, hi):
            return self.paired(name, tensor, lo, hi)
        return Edge(self.clip(name, self.round(name, tensor), lo, hi), rounded=True)

    def narrow(self, edge: str) -> Edge | None:
        """The edge as 8-bit products take it; None where it has more bits, or none (unrounded)."""
        found, port = self.edges[edge], self.ports[edge]
        if found.integers is None and found.rounded and is_narrow(port.lo, port.hi):
            return self.paired(edge, found.name, port.lo, port.hi)
        return None if found.integers is None else found

    def note(self, node: str, operation: str, why: str = "", weights: int = 0) -> None:
        """For the report. ``why``: it is float; empty: it has 8 bits."""
        self.forms.append(Form(node, operation, "float" if why else "int8", why, weights))
