"""A network as a graph: named operations in the order in which data meets them.

The same class holds a float network as it was captured, its quantized form, and the twin that gradients go
through: what differs is what its operations hold (`rdquant.graph.operations.base`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import BadModel
from .operations import Convolution, Operation, Port, Rounding

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound=Any)


@dataclass(frozen=True)
class Node:
    """One operation; ``inputs`` name nodes before it, or inputs of the graph."""

    name: str
    op: Operation
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """``inputs``: what each takes, by name, in order; a port's range means nothing before quantization.

    A graph is equal to itself alone, so that engines can keep what they made of it.
    """

    inputs: Mapping[str, Port]
    nodes: tuple[Node, ...]
    output: str

    def __getitem__(self, name: str) -> Node:
        """The node of this name. Raises `KeyError`."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(node.name == name for node in self.nodes)

    def names(self, kind: type[Operation] | tuple[type[Operation], ...] = Operation) -> list[str]:
        """Nodes of a kind of operation, in order."""
        return [n.name for n in self.nodes if isinstance(n.op, kind)]

    def readers(self, edge: str) -> list[Node]:
        """The nodes that read what ``edge`` (a node or an input) gives."""
        return [n for n in self.nodes if edge in n.inputs]

    def replaced(self, ops: Mapping[str, Operation]) -> Graph:
        """The same graph with other operations of these nodes."""
        return dataclasses.replace(
            self, nodes=tuple(Node(n.name, ops.get(n.name, n.op), n.inputs) for n in self.nodes)
        )

    def trimmed(self) -> Graph:
        """Without nodes that nothing depends on."""
        wanted, kept = {self.output}, []
        for node in reversed(self.nodes):
            if node.name in wanted:
                kept.append(node)
                wanted.update(node.inputs)
        return dataclasses.replace(self, nodes=tuple(reversed(kept)))

    def valid(self) -> Graph:
        """The same without padding: patches of the inputs give single positions."""
        convolutions = {n.name: n.op for n in self.nodes if isinstance(n.op, Convolution)}
        return self.replaced({n: dataclasses.replace(op, padding=0) for n, op in convolutions.items()})

    # evaluation

    def walk(
        self, given: tuple[T, ...], apply: Callable[[Node, tuple[T, ...]], T]
    ) -> Iterator[tuple[str, T]]:
        """``apply`` on node after node; yields each name and value, the inputs first. Values that nothing
        needs any more are let go.
        """
        last = {edge: i for i, node in enumerate(self.nodes) for edge in node.inputs}
        last[self.output] = len(self.nodes)
        values = dict(zip(self.inputs, given, strict=True))
        yield from list(values.items())
        for i, node in enumerate(self.nodes):
            values[node.name] = apply(node, tuple(values[edge] for edge in node.inputs))
            yield node.name, values[node.name]
            for edge in {*node.inputs, node.name}:
                if last.get(edge, -1) <= i:
                    del values[edge]

    def evaluate(self, given: tuple[T, ...], apply: Callable[[Node, tuple[T, ...]], T]) -> T:
        """The output, each node's value being what ``apply(node, inputs)`` gives."""
        for name, value in self.walk(given, apply):
            if name == self.output:
                found = value
        return found

    def real(self, *x: Tensor) -> Tensor:
        """The float network: tensors ``(B, C, H, W)`` -> the output."""
        return self.evaluate(x, lambda node, inputs: node.op.real(*inputs))

    def exact(self, *q: np.ndarray) -> np.ndarray:
        """The contract in float64, slow and obvious: integers of any type -> the output's, float64.

        Inputs outside their ranges are clipped to them: no bound is ever broken.
        """
        clipped = tuple(
            t.astype(np.float64).clip(p.lo, p.hi) for t, p in zip(q, self.inputs.values(), strict=True)
        )
        return self.evaluate(clipped, lambda node, inputs: node.op.exact(*inputs))

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        """The integer network on tensors, with gradients; see `Rounding`."""
        return self.evaluate(q, lambda node, inputs: node.op.relaxed(*inputs, rounding=rounding))

    # structure

    def channels(self) -> dict[str, int]:
        """Channels of every edge. Raises `BadModel` where they do not fit."""
        found = {name: port.channels for name, port in self.inputs.items()}
        for node in self.nodes:
            found[node.name] = node.op.channels(*(found[edge] for edge in node.inputs))
        return found

    def resolutions(self) -> dict[str, Fraction]:
        """Positions of every edge by one of the first input, a side. Raises `BadModel` where edges that meet
        differ.
        """
        found: dict[str, Fraction] = dict.fromkeys(self.inputs, Fraction(1))
        for node in self.nodes:
            sides = {found[edge] for edge in node.inputs}
            if len(sides) != 1:
                raise BadModel(f"{node.name} joins tensors of different resolutions: {sorted(sides)}")
            found[node.name] = sides.pop() * node.op.up / node.op.down
        return found

    def halo(self) -> Fraction | None:
        """Positions of the input on either side that an output position depends on; None: see
        `Operation.halo`.
        """
        at = self.resolutions()
        reach: dict[str, Fraction] = {self.output: Fraction(0)}
        for node in reversed(self.nodes):
            if node.name not in reach:
                continue
            halo = node.op.halo
            if halo is None:
                return None
            for edge in node.inputs:
                own = Fraction(math.ceil(reach[node.name] * at[edge]) + halo) / at[edge]
                reach[edge] = max(reach.get(edge, Fraction(0)), own)
        return max(reach.get(name, Fraction(0)) for name in self.inputs)

    def passes_by(self, name: str) -> bool:
        """Whether the output depends on an input by another way than through this node."""
        reached = set(self.inputs)
        for node in self.nodes:
            if node.name != name and reached.intersection(node.inputs):
                reached.add(node.name)
        return self.output in reached

    def ports(self) -> dict[str, Port]:
        """What flows along every edge, each operation checked on the way. Raises `BadModel`."""
        found = dict(self.inputs)
        for name, port in found.items():
            if port.channels < 1 or not -(2**15) <= port.lo <= 0 <= port.hi <= 2**16 - 1:
                raise BadModel(f"input {name} has {port.channels} channels of [{port.lo}, {port.hi}]")
        for node in self.nodes:
            if node.name in found:
                raise BadModel(f"two nodes or inputs are called {node.name}")
            if unknown := [edge for edge in node.inputs if edge not in found]:
                raise BadModel(f"{node.name} reads {', '.join(unknown)}, which is not before it")
            if (node.op.arity is not None and len(node.inputs) != node.op.arity) or not node.inputs:
                raise BadModel(f"{node.name} takes {node.op.arity} inputs, got {len(node.inputs)}")
            found[node.name] = node.op.check(node.name, *(found[edge] for edge in node.inputs))
        return found

    def check(self) -> Port:
        """What the output gives. Raises `BadModel` unless every bound of the integer contract holds."""
        ports = self.ports()
        if self.output not in ports:
            raise BadModel(f"the output {self.output!r} is no node")
        self.resolutions()
        return ports[self.output]
