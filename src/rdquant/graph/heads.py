"""A graph for some channels of its output alone: its last convolution is of what these need."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from .arithmetic import Multiplier
from .graph import Graph, Node
from .operations import Concatenate, Convolution, Operation, Pointwise, Requantize, Slice

#: which each channel goes through by itself, or that only move channels
_BY_CHANNEL = (Concatenate, Pointwise, Requantize, Slice)


@dataclass(frozen=True)
class Heads:
    """``parts[i]`` of what ``trunk`` gives is, position by position, the i-th of some sets of channels."""

    trunk: Graph
    parts: tuple[Graph, ...]


def heads(graph: Graph, wanted: list[np.ndarray]) -> Heads | None:
    """A quantized graph cut before its last convolution. ``wanted``: sets of channels of its output, each
    rising.

    None where more than one channel goes into what follows that convolution, or it is no product of one
    matrix at each position.
    """
    graph = graph.trimmed()
    names = graph.names(Convolution)
    if not names or graph.output == names[-1]:
        return None
    at = next(i for i, node in enumerate(graph.nodes) if node.name == names[-1])
    last, after = graph.nodes[at], graph.nodes[at + 1 :]
    assert isinstance(last.op, Convolution)
    inside = {node.name for node in graph.nodes[at:]}
    closed = all(isinstance(n.op, _BY_CHANNEL) and set(n.inputs) <= inside for n in after)
    if not closed or not last.op.is_matrix or last.op.transposed or last.inputs[0] in inside:
        return None
    channels, (edge,) = graph.channels(), last.inputs
    port = graph.ports()[edge]
    found = []
    for own in wanted:
        nodes = _narrowed(last, after, _needed(graph.output, own, after, channels), channels)
        if nodes is None:
            return None
        found.append(Graph({edge: port}, nodes, graph.output))
    return Heads(dataclasses.replace(graph, output=edge).trimmed(), tuple(found))


def _needed(
    output: str, wanted: np.ndarray, nodes: tuple[Node, ...], channels: dict[str, int]
) -> dict[str, np.ndarray]:
    """Channels of each edge that ``wanted`` of the output follow from."""
    found = {output: wanted}
    for node in reversed(nodes):
        own = found[node.name]
        if isinstance(node.op, Concatenate):
            start = 0
            for edge in node.inputs:
                inside = own[(start <= own) & (own < start + channels[edge])] - start
                found[edge] = np.union1d(found.get(edge, inside), inside)
                start += channels[edge]
        else:
            (edge,) = node.inputs
            taken = own + node.op.start if isinstance(node.op, Slice) else own
            found[edge] = np.union1d(found.get(edge, taken), taken)
    return found


def _narrowed(
    last: Node, nodes: tuple[Node, ...], needed: dict[str, np.ndarray], channels: dict[str, int]
) -> tuple[Node, ...] | None:
    """The nodes for these channels; None where an edge needs others than its source gives."""
    assert isinstance(last.op, Convolution)
    kept = needed[last.name]
    op: Operation = dataclasses.replace(last.op, weight=last.op.weight[kept], bias=last.op.bias[kept])
    found = [Node(last.name, op, last.inputs)]
    for node in nodes:
        op, own, given = node.op, needed[node.name], needed[node.inputs[0]]
        if isinstance(op, Slice):
            at = np.searchsorted(given, own + op.start)
            if len(at) == 0 or at[-1] - at[0] != len(at) - 1:
                return None
            op = Slice(int(at[0]), int(at[-1]) + 1)
        elif isinstance(op, Concatenate):
            ends = np.cumsum([0, *(channels[edge] for edge in node.inputs)])
            parts = [needed[edge] + start for edge, start in zip(node.inputs, ends[:-1], strict=True)]
            if not np.array_equal(np.concatenate(parts), own):
                return None
        else:
            if len(own) == 0 or not np.array_equal(own, given):
                return None
            if isinstance(op, Requantize):
                negative = None if op.negative is None else _of(op.negative, own)
                op = dataclasses.replace(op, factor=_of(op.factor, own), negative=negative)
        found.append(Node(node.name, op, node.inputs))
    return tuple(found)


def _of(factor: Multiplier, channels: np.ndarray) -> Multiplier:
    return Multiplier(factor.m[channels], factor.shift[channels])
