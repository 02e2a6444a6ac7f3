"""Mixings: invertible 1x1 convolutions in front of roundings, and how they enter a graph.

`rdquant.passes.mixing` finds them. T is stored in few bits and its input keeps more bits than the activation
that is rounded; the exact inverse of the stored T is multiplied into the convolution that reads it: the
network stays the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Codec
from ..graph import Graph, Node
from ..graph.operations import Convolution, DivisiveNormalization
from .rounding import followers

#: added to the diagonal of W, as a fraction of its mean
DAMPING = 1e-3
#: how far apart the two roundings of one value are from it, in levels
QUARTER = 0.25
#: behind the name of what is mixed
SUFFIX = "~mixed"


def mixing_name(edge: str) -> str:
    """The node that mixes what ``edge`` gives."""
    return edge + SUFFIX


def is_mixing(name: str) -> bool:
    return name.endswith(SUFFIX)


@dataclass(frozen=True, eq=False)
class Mixing:
    """``t = T f``, ``T = levels * unit / input_scale`` exactly.

    ``levels: (C, C)`` int16; ``unit: (C,)`` by row; ``input_scale: (C,)``: what one of the integers that
    enter stands for; they lie in ``+-input_top``. ``sensitivity: (C, C)``: W, or None not to compensate.
    ``doubled``: of the first so many rows there are two, rounded a quarter of a level up and down: the mean
    of both has levels half as far apart.
    """

    levels: Tensor
    unit: Tensor
    input_scale: Tensor
    input_top: int
    bits: int
    sensitivity: Tensor | None
    doubled: int = 0

    def matrix(self) -> Tensor:
        """T, float64."""
        return self.levels.double() * self.unit[:, None] / self.input_scale[None, :]

    def rows(self) -> Tensor:
        """The row of T that each channel of t is: int64 ``(C + doubled,)``."""
        return torch.cat([torch.arange(len(self.levels)), torch.arange(self.doubled)])

    def inverse(self) -> Tensor:
        """From t to f, float64 ``(C, C + doubled)``: of the two of a row, each counts half."""
        inverse = torch.linalg.inv(self.matrix())
        inverse[:, : self.doubled] /= 2
        return inverse[:, self.rows()]

    def shift(self) -> Tensor:
        """What is added to each channel of t before it is rounded, in levels: float64 ``(C + doubled,)``."""
        shift = torch.zeros(len(self.levels) + self.doubled, dtype=torch.float64)
        shift[: self.doubled], shift[len(self.levels) :] = QUARTER, -QUARTER
        return shift

    def feedback(self, scale: Tensor) -> Tensor:
        """What an error of one in channel i adds to channel j > i, float64 ``(C, C)``.

        ``scale: (C,)``: of the rounded activations. Strictly upper triangular; zero without compensation.
        """
        if self.sensitivity is None:
            return torch.zeros(len(scale), len(scale), dtype=torch.float64)
        inverse = torch.linalg.inv(self.matrix()) * scale[None, :]
        cost = inverse.T @ damped(self.sensitivity) @ inverse
        return -torch.triu(followers(cost), 1)

    @classmethod
    def of(
        cls,
        matrix: Tensor,
        input_scale: Tensor,
        input_top: int,
        bits: int,
        sensitivity: Tensor | None = None,
        doubled: int = 0,
    ) -> Mixing:
        """``matrix: (C, C)`` rounded to what is stored."""
        scaled = matrix.double() * input_scale
        unit = scaled.abs().amax(1) / (2 ** (bits - 1) - 1)
        levels = torch.round(scaled / unit[:, None]).to(torch.int16)
        return cls(levels, unit, input_scale, input_top, bits, sensitivity, doubled)


def damped(sensitivity: Tensor) -> Tensor:
    """W with a little of its mean added to all directions: errors must not pile up in the least."""
    mean = sensitivity.diagonal().mean()
    return sensitivity + DAMPING * mean * torch.eye(len(sensitivity), dtype=sensitivity.dtype)


def reader(graph: Graph, edge: str) -> Node | None:
    """The one ungrouped convolution that reads ``edge``, if nothing else does: an inverse can go there."""
    readers = graph.readers(edge)
    if edge == graph.output or len(readers) != 1:
        return None
    op = readers[0].op
    return readers[0] if isinstance(op, Convolution) and op.groups == 1 else None


def mixable(graph: Graph) -> list[str]:
    """The GDNs whose channels can be mixed."""
    return [name for name in graph.names(DivisiveNormalization) if reader(graph, name) is not None]


def insert(codec: Codec, mixings: Mapping[str, Mixing]) -> Codec:
    """``mixings`` by the node (or input of the synthesis) that they mix, into a float codec, their inverses
    into what reads them.
    """
    networks = {}
    for name, graph in codec.networks.items():
        edges = (*(graph.inputs if name == "synthesis" else ()), *graph.names())
        networks[name] = _inserted(graph, {e: mixings[e] for e in edges if e in mixings})
    return dataclasses.replace(codec, networks=networks)


def _inserted(graph: Graph, mixings: Mapping[str, Mixing]) -> Graph:
    for edge in mixings:
        read = reader(graph, edge)
        assert read is not None and isinstance(read.op, Convolution)
        mixing = mixings[edge]
        matrix = mixing.matrix()[mixing.rows()]
        mix = Convolution(matrix.float()[:, :, None, None], torch.zeros(len(matrix)))
        folded = torch.einsum("oikl,ij->ojkl", read.op.by_output().double(), mixing.inverse())
        op = dataclasses.replace(read.op, weight=read.op.stored_as(folded.float()))
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is read:
                if edge in graph.inputs:
                    nodes.append(Node(mixing_name(edge), mix, (edge,)))
                node = Node(node.name, op, (mixing_name(edge),))
            nodes.append(node)
            if node.name == edge:
                nodes.append(Node(mixing_name(edge), mix, (edge,)))
        graph = dataclasses.replace(graph, nodes=tuple(nodes))
    return graph
