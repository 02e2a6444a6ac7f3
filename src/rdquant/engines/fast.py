"""The fast engine: float32 convolutions where they are provably exact, numba for the rest.

A graph is prepared once (`plan`): weights in the layout that convolutions take, factors as the kernels take
them, and a convolution whose only reader turns its accumulators into activations made one step with it.
Between steps there are float32 tensors ``(B, H, W, C)`` that hold integers, float64 where these exceed 24
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
from .accumulate import EXACT, Accumulator
from .cache import per_graph

#: positions handled at a time by the GDN epilogue, so that its planes stay in cache
CHUNK = 8192

Rows = Callable[[np.ndarray], np.ndarray]  #: ``(P, C)`` -> float32 ``(P, C)``
Step = Callable[..., Tensor]


def _kind(port: Port) -> torch.dtype:
    return torch.float32 if max(-port.lo, port.hi) < EXACT else torch.float64


def _rows(t: Tensor) -> np.ndarray:
    return t.reshape(-1, t.shape[-1]).contiguous().numpy()


def _like(out: np.ndarray, t: Tensor) -> Tensor:
    return torch.from_numpy(out).view(t.shape)


# what happens to accumulators


def _requantize(op: Requantize, bias: np.ndarray) -> Rows:
    factor = op.factor.as_float().numpy()
    negative = factor if op.negative is None else op.negative.as_float().numpy()
    negative = -factor if op.absolute else negative
    lo, hi = float(op.lo), float(op.hi)

    def apply(acc: np.ndarray) -> np.ndarray:
        out = np.empty(acc.shape, np.float32)
        kernels.requantize(acc, bias, factor, negative, lo, hi, out)
        return out

    return apply


def _compensate(op: Compensate, bias: np.ndarray) -> Rows:
    factor, feedback = op.factor.as_float().numpy(), op.feedback.double()
    low, high = (end.numpy() for end in op.ends())
    return lambda acc: kernels.compensate_rows(acc, bias, factor, low, high, feedback)


def _normalize(op: DivisiveNormalization, bias: np.ndarray) -> Rows:
    assert op.widen is not None and op.factor is not None
    gamma, beta = op.gamma.double().T.contiguous(), op.beta.double().numpy()
    wide = op.widen.as_float().numpy()
    if int(gamma.sum(0).max()) * 255 < EXACT:  # of a plane of the squares
        gamma = gamma.float()
    factor, m = op.factor.as_float().numpy(), op.factor.m.double().numpy()
    power = torch.exp2(op.factor.shift.double()).numpy()
    lo, hi = float(op.lo), float(op.hi)

    def apply(acc: np.ndarray) -> np.ndarray:
        out = np.empty(acc.shape, np.float32)
        for start in range(0, len(acc), CHUNK):
            rows = slice(start, start + CHUNK)
            x, *planes = kernels.widen(acc[rows], bias, wide)
            high, low = ((torch.from_numpy(plane).to(gamma.dtype) @ gamma).numpy() for plane in planes)
            if op.inverse:
                kernels.denormalize(x, high, low, beta, factor, lo, hi, out[rows])
            else:
                kernels.normalize(x, high, low, beta, m, power, lo, hi, out[rows])
        return out

    return apply


EPILOGUES: dict[type[Operation], Callable[..., Rows]] = {
    Requantize: _requantize,
    Compensate: _compensate,
    DivisiveNormalization: _normalize,
}


def _convolution(conv: Convolution, port: Port, epilogue: Operation | None, out: Port) -> Step:
    accumulate = Accumulator(conv, port)
    if epilogue is None:
        kind, bias = _kind(out), conv.bias.double()
        bias = bias.to(kind)
        return lambda q, valid=False: (accumulate(q, valid) + bias).to(kind)
    apply = EPILOGUES[type(epilogue)](epilogue, conv.bias.double().numpy())

    def run(q: Tensor, valid: bool = False) -> Tensor:
        acc = accumulate(q, valid)
        return _like(apply(_rows(acc)), acc)

    return run


# operations on activations


def _sum(op: Sum, ports: tuple[Port, ...], out: Port) -> Step:
    assert op.m is not None and op.shift is not None
    if len(ports) != 2:
        return _general(op, ports, out)
    m, n = op.m.double().numpy()
    scale = torch.exp2(-op.shift.double()).numpy()

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = np.empty((a[..., 0].numel(), a.shape[-1]), np.float32)
        kernels.add(_rows(a), _rows(b), m, n, scale, float(op.lo), float(op.hi), result)
        return _like(result, a)

    return run


def _product(op: Product, ports: tuple[Port, ...], out: Port) -> Step:
    assert op.factor is not None
    factor = op.factor.as_float().numpy()

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = np.empty((a[..., 0].numel(), a.shape[-1]), np.float32)
        kernels.multiply(_rows(a), _rows(b), factor, float(op.lo), float(op.hi), result)
        return _like(result, a)

    return run


def _table(op: Pointwise, ports: tuple[Port, ...], out: Port) -> Step:
    assert op.values is not None
    values = op.values.float().numpy()

    def run(q: Tensor) -> Tensor:
        rows = _rows(q)
        result = np.empty(rows.shape, np.float32)
        kernels.look_up(rows, values, op.lo, result)
        return _like(result, q)

    return run


def _layer_norm(op: LayerNorm, ports: tuple[Port, ...], out: Port) -> Step:
    assert op.factor is not None and op.sign is not None
    m = (op.factor.m * op.sign).double().numpy()
    power = torch.exp2(op.factor.shift.double()).numpy()
    bias = (2 * op.bias.double() + 2**LAYER_BIAS_BITS).numpy()

    def run(q: Tensor) -> Tensor:
        rows = _rows(q)
        result = np.empty(rows.shape, np.float32)
        kernels.layer_norm(rows, float(op.floor), m, power, bias, float(op.lo), float(op.hi), result)
        return _like(result, q)

    return run


def _attention(op: WindowAttention, ports: tuple[Port, ...], out: Port) -> Step:
    assert op.logit is not None and op.exponential is not None and op.factor is not None
    bias = op.bias.double()[:, relative_positions(op.window)].numpy()
    logit, exponential = op.logit.as_float().numpy(), op.exponential.double().numpy()
    m, power = op.factor.m.double().numpy(), torch.exp2(op.factor.shift.double()).numpy()
    lo, hi = float(op.lo), float(op.hi)

    def run(x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        op.check_sides(h, w)
        result = np.empty((b, h, w, c // 3), np.float32)
        whole = x.contiguous().numpy()
        kernels.attend(whole, op.window, op.shift, bias, logit, exponential, m, power, lo, hi, result)
        return torch.from_numpy(result)

    return run


def _shuffle(op: Shuffle, ports: tuple[Port, ...], out: Port) -> Step:
    r = op.factor

    def run(q: Tensor) -> Tensor:
        b, h, w, c = q.shape
        parts = q.reshape(b, h, w, c // r**2, r, r).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(b, h * r, w * r, c // r**2)

    return run


def _unshuffle(op: Unshuffle, ports: tuple[Port, ...], out: Port) -> Step:
    r = op.factor

    def run(q: Tensor) -> Tensor:
        b, h, w, c = q.shape
        parts = q.reshape(b, h // r, r, w // r, r, c).permute(0, 1, 3, 5, 2, 4)
        return parts.reshape(b, h // r, w // r, c * r**2)

    return run


def _general(op: Operation, ports: tuple[Port, ...], out: Port) -> Step:
    """Any operation, by its reference."""
    kind = _kind(out)

    def run(*q: Tensor) -> Tensor:
        return op.exact(*(t.double().permute(0, 3, 1, 2) for t in q)).permute(0, 2, 3, 1).to(kind)

    return run


def _gain(op: Gain, ports: tuple[Port, ...], out: Port) -> Step:
    same = Requantize(op.factor(), None, op.lo, op.hi)
    return _alone(_requantize(same, np.zeros(out.channels)))


STEPS: dict[type[Operation], Callable[..., Step]] = {
    Sum: _sum,
    Product: _product,
    Pointwise: _table,
    LayerNorm: _layer_norm,
    WindowAttention: _attention,
    Gain: _gain,
    Concatenate: lambda op, ports, out: lambda *q: torch.cat(q, 3),
    Slice: lambda op, ports, out: lambda q: q[..., op.start : op.stop],
    Shuffle: _shuffle,
    Unshuffle: _unshuffle,
}


@dataclass(frozen=True)
class _Prepared:
    name: str
    run: Step
    inputs: tuple[str, ...]
    done: tuple[str, ...]
    """What nothing needs any more afterwards."""
    pads: bool


class Plan:
    """A graph that is ready to run. Raises `rdquant.errors.BadModel` unless its bounds hold."""

    def __init__(self, graph: Graph) -> None:
        ports = graph.ports()
        graph = graph.trimmed()
        self._inputs = dict(graph.inputs)
        self._output = graph.output
        steps: list[tuple[str, Step, tuple[str, ...], bool]] = []
        fused: set[str] = set()
        for node in graph.nodes:
            if node.name in fused:
                continue
            given, name, run = tuple(ports[edge] for edge in node.inputs), node.name, None
            if isinstance(node.op, Convolution):
                after = _epilogue_of(graph, node)
                name = node.name if after is None else after.name
                fused.add(name)
                run = _convolution(node.op, given[0], after.op if after else None, ports[node.name])
            elif type(node.op) in EPILOGUES:
                apply = EPILOGUES[type(node.op)](node.op, np.zeros(given[0].channels))
                run = _alone(apply)
            else:
                run = STEPS.get(type(node.op), _general)(node.op, given, ports[node.name])
            steps.append((name, run, node.inputs, isinstance(node.op, Convolution)))
        last = {edge: i for i, (_, _, inputs, _) in enumerate(steps) for edge in inputs}
        last[self._output] = len(steps)
        self._steps = [
            _Prepared(name, run, inputs, tuple(e for e in set(inputs) if last[e] == i), pads)
            for i, (name, run, inputs, pads) in enumerate(steps)
        ]

    @torch.no_grad()
    def run(self, *given: Tensor, valid: bool = False) -> Tensor:
        """``(B, C, H, W)`` each, of any type -> the output's integers, on the CPU: `rdquant.engines.run`."""
        values: dict[str, Tensor] = {}
        for (name, port), t in zip(self._inputs.items(), given, strict=True):
            q = t.to("cpu").permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format)
            values[name] = q.clamp(port.lo, port.hi)
        for step in self._steps:
            inputs = [values[edge] for edge in step.inputs]
            values[step.name] = step.run(*inputs, valid=valid) if step.pads else step.run(*inputs)
            for edge in step.done:
                del values[edge]
        return values[self._output].permute(0, 3, 1, 2)


def _alone(apply: Rows) -> Step:
    return lambda q: _like(apply(_rows(q)), q)


def _epilogue_of(graph: Graph, node: Node) -> Node | None:
    """The only reader of a convolution, if it takes accumulators."""
    readers = graph.readers(node.name)
    if len(readers) != 1 or node.name == graph.output or type(readers[0].op) not in EPILOGUES:
        return None
    return readers[0]


@per_graph
def plan(graph: Graph) -> Plan:
    """The graph made ready, once."""
    return Plan(graph)
