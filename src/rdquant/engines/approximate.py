"""The approximate synthesis: an integer graph in float32, nothing rounded on the way.

For gradients, and for machines on which the exact engine is slow. Symbols are decoded
exactly all the same. Factors go into the weights, linear maps of a position's channels (mixing) into the
convolution behind them; ranges are kept. On another machine the result may be another float next to a
rounding tie.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Graph, Node, Operation, Rounding
from ..graph.arithmetic import ERROR_BITS, ROOT_SHIFT, SQUARE_SHIFT
from ..graph.operations import Compensate, Convolution, DivisiveNormalization, Requantize
from .strips import in_strips


class _Layer(Operation):
    """A convolution and what follows it; ``before``: a matrix ``(I, J)`` that its input goes through."""

    def __init__(self, conv: Convolution, after: Operation | None, before: Tensor | None) -> None:
        self.stride, self.padding, self.transposed, self.groups = (
            conv.stride, conv.padding, conv.transposed, conv.groups
        )  # fmt: skip
        scale = _scale(after, conv.out_channels)
        weight = torch.from_numpy(conv.by_output()) * scale[:, None, None, None]
        if before is not None:
            weight = torch.einsum("oikl,ij->ojkl", weight, before)
        self.beyond = conv.stride - conv.kernel_size + 2 * conv.padding
        by_output = dataclasses.replace(conv, weight=weight).stored_as(weight) if conv.transposed else weight
        self.weight = by_output.float().contiguous(memory_format=torch.channels_last)
        self.bias = (torch.from_numpy(conv.bias) * scale).float()
        self.after = after
        if isinstance(after, DivisiveNormalization):
            assert after.factor is not None
            # the factor behind the root goes into what the root is taken of
            root = 2.0**ROOT_SHIFT
            factor = torch.from_numpy(after.factor.as_float()) * (root if after.inverse else 1 / root)
            inside = factor ** (2 if after.inverse else -2)
            gamma = torch.from_numpy(after.gamma).double() * 2.0**-SQUARE_SHIFT * inside[:, None]
            self.gamma = gamma[:, :, None, None].float()
            self.beta = (torch.from_numpy(after.beta) * inside).float()
        elif isinstance(after, Requantize) and after.negative is not None:
            slope = after.negative.as_float() / after.factor.as_float().clip(min=2.0**-46)
            self.slope = torch.from_numpy(slope).float()
            self.leak = float(self.slope.mean()) if np.ptp(slope) < 1e-4 else None

    def real(self, *x: Tensor) -> Tensor:
        if self.transposed:
            out = F.conv_transpose2d(
                x[0], self.weight, self.bias, self.stride, self.padding, self.beyond, self.groups
            )
        else:
            out = F.conv2d(x[0], self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        after = self.after
        if isinstance(after, DivisiveNormalization):
            norm = F.conv2d(out * out, self.gamma, self.beta)
            out = out * (norm.sqrt() if after.inverse else norm.rsqrt())
        elif isinstance(after, Requantize) and after.negative is not None:
            # the gradient of prelu is slower
            out = F.prelu(out, self.slope) if self.leak is None else F.leaky_relu(out, self.leak)
        if isinstance(after, (DivisiveNormalization, Requantize)):
            out = F.hardtanh(out, after.lo, after.hi)  # clamp, whose gradient takes four passes
        return out


class _Relaxed(Operation):
    """Any other operation."""

    def __init__(self, op: Operation) -> None:
        self.op = op

    def real(self, *x: Tensor) -> Tensor:
        return self.op.relaxed(*x, rounding=Rounding.CLIPPED)


def _scale(after: Operation | None, channels: int) -> Tensor:
    """From accumulators to what the nonlinearity takes, ``(O,)`` float64."""
    if isinstance(after, DivisiveNormalization):
        assert after.widen is not None
        return torch.from_numpy(after.widen.as_float())
    if isinstance(after, Compensate):
        return torch.from_numpy(after.factor.as_float()) * 2.0**-ERROR_BITS
    if isinstance(after, Requantize):
        return torch.from_numpy(after.factor.as_float())
    return torch.ones(channels, dtype=torch.float64)


def _linear(op: Operation) -> bool:
    """Whether this is a factor for each channel and nothing else, up to rounding and clipping."""
    plain = isinstance(op, Requantize) and op.negative is None and not op.absolute and op.lo < 0
    return plain or isinstance(op, Compensate)


class Approximate:
    """An integer graph of one input, or several, without roundings between its steps."""

    def __init__(self, graph: Graph) -> None:
        self._whole = graph
        self._end = graph.check()
        graph = graph.trimmed()
        nodes: list[Node] = []
        fused: set[str] = set()
        #: linear maps that are not applied yet: edge -> what it is a map of, and its matrix
        pending: dict[str, tuple[str, Tensor]] = {}
        for node in graph.nodes:
            if node.name in fused:
                continue
            source, before = pending.get(node.inputs[0], (node.inputs[0], None))
            conv = node.op if isinstance(node.op, Convolution) else None
            after = self._after(graph, node) if conv is not None else node
            if after is not None and self._folds(graph, after, conv):
                matrix = torch.diag(_scale(after.op, graph.channels()[after.name]))
                if conv is not None:
                    matrix = matrix @ torch.from_numpy(conv.by_output()[:, :, 0, 0]).double()
                pending[after.name] = (source, matrix if before is None else matrix @ before)
            elif conv is not None:
                name = node.name if after is None else after.name
                nodes.append(Node(name, _Layer(conv, after.op if after else None, before), (source,)))
            else:
                nodes.append(Node(node.name, _Relaxed(node.op), node.inputs))
            if after is not None:
                fused.add(after.name)
        self.graph = dataclasses.replace(graph, nodes=tuple(nodes))

    @staticmethod
    def _after(graph: Graph, node: Node) -> Node | None:
        """What a convolution is one step with."""
        readers = graph.readers(node.name)
        if len(readers) != 1 or node.name == graph.output:
            return None
        op = readers[0].op
        takes = isinstance(op, (DivisiveNormalization, Compensate))
        return readers[0] if takes or (isinstance(op, Requantize) and not op.absolute) else None

    @staticmethod
    def _folds(graph: Graph, end: Node, conv: Convolution | None) -> bool:
        """Whether a factor, or a matrix and its factor, can go into the convolution behind it."""
        readers = graph.readers(end.name)
        if len(readers) != 1 or end.name == graph.output or not _linear(end.op):
            return False
        behind = readers[0].op
        if not isinstance(behind, Convolution) or behind.groups != 1:
            return False
        return conv is None or (
            conv.is_matrix and not bool(conv.bias.any()) and conv.in_channels <= conv.out_channels
        )

    def run(self, *q: np.ndarray) -> np.ndarray:
        """``(B, C, H, W)`` each, holding integers -> the output's integers, float32."""
        given = tuple(
            t.clip(p.lo, p.hi).astype(np.float32) for t, p in zip(q, self.graph.inputs.values(), strict=True)
        )
        return in_strips(self._whole, given, self._run)

    @torch.no_grad()
    def _run(self, *x: np.ndarray) -> np.ndarray:
        out = self.relaxed(*(torch.from_numpy(t) for t in x))
        return torch.floor(out + 0.5).clamp_(self._end.lo, self._end.hi).numpy()

    def relaxed(self, *x: Tensor) -> Tensor:
        """``(B, C, H, W)`` float32 each -> the output's values, not rounded. Differentiable."""
        return self.graph.real(*(t.contiguous(memory_format=torch.channels_last) for t in x))
