"""How each kind of operation is written in ONNX: one handler a kind, in `HANDLERS`.

A convolution is written with what reads it, whose factor becomes the scale of its weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import UsageError
from ..graph import Node, Operation
from ..graph.arithmetic import (
    ERROR_BITS,
    LAYER_BIAS_BITS,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    X_HI,
    X_LO,
    Multiplier,
    RealFactor,
)
from ..graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
    Gain,
    LayerNorm,
    Pointwise,
    Product,
    Requantize,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
)
from .writer import Edge, Writer, is_narrow

#: least scale of a weight: any accumulator times it is 0, and no engine divides by zero
LEAST_SCALE = 1e-12
#: of all phases of a transposed convolution: OpenVINO makes whole vectors of each phase's own, most of which
#: would stay empty
FEW_OUTPUTS = 16


def _factor(factor: Multiplier | RealFactor | None) -> np.ndarray:
    assert factor is not None
    return np.asarray(factor.as_float(), np.float64)


def by_phases(weight: np.ndarray, stride: int, padding: int) -> tuple[np.ndarray, list[int]]:
    """A transposed convolution as a convolution before a pixel shuffle by ``stride``.

    ``weight: (O, I, k, k)`` of the transposed one -> ``(O stride^2, I, d, d)`` and padding ``[t, l, b, r]``.
    Output ``n stride + r`` is the sum over inputs ``n + d`` of tap ``r + padding - d stride``.
    """
    o, i, k, _ = weight.shape
    first = -((k - 1 - padding) // stride)
    last = (stride - 1 + padding) // stride
    out = np.zeros((o, stride, stride, i, last - first + 1, last - first + 1), weight.dtype)
    taps = [
        (r, d, r + padding - d * stride)
        for r in range(stride)
        for d in range(first, last + 1)
        if 0 <= r + padding - d * stride < k
    ]
    for r, d, a in taps:
        for s, e, b in taps:
            out[:, r, s, :, d - first, e - first] = weight[:, :, a, b]
    return out.reshape(o * stride**2, i, *out.shape[-2:]), [-first, -first, last, last]


def _is_int8(op: Convolution) -> bool:
    weight = np.asarray(op.weight)
    return int(weight.min()) >= -128 and int(weight.max()) <= 127


def accumulate(w: Writer, node: Node, factor: np.ndarray, fused: bool = False) -> tuple[str, int]:
    """A convolution times a factor ``(C,)``; the float tensor, and by how much it is still to be shuffled.

    ``fused``: 8-bit integers are made of the result at once, without which ONNX Runtime multiplies floats.
    """
    op, name = node.op, node.name
    assert isinstance(op, Convolution)
    source = w.narrow(node.inputs[0]) if _is_int8(op) else None
    why = "its weights have more than 8 bits" if not _is_int8(op) else ""
    why = why or ("" if source else "what it takes has more than 8 bits")
    few = op.out_channels * op.stride**2 <= FEW_OUTPUTS
    native = op.transposed and w.target == "openvino" and not few and (op.groups == 1 or source is None)
    if w.target == "onnx" and not why and not fused:
        why = "its result has more than 8 bits"
    weight, factor = np.asarray(op.by_output()), np.maximum(factor, LEAST_SCALE)
    macs = weight[0].size // (op.stride**2 if op.transposed else 1) * len(weight)
    w.note(name, "convolution", why, macs)
    bias, shuffle = np.asarray(op.bias, np.int64), 1
    pads, axis = [op.padding] * 4, 0
    if op.transposed and not native:
        weight, pads = by_phases(weight, op.stride, op.padding)
        bias, factor = (np.repeat(t, op.stride**2) for t in (bias, factor))
        shuffle = op.stride
    elif native:
        weight, axis = np.asarray(op.weight), 1
    if source is None:
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        by_output = np.repeat(factor.reshape(op.groups, -1), len(weight) // op.groups, 0) if axis else None
        scale = factor.reshape(shape) if by_output is None else by_output[:, :, None, None]
        taken = w.edges[node.inputs[0]].name
        if fused:  # ONNX Runtime rounds the weights of what stands between two pairs to 8 bits
            taken = w.emit("Floor", [taken], name)
        given = [taken, w.real(f"{name}.weight", weight * scale)]
        given.append(w.real(f"{name}.bias", bias * factor))
    else:
        stored_scale = w.real(f"{name}.scale", factor)
        integers = w.constant(f"{name}.weight", weight.astype(np.int8))
        given = [source.name, w.emit("DequantizeLinear", [integers, stored_scale], name, axis=axis)]
        if np.abs(bias).max() < 2**31:
            stored = w.constant(f"{name}.bias", bias.astype(np.int32))
            given.append(w.emit("DequantizeLinear", [stored, stored_scale], name, axis=0))
        else:
            given.append(w.real(f"{name}.bias", bias * factor))
    if native:
        beyond = op.stride - op.kernel_size + 2 * op.padding
        return w.emit(
            "ConvTranspose", given, name, strides=[op.stride] * 2, pads=pads, group=op.groups,
            output_padding=[beyond] * 2,
        ), 1  # fmt: skip
    strides = [1 if op.transposed else op.stride] * 2
    return w.emit("Conv", given, name, strides=strides, pads=pads, group=op.groups), shuffle


def shuffled(w: Writer, name: str, tensor: str, factor: int) -> str:
    if factor == 1:
        return tensor
    return w.emit("DepthToSpace", [tensor], name, blocksize=factor, mode="CRD")


def _taken(w: Writer, node: Node, factor: np.ndarray) -> str:
    """What ``node`` reads, times a factor for each channel, in float32."""
    (edge,) = node.inputs
    if edge not in w.graph or not isinstance(w.graph[edge].op, Convolution):
        return w.scaled(node.name, w.edges[edge].name, factor)
    return shuffled(w, node.name, *accumulate(w, w.graph[edge], factor))


def convolution(w: Writer, node: Node) -> Edge | None:
    """Written by its readers, unless one takes the accumulators themselves."""
    readers = w.graph.readers(node.name)
    if node.name != w.graph.output and all(isinstance(r.op, FUSING) for r in readers):
        return None
    return Edge(shuffled(w, node.name, *accumulate(w, node, np.ones(w.ports[node.name].channels))))


def requantize(w: Writer, node: Node) -> Edge:
    op, (edge,) = node.op, node.inputs
    assert isinstance(op, Requantize)
    factor, name = _factor(op.factor), node.name
    plain = op.negative is None and not op.absolute
    narrow = is_narrow(op.lo, op.hi)
    if plain and narrow and edge in w.graph and isinstance(w.graph[edge].op, Convolution):
        tensor, by = accumulate(w, w.graph[edge], factor, fused=True)
        found = w.paired(name, tensor, op.lo, op.hi)
        if by == 1:
            return found
        return w.paired(name, shuffled(w, name, found.name, by), op.lo, op.hi)
    if op.negative is None:
        tensor = _taken(w, node, factor)
        tensor = w.emit("Abs", [tensor], name) if op.absolute else tensor
    else:
        tensor = _taken(w, node, np.ones_like(factor))
        tensor = w.emit("Abs", [tensor], name) if op.absolute else tensor
        # max(x f, 0) + min(x n, 0): what a leaky rectifier of any two factors is
        ends = [
            w.clip(name, w.scaled(name, tensor, f), *bounds)
            for f, bounds in ((factor, (0.0, op.hi)), (_factor(op.negative), (op.lo, 0.0)))
        ]
        tensor = w.emit("Add", ends, name)
    if not narrow:
        w.note(name, "requantize", "it gives more than 8 bits")
    return w.finish(name, tensor, op.lo, op.hi)


def gain(w: Writer, node: Node) -> Edge:
    """At the position that the graph has."""
    op = node.op
    assert isinstance(op, Gain)
    w.note(node.name, "gain", "it gives more than 8 bits")
    return w.finish(node.name, _taken(w, node, np.asarray(op.factors(), np.float64)), op.lo, op.hi)


def compensate(w: Writer, node: Node) -> Edge:
    op = node.op
    assert isinstance(op, Compensate)
    w.note(node.name, "compensate", "compensated rounding: left unrounded")
    tensor = _taken(w, node, _factor(op.factor) * 2.0**-ERROR_BITS)
    for kind, end in zip(("Max", "Min"), op.ends(), strict=True):
        tensor = w.emit(kind, [tensor, w.by_channel(node.name, np.asarray(end))], node.name)
    return Edge(tensor)


def divisive_normalization(w: Writer, node: Node) -> Edge:
    op, name = node.op, node.name
    assert isinstance(op, DivisiveNormalization)
    w.note(name, "gdn", "squares and roots have 16 bits and more", np.asarray(op.gamma).size)
    x = w.clip(name, w.round(name, _taken(w, node, _factor(op.widen))), X_LO, X_HI)
    squares = w.emit(
        "Mul", [w.emit("Mul", [x, x], name), w.real("square", np.array(2.0**-SQUARE_SHIFT))], name
    )
    gamma, beta = (np.asarray(t, np.float64) * 4.0**ROOT_SHIFT for t in (op.gamma, op.beta))
    tensors = [w.real(f"{name}.gamma", gamma[:, :, None, None]), w.real(f"{name}.beta", beta)]
    norm = w.emit("Conv", [w.round(name, squares), *tensors], name)
    root = w.emit("Floor", [w.emit("Sqrt", [norm], name)], name)
    out = w.emit("Mul" if op.inverse else "Div", [x, root], name)
    return w.finish(name, w.scaled(name, out, _factor(op.factor)), op.lo, op.hi)


def pointwise(w: Writer, node: Node) -> Edge:
    op, name = node.op, node.name
    assert isinstance(op, Pointwise) and op.values is not None
    values = np.asarray(op.values)
    w.note(name, op.function, "a table of 12-bit integers")
    index = w.round(name, w.emit("Sub", [w.edges[node.inputs[0]].name, w.real("lo", np.array(op.lo))], name))
    index = w.emit("Cast", [w.clip(name, index, 0, len(values) - 1)], name, to=7)  # INT64
    return Edge(w.emit("Gather", [w.real(f"{name}.values", values), index], name), rounded=True)


def weighted_sum(w: Writer, node: Node) -> Edge:
    op, name = node.op, node.name
    assert isinstance(op, Sum) and op.m is not None
    factors = np.asarray(op.m, np.float64) * np.exp2(-np.asarray(op.shift, np.float64))
    terms = [w.scaled(name, w.edges[e].name, f) for e, f in zip(node.inputs, factors, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = w.emit("Add", [total, term], name)
    w.note(name, "sum", "its terms have 16 bits")
    return w.finish(name, total, op.lo, op.hi)


def product(w: Writer, node: Node) -> Edge:
    op, name = node.op, node.name
    assert isinstance(op, Product)
    found = w.emit("Mul", [w.edges[edge].name for edge in node.inputs], name)
    w.note(name, "product", "its factors have 16 bits")
    return w.finish(name, w.scaled(name, found, _factor(op.factor)), op.lo, op.hi)


def layer_norm(w: Writer, node: Node) -> Edge:
    op, name = node.op, node.name
    assert isinstance(op, LayerNorm)
    channels = len(np.asarray(op.bias))
    w.note(name, "layer_norm", "squares and roots have 16 bits and more")
    x = w.edges[node.inputs[0]].name
    axes = w.constant("axis", np.array([1], np.int64))
    d = w.round(name, w.emit("Sub", [x, w.emit("ReduceMean", [x, axes], name)], name))
    squares = w.emit("ReduceSum", [w.emit("Mul", [d, d], name), axes], name)
    norm = w.emit("Add", [squares, w.real("floor", np.array(float(op.floor)))], name)
    norm = w.emit("Mul", [norm, w.real("root", np.array(4.0**ROOT_SHIFT))], name)
    root = w.emit("Floor", [w.emit("Sqrt", [norm], name)], name)
    factor = _factor(op.factor) * np.asarray(op.sign, np.float64)
    out = w.scaled(name, w.emit("Div", [d, root], name), factor)
    bias = np.asarray(op.bias, np.float64).reshape(channels) * 2.0**-LAYER_BIAS_BITS
    return w.finish(name, w.emit("Add", [out, w.by_channel(name, bias)], name), op.lo, op.hi)


def arrangement(w: Writer, node: Node) -> Edge:
    """Integers only moved: what comes out is rounded if all that goes in is."""
    op, name = node.op, node.name
    sources = [w.edges[edge] for edge in node.inputs]
    names = [s.name for s in sources]
    if isinstance(op, Concatenate):
        out = w.emit("Concat", names, name, axis=1)
    elif isinstance(op, Slice):
        cut = [w.constant("cut", np.array([v], np.int64)) for v in (op.start, op.stop, 1)]
        out = w.emit("Slice", [*names, *cut], name)
    elif isinstance(op, Shuffle):
        out = shuffled(w, name, names[0], op.factor)
    else:
        assert isinstance(op, Unshuffle)
        blocks = w.emit("SpaceToDepth", names, name, blocksize=op.factor)
        # ONNX puts the place in a block before the channel, we put it behind
        channels = w.ports[node.inputs[0]].channels
        order = np.arange(channels * op.factor**2).reshape(op.factor**2, channels).T.flatten()
        out = w.emit("Gather", [blocks, w.constant(name, order.astype(np.int64))], name, axis=1)
    return Edge(out, rounded=all(s.rounded for s in sources))


HANDLERS: dict[type[Operation], Callable[[Writer, Node], Edge | None]] = {
    Convolution: convolution,
    Requantize: requantize,
    Gain: gain,
    Compensate: compensate,
    DivisiveNormalization: divisive_normalization,
    Pointwise: pointwise,
    Sum: weighted_sum,
    Product: product,
    LayerNorm: layer_norm,
    Concatenate: arrangement,
    Slice: arrangement,
    Shuffle: arrangement,
    Unshuffle: arrangement,
}
#: that take a convolution's accumulators with a factor of their own
FUSING = (Requantize, Compensate, DivisiveNormalization)


def write(w: Writer, node: Node) -> None:
    """Raises `UsageError` for an operation that ONNX has no form of."""
    if type(node.op) not in HANDLERS:
        raise UsageError(
            f"{node.name}: {type(node.op).__name__} cannot be exported; the engine 'exact' runs it"
        )
    found = HANDLERS[type(node.op)](w, node)
    if found is not None:
        w.edges[node.name] = found
