"""Activations centred in their range, at no cost: what is taken off a channel goes into biases.

Integers of few bits must reach 0, and channels share how these are split between signs; a channel of a
residual stream that lives in 3..9 then leaves most of its integers unused. Where all that reads an edge are
matrix products without padding, and sums that a convolution's bias can put right again, the middle of what
was seen is taken off each channel, and the network stays the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ..codec import Codec
from ..graph import Graph, Node
from ..graph.operations import Convolution, Sum
from .mixed import is_mixing

#: lowest and highest by edge, see `rdquant.passes.calibration.extremes`
Extremes = Mapping[str, tuple[Tensor, Tensor]]


def centred(codec: Codec, seen: Extremes) -> Codec:
    """The same float codec with edges centred."""
    networks = {name: _centred(graph, seen) for name, graph in codec.networks.items()}
    return dataclasses.replace(codec, networks=networks)


def centrable(graph: Graph) -> list[str]:
    """The edges that can be centred and gain by it: some product reads them."""
    return [
        node.name
        for node in graph.nodes
        if _movable(graph, node)
        and all(_absorbs(graph, r) for r in graph.readers(node.name))
        and any(isinstance(r.op, Convolution) for r in graph.readers(node.name))
    ]


def _movable(graph: Graph, node: Node) -> bool:
    """Whether a constant can be taken off what a node gives."""
    if node.name == graph.output or is_mixing(node.name):
        return False
    return isinstance(node.op, Convolution) or _branch(graph, node) is not None


def _branch(graph: Graph, node: Node) -> int | None:
    """Which input of a sum is a convolution that nothing else reads: its bias is the sum's."""
    if not isinstance(node.op, Sum):
        return None
    for i, edge in enumerate(node.inputs):
        inner = edge not in graph.inputs and edge != graph.output and not is_mixing(edge)
        if inner and isinstance(graph[edge].op, Convolution) and len(graph.readers(edge)) == 1:
            return i
    return None


def _absorbs(graph: Graph, reader: Node) -> bool:
    """Whether a constant on what ``reader`` reads can be taken back in its bias."""
    op = reader.op
    if isinstance(op, Convolution):
        return op.kernel_size == 1 and op.padding == 0 and not op.transposed
    return _branch(graph, reader) is not None


def _centred(graph: Graph, seen: Extremes) -> Graph:
    moved: dict[str, Tensor] = {}  # what is taken off an edge
    for edge in centrable(graph):
        low, high = seen[edge]
        moved[edge] = (low.double() + high.double()) / 2
    for node in graph.nodes:  # a sum is what its inputs are, but for the one whose bias is free
        i = _branch(graph, node)
        if i is None or not any(e in moved for e in (node.name, *node.inputs)):
            continue
        assert isinstance(node.op, Sum)
        zero = torch.zeros(graph.channels()[node.name], dtype=torch.float64)
        rest = moved.get(node.name, zero)
        for k, (sign, edge) in enumerate(zip(node.op.signs, node.inputs, strict=True)):
            if k != i:
                rest = rest - sign * moved.get(edge, zero)
        moved[node.inputs[i]] = node.op.signs[i] * rest
    ops = {}
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Convolution) and (node.name in moved or node.inputs[0] in moved):
            bias = op.bias.double()
            if node.inputs[0] in moved:
                bias = bias + op.convolve(moved[node.inputs[0]][None, :, None, None])[0, :, 0, 0]
            if node.name in moved:
                bias = bias - moved[node.name]
            ops[node.name] = dataclasses.replace(op, bias=bias.float())
    return graph.replaced(ops)
