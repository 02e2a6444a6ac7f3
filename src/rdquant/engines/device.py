"""The contract on a PyTorch device, such as a GPU: the very integers of the reference.

A convolution is one matrix product for each tap of its kernel. Whatever order a device adds in, sums of
integers are exact while all magnitudes together stay below 2^24 in float32, or 2^53 in float64; convolutions
of libraries may transform (Winograd, FFT) and are not used. All else is float64, operation after operation as
`rdquant.graph.arithmetic` has it. What has no form here (attention, layer normalization) goes through the
reference, on the host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import UsageError
from ..graph import Graph, Node, Port
from ..graph.arithmetic import (
    ERROR_BITS,
    ERROR_LIMIT,
    FEEDBACK_BITS,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    V_LIMIT,
    X_HI,
    X_LO,
    Multiplier,
)
from ..graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
    Gain,
    Operation,
    Pointwise,
    Product,
    Requantize,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
)
from ..lazy import F, torch
from .cache import per_graph

#: magnitudes whose sums float32 holds
_SINGLE = 2**24

Step = Callable[..., "torch.Tensor"]


def open_device(name: str) -> torch.device:
    """A device by PyTorch's name (``cuda``, ``cuda:1``, ``cpu``). Raises `UsageError` if it is not there."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"no device {name!r} for exact integers: {str(error).splitlines()[0]}") from None
    return device


class _Steps:
    """What each kind of operation is on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def _tensor(self, values: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(self._device, dtype or torch.float64)

    def _by_channel(self, values: np.ndarray) -> torch.Tensor:
        return self._tensor(values).reshape(1, -1, 1, 1)

    def of(self, op: Operation, ports: tuple[Port, ...]) -> Step:
        if isinstance(op, Convolution):
            return self._convolution(op, ports[0])
        make = getattr(self, f"_{op.kind}", None)
        if make is not None:
            found: Step = make(op)
            return found
        return lambda *q: self._tensor(op.exact(*(t.cpu().numpy() for t in q)))

    def _convolution(self, op: Convolution, port: Port) -> Step:
        kind = torch.float32 if op.accumulator_bound(port) < _SINGLE else torch.float64
        s, k, p, groups = op.stride, op.kernel_size, op.padding, op.groups
        weight = op.by_output().astype(np.float64)
        taps = self._tensor(weight.reshape(groups, -1, *weight.shape[1:]).transpose(3, 4, 0, 1, 2), kind)
        bias = self._by_channel(op.bias)

        def run(q: torch.Tensor) -> torch.Tensor:
            b, _, h, w = q.shape
            x = q.to(kind)
            if op.transposed:
                rows, columns = h * s, w * s
                room = max((h - 1) * s + k, rows + p), max((w - 1) * s + k, columns + p)
            else:
                x = F.pad(x, (p, p, p, p))
                rows, columns = room = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
            x = x.reshape(b, groups, -1, *x.shape[2:])
            out = torch.zeros((b, groups, taps.shape[3], *room), dtype=kind, device=self._device)
            for i in range(k):
                for j in range(k):
                    if op.transposed:
                        taken, to = x, out[..., i : i + (h - 1) * s + 1 : s, j : j + (w - 1) * s + 1 : s]
                    else:
                        down = slice(i, i + (rows - 1) * s + 1, s), slice(j, j + (columns - 1) * s + 1, s)
                        taken, to = x[..., down[0], down[1]], out
                    to += (taps[i, j] @ taken.flatten(3)).reshape(to.shape)
            if op.transposed:
                out = out[..., p : p + rows, p : p + columns]
            return out.flatten(1, 2).double() + bias

        return run

    def _scaled(self, factor: Multiplier, lo: int, hi: int, negative: Multiplier | None = None) -> Step:
        up = self._by_channel(factor.as_float())
        down = None if negative is None else self._by_channel(negative.as_float())

        def run(acc: torch.Tensor) -> torch.Tensor:
            out = acc * up if down is None else torch.where(acc < 0, acc * down, acc * up)
            return torch.floor(out + 0.5).clamp(lo, hi)

        return run

    def _requantize(self, op: Requantize) -> Step:
        scaled = self._scaled(op.factor, op.lo, op.hi, op.negative)
        return (lambda q: scaled(q.abs())) if op.absolute else scaled

    def _gain(self, op: Gain) -> Step:
        return self._scaled(op.factor(), op.lo, op.hi)

    def _gdn(self, op: DivisiveNormalization) -> Step:
        assert op.widen is not None and op.factor is not None
        widen = self._scaled(op.widen, X_LO, X_HI)
        gamma, beta = self._tensor(op.gamma), self._by_channel(op.beta)
        m, power = self._by_channel(op.factor.m), self._by_channel(np.ldexp(1.0, op.factor.shift))
        last = self._scaled(op.factor, op.lo, op.hi)

        def run(acc: torch.Tensor) -> torch.Tensor:
            x = widen(acc)
            squares = torch.floor(x * x * 2.0**-SQUARE_SHIFT + 0.5).clamp(max=65535)
            norm = (gamma @ squares.flatten(2)).reshape(x.shape) + beta
            root = torch.floor(torch.sqrt(norm * 4.0**ROOT_SHIFT))
            if op.inverse:
                return last(x * root)
            d = root * power
            return torch.floor((2 * x * m + d) / (2 * d)).clamp(op.lo, op.hi)

        return run

    def _compensate(self, op: Compensate) -> Step:
        enter = self._scaled(op.factor, -V_LIMIT, V_LIMIT)
        k = self._tensor(op.feedback)
        low, high = (ends.tolist() for ends in op.ends())

        def run(acc: torch.Tensor) -> torch.Tensor:
            u = enter(acc) * 2.0**FEEDBACK_BITS
            out = torch.empty_like(u)
            for i in range(u.shape[1]):
                q = torch.floor(u[:, i] * 2.0 ** -(ERROR_BITS + FEEDBACK_BITS) + 0.5).clamp(low[i], high[i])
                error = torch.floor(u[:, i] * 2.0**-FEEDBACK_BITS + 0.5) - q * 2.0**ERROR_BITS
                out[:, i] = q
                passed = error.clamp(-ERROR_LIMIT, ERROR_LIMIT)[:, None] * k[i, i + 1 :].reshape(1, -1, 1, 1)
                u[:, i + 1 :] += passed
            return out

        return run

    def _sum(self, op: Sum) -> Step:
        assert op.m is not None and op.shift is not None
        factors = [self._by_channel(row) for row in op.m]
        scale = self._by_channel(np.ldexp(1.0, -op.shift))

        def run(*q: torch.Tensor) -> torch.Tensor:
            total = sum((t * m for t, m in zip(q[1:], factors[1:], strict=True)), q[0] * factors[0])
            return torch.floor(total * scale + 0.5).clamp(op.lo, op.hi)

        return run

    def _product(self, op: Product) -> Step:
        assert op.factor is not None
        scaled = self._scaled(op.factor, op.lo, op.hi)
        return lambda a, b: scaled(a * b)

    def _table(self, op: Pointwise) -> Step:
        assert op.values is not None
        values = self._tensor(op.values)
        return lambda q: values[(q - op.lo).long()]

    def _concatenate(self, op: Concatenate) -> Step:
        return lambda *q: torch.cat(q, 1)

    def _slice(self, op: Slice) -> Step:
        return lambda q: q[:, op.start : op.stop]

    def _shuffle(self, op: Shuffle) -> Step:
        return lambda q: F.pixel_shuffle(q, op.factor)

    def _unshuffle(self, op: Unshuffle) -> Step:
        return lambda q: F.pixel_unshuffle(q, op.factor)


class DevicePlan:
    """A graph whose constants are on a device. Raises `rdquant.errors.BadModel` unless its bounds hold."""

    def __init__(self, graph: Graph, device: torch.device, valid: bool) -> None:
        ports = graph.ports()
        self._graph, self._device = (graph.valid() if valid else graph).trimmed(), device
        steps = _Steps(device)
        self._steps = {
            node.name: steps.of(node.op, tuple(ports[edge] for edge in node.inputs))
            for node in self._graph.nodes
        }

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """`rdquant.engines.run`, float64."""

        def apply(node: Node, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return self._steps[node.name](*given)

        ports = self._graph.inputs.values()
        given = tuple(
            torch.as_tensor(t.astype(np.float64).clip(p.lo, p.hi)).to(self._device)
            for t, p in zip(inputs, ports, strict=True)
        )
        with torch.inference_mode():
            found: np.ndarray = self._graph.evaluate(given, apply).cpu().numpy()
        return found


@per_graph
def _plans(graph: Graph) -> dict[tuple[str, bool], DevicePlan]:
    return {}


def plan(graph: Graph, device: str, valid: bool = False) -> DevicePlan:
    """The graph made ready for a device, once."""
    plans = _plans(graph)
    if (device, valid) not in plans:
        plans[device, valid] = DevicePlan(graph, open_device(device), valid)
    return plans[device, valid]
