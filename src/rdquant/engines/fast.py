"""The fast engine: products of 8 and 16-bit integers, each tile finished while it is in cache.

A graph is prepared once (`plan`): weights in the layout that kernels take (`layer`), and a convolution
whose only reader turns its accumulators into activations made one step with it (`epilogues`). Between steps
there are arrays ``(B, H, W, C)`` of as few bytes as hold their integers (`buffers.Form`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from ..graph import Graph, Node, Port, kernels
from ..graph.arithmetic import LAYER_BIAS_BITS
from ..graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
    Gain,
    LayerNorm,
    Operation,
    Pointwise,
    Product,
    Requantize,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
    WindowAttention,
)
from ..graph.operations.attention import relative_positions
from ..threads import share
from .buffers import Form, empty
from .cache import per_graph
from .chain import Prepared, Step, can_join, chained
from .epilogues import finish_rows, prepared
from .layer import Layer
from .products import LANES

#: elements that one thread is quicker with
_FEW = 2**14
EPILOGUES = (Requantize, Compensate, DivisiveNormalization)


def _form(graph: Graph, ports: dict[str, Port], name: str) -> Form:
    """How an edge is stored: bytes where only products read it, and each channel's range has 8 bits."""
    port = ports[name]
    low, high = np.full(port.channels, port.lo), np.full(port.channels, port.hi)
    if name not in graph.inputs and isinstance(op := graph[name].op, Compensate):
        low, high = op.ends()
    readers = [node.op for node in graph.readers(name)]
    multiplied = all(isinstance(op, Convolution) and op.groups == 1 for op in readers)
    if (high - low).max() < 256 and multiplied and (name != graph.output or not low.any()):
        return Form(1, low.astype(np.int32))
    size = next(n for n in (2, 4, 8) if max(-port.lo - 1, port.hi) < 2 ** (8 * n - 1))
    return Form(size, np.zeros(port.channels, np.int32))


class _Convolution:
    """A convolution and what follows it; patches of one position each as matrix products."""

    def __init__(self, conv: Convolution, *rest: object) -> None:
        self._conv, self._rest = conv, rest
        self.whole = Layer(conv, *rest)  # type: ignore[arg-type]

    @functools.cached_property
    def _patches(self) -> tuple[slice, Layer]:
        """The kernel as one matrix over whole patches, and the run of its taps that are not all zero."""
        conv, (port, form, after, out) = self._conv, self._rest
        o, i, k, _ = conv.weight.shape
        taps = conv.weight.transpose(0, 2, 3, 1).reshape(o, k * k, i)
        used = np.flatnonzero(taps.any((0, 2))).tolist() or [0]
        run = slice(used[0], used[-1] + 1)
        weight = np.ascontiguousarray(taps[:, run]).reshape(o, -1, 1, 1)
        matrix = dataclasses.replace(conv, weight=weight, padding=0, stride=1)
        form = Form(form.size, np.tile(form.zero, run.stop - run.start))  # type: ignore[attr-defined]
        layer = Layer(matrix, port, form, after, out)  # type: ignore[arg-type]
        layer.then = self.whole.then
        return run, layer

    def __call__(self, q: np.ndarray, valid: bool = False) -> np.ndarray:
        conv = self._conv
        k = conv.kernel_size
        if valid and k > 1 and q.shape[1] == q.shape[2] == k and conv.groups == 1 and not conv.transposed:
            run, layer = self._patches
            patches = q.reshape(len(q), k * k, -1)[:, run]
            return layer(np.ascontiguousarray(patches).reshape(len(q), 1, 1, -1))
        return self.whole(q, valid)


# operations on activations, of any forms to one form


def _rows(q: np.ndarray) -> np.ndarray:
    return q.reshape(-1, q.shape[-1])


def _by_rows(
    kernel: Callable[..., object], given: tuple[np.ndarray, ...], args: tuple, form: Form
) -> np.ndarray:
    """``kernel(*rows of given, *args, zero, rows of the result)``, all of the first one's shape."""
    result = empty(given[0].shape, form.dtype)
    rows, out = [_rows(t) for t in given], _rows(result)

    def run(first: int, last: int) -> None:
        kernel(*(t[first:last] for t in rows), *args, form.zero, out[first:last])

    share(len(out), run, _FEW // out.shape[1])
    return result


def _rescaling(op: Requantize) -> tuple[np.ndarray, np.ndarray]:
    """Factors of what is not negative, and of what is."""
    up = op.factor.as_float()
    return up, -up if op.absolute else up if op.negative is None else op.negative.as_float()


def _adding(op: Sum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors of two inputs, and of their sum."""
    assert op.m is not None and op.shift is not None
    m, n = op.m.astype(np.float64)
    return m, n, np.ldexp(1.0, -op.shift)


def _sum(op: Sum, form: Form) -> Step:
    assert op.m is not None and op.shift is not None
    if len(op.m) != 2:
        return _general(op, form)
    args = *_adding(op), float(op.lo), float(op.hi)
    return lambda a, b: _by_rows(kernels.add, (a, b), args, form)


def _product(op: Product, form: Form) -> Step:
    assert op.factor is not None
    args = op.factor.as_float(), float(op.lo), float(op.hi)
    return lambda a, b: _by_rows(kernels.multiply, (a, b), args, form)


def _requantize(op: Requantize, form: Form) -> Step:
    args = *_rescaling(op), float(op.lo), float(op.hi)
    return lambda q: _by_rows(kernels.rescale, (q,), args, form)


def _table(op: Pointwise, form: Form) -> Step:
    args = op.values, op.lo
    return lambda q: _by_rows(kernels.look_up, (q,), args, form)


def _layer_norm(op: LayerNorm, form: Form) -> Step:
    assert op.factor is not None and op.sign is not None
    m = (op.factor.m * op.sign).astype(np.float64)
    power = np.ldexp(1.0, op.factor.shift)
    bias = 2 * op.bias.astype(np.float64) + 2**LAYER_BIAS_BITS
    args = float(op.floor), m, power, bias, float(op.lo), float(op.hi)
    return lambda q: _by_rows(kernels.layer_norm, (q,), args, form)


def _attention(op: WindowAttention, form: Form) -> Step:
    assert op.logit is not None and op.exponential is not None and op.factor is not None
    bias = op.bias.astype(np.float64)[:, relative_positions(op.window)]
    logit, exponential = op.logit.as_float(), op.exponential.astype(np.float64)
    m, power = op.factor.m.astype(np.float64), np.ldexp(1.0, op.factor.shift)
    args = bias, logit, exponential, m, power, float(op.lo), float(op.hi), form.zero

    def run(x: np.ndarray) -> np.ndarray:
        b, h, w, c = x.shape
        op.check_sides(h, w)
        result = empty((b, h, w, c // 3), form.dtype)
        share(
            b * (h // op.window) * (w // op.window),
            lambda i, j: kernels.attend(i, j, x, op.window, op.shift, *args, result),
        )
        return result

    return run


def _moved(
    q: np.ndarray, apart: tuple[int, ...], order: tuple[int, ...], shape: tuple[int, ...], form: Form
) -> np.ndarray:
    """``q`` as ``apart``, its axes in another order, as ``shape``."""
    shifted = form.zero.any()
    parts = (q if shifted else q.astype(form.dtype, copy=False)).reshape(apart).transpose(order)
    result = empty(parts.shape, form.dtype)
    # what comes last are channels, or of an unshuffle these and their places
    zero = form.zero.reshape(parts.shape[-1:] if parts.shape[-1] == shape[-1] else parts.shape[-3:])
    few = parts.shape[-1] < LANES  # then numpy's inner loop is to be over another axis
    columns = [np.s_[..., c] for c in range(parts.shape[-1])] if few else [np.s_[...]]

    def run(first: int, last: int) -> None:
        for column in columns:
            here, into = parts[:, first:last][column], result[:, first:last][column]
            if shifted:
                np.subtract(here, zero[column], out=into, casting="unsafe")
            else:
                into[...] = here

    share(parts.shape[1], run, max(1, _FEW * parts.shape[1] // parts.size))
    return result.reshape(shape)


def _shuffle(op: Shuffle, form: Form) -> Step:
    r = op.factor

    def run(q: np.ndarray) -> np.ndarray:
        b, h, w, c = q.shape
        apart, shape = (b, h, w, c // r**2, r, r), (b, h * r, w * r, c // r**2)
        return _moved(q, apart, (0, 1, 4, 2, 5, 3), shape, form)

    return run


def _unshuffle(op: Unshuffle, form: Form) -> Step:
    r = op.factor

    def run(q: np.ndarray) -> np.ndarray:
        b, h, w, c = q.shape
        apart, shape = (b, h // r, r, w // r, r, c), (b, h // r, w // r, c * r**2)
        return _moved(q, apart, (0, 1, 3, 5, 2, 4), shape, form)

    return run


def _general(op: Operation, form: Form) -> Step:
    """Any operation, by its reference."""

    def run(*q: np.ndarray) -> np.ndarray:
        found = op.exact(*(np.moveaxis(a, 3, 1).astype(np.float64) for a in q))
        return form.store(np.moveaxis(found, 1, 3))

    return run


def _finished(op: Compensate | DivisiveNormalization, form: Form) -> Step:
    """What takes accumulators and mixes their channels, alone."""
    assert op.factor is not None
    epilogue = prepared(op, len(op.factor.m))
    return lambda q: form.store(finish_rows(_rows(q), epilogue).reshape(q.shape))


STEPS: dict[type[Operation], Callable[..., Step]] = {
    Requantize: _requantize,
    Compensate: _finished,
    DivisiveNormalization: _finished,
    Sum: _sum,
    Product: _product,
    Pointwise: _table,
    LayerNorm: _layer_norm,
    WindowAttention: _attention,
    Gain: lambda op, form: _requantize(Requantize(op.factor(), None, op.lo, op.hi), form),
    Concatenate: lambda op, form: lambda *q: form.store(np.concatenate(q, 3)),
    Slice: lambda op, form: lambda q: form.store(q[..., op.start : op.stop]),
    Shuffle: _shuffle,
    Unshuffle: _unshuffle,
}


class Plan:
    """A graph that is ready to run. Raises `rdquant.errors.BadModel` unless its bounds hold."""

    def __init__(self, graph: Graph) -> None:
        ports = graph.ports()
        graph = graph.trimmed()
        forms = {name: _form(graph, ports, name) for name in (*graph.inputs, *(n.name for n in graph.nodes))}
        self._inputs = {name: (port, forms[name]) for name, port in graph.inputs.items()}
        self._output = graph.output
        at = graph.resolutions()
        found: list[tuple[str, Step, Node]] = []
        run: Step
        fused: set[str] = set()
        for node in graph.nodes:
            if node.name in fused:
                continue
            if isinstance(node.op, Convolution):
                name, run = _convolution(graph, node, ports, forms)
                fused.add(name)
                behind = [r for r in graph.readers(name) if name != self._output]
                if len(behind) == 1 and isinstance(behind[0].op, Convolution) and behind[0].op.is_matrix:
                    last, then = _convolution(graph, behind[0], ports, forms)
                    if run.whole.can_go_on(then.whole):
                        run.whole.then, name = then.whole, last
                        fused |= {behind[0].name, last}
            else:
                name, run = node.name, STEPS.get(type(node.op), _general)(node.op, forms[node.name])
            found.append((name, run, node))
        last_use = {edge: i for i, (_, _, node) in enumerate(found) for edge in node.inputs}
        last_use[self._output] = len(found)
        steps = []
        for i, (name, run, node) in enumerate(found):
            done = tuple(e for e in set(node.inputs) if last_use[e] == i)
            layer = run.whole if isinstance(run, _Convolution) else None
            joins = can_join(node.op, layer, [forms[e] for e in node.inputs], forms[name])
            place = at[name] if joins else None
            steps.append(Prepared(name, run, node.inputs, done, layer is not None, node.op, layer, place))
        self._steps = chained(steps, {name: (ports[name].channels, forms[name]) for name in forms})

    def run(self, *given: np.ndarray, valid: bool = False) -> np.ndarray:
        """`rdquant.engines.run`: in integers of as few bytes as hold what can come out."""
        values: dict[str, np.ndarray] = {}
        for (name, (port, form)), t in zip(self._inputs.items(), given, strict=True):
            (b, c, h, w), t = t.shape, _clipped(t, port)
            there = t.transpose(0, 2, 3, 1)
            # kernels are compiled once more for arrays that nobody may write to
            ready = there.flags.carray and t.dtype == form.dtype and not form.zero.any()
            values[name] = there if ready else _moved(t, t.shape, (0, 2, 3, 1), (b, h, w, c), form)
        for step in self._steps:
            step(values, valid)
        found = values[self._output].transpose(0, 3, 1, 2)
        return found.copy("K") if any(np.may_share_memory(found, t) for t in given) else found


def _clipped(values: np.ndarray, port: Port) -> np.ndarray:
    """To the range of an input, where its type alone does not keep them there."""
    lo, hi = port.lo, port.hi
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        if lo <= limits.min and limits.max <= hi:
            return values
        lo, hi = max(lo, int(limits.min)), min(hi, int(limits.max))
    return values.clip(lo, hi)


def _convolution(
    graph: Graph, node: Node, ports: dict[str, Port], forms: dict[str, Form]
) -> tuple[str, _Convolution]:
    """It, with what takes its accumulators, and the edge that it makes."""
    assert isinstance(node.op, Convolution)
    (source,) = node.inputs
    after = _epilogue_of(graph, node, forms[source])
    name = node.name if after is None else after.name
    return name, _Convolution(node.op, ports[source], forms[source], after.op if after else None, forms[name])


def _epilogue_of(graph: Graph, node: Node, given: Form) -> Node | None:
    """The only reader of a convolution, if it takes accumulators (and mixes channels: of dense ones)."""
    assert isinstance(node.op, Convolution)
    readers = graph.readers(node.name)
    kinds = EPILOGUES if node.op.groups == 1 and given.size <= 2 else Requantize
    if len(readers) != 1 or node.name == graph.output or not isinstance(readers[0].op, kinds):
        return None
    return readers[0]


@per_graph
def plan(graph: Graph) -> Plan:
    """The graph made ready, once."""
    return Plan(graph)
