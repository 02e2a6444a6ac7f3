"""What moves of a codec's twin, by operation; and the stages in which it moves. See `rdquant.passes.twin`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..graph.operations import Convolution, DivisiveNormalization, round_ste
from .formats import Levels, uniform
from .rounding import used_taps

#: how far from its level a weight may be when gradients begin
ROOM = 0.25


class Weights(nn.Module):
    """What moves of one convolution; see the module's text."""

    v: Tensor
    bias0: Tensor
    bias_unit: Tensor
    unmasked: Tensor
    values: Tensor
    middles: Tensor

    def __init__(self, op: Convolution, unrounded: Tensor, bias_unit: Tensor) -> None:
        super().__init__()
        self.op = op
        #: the levels themselves, where they are learned as such (`rdquant.passes.reconstruct`)
        self.soft: Callable[[], Tensor] | None = None
        self.levels = uniform(op.bits) if op.levels is None else Levels(torch.from_numpy(op.levels), op.bits)
        self.lowest, self.highest = float(self.levels.low), float(self.levels.high)
        self.spacing = (self.highest - self.lowest) / (len(self.levels.values) - 1)
        values = self.levels.values.double()
        self.register_buffer("values", values)
        self.register_buffer("middles", (values[1:] + values[:-1]) / 2)
        self.register_buffer("v", unrounded.clone())
        self.register_buffer("bias0", torch.from_numpy(op.bias).double())
        self.register_buffer("bias_unit", bias_unit)
        self.register_buffer("unmasked", used_taps(dataclasses.replace(op, weight=unrounded)).double())
        self.bias = nn.Parameter(torch.zeros(op.out_channels))
        q = torch.from_numpy(op.weight).double()
        # where compensation went against the nearest level, gradients need some room before they go back
        start = torch.minimum(torch.maximum(unrounded, q - ROOM), q + ROOM) if self.levels.plain else q
        self.weight = nn.Parameter(((start - unrounded) / self.spacing).float())

    def scaled(self, in_log: Tensor | None) -> Tensor:
        """The float weights under the present scales."""
        if in_log is None:
            return self.v
        by_output = dataclasses.replace(self.op, weight=self.v).by_output()
        gain = torch.exp(in_log).reshape(self.op.groups, 1, -1)
        gain = gain.expand(-1, self.op.out_channels // self.op.groups, -1).reshape(len(by_output), -1, 1, 1)
        return self.op.stored_as(by_output * gain)

    def moved(self, in_log: Tensor | None) -> Tensor:
        return self.scaled(in_log) + self.spacing * self.weight * self.unmasked

    def levelled(self, in_log: Tensor | None) -> Tensor:
        """Weights as levels, with straight-through gradients inside their range."""
        if self.soft is not None:
            return self.soft()
        inside = self.moved(in_log).clamp(self.lowest, self.highest)
        if self.levels.plain:
            return round_ste(inside)
        nearest = self.values[torch.bucketize(inside.detach().contiguous(), self.middles, right=True)]
        return inside + (nearest - inside).detach()

    def relaxed(self, in_log: Tensor | None, rounded: bool) -> Convolution:
        bias = self.bias0 + self.bias * self.bias_unit
        if not rounded:
            return dataclasses.replace(self.op, weight=self.scaled(in_log), bias=bias)
        return dataclasses.replace(self.op, weight=self.levelled(in_log), bias=round_ste(bias))

    def export(self, in_log: Tensor | None) -> Convolution:
        weight = self.levels.nearest(self.moved(in_log)).to(torch.int16).numpy()
        bias = torch.floor(self.bias0 + self.bias * self.bias_unit + 0.5).to(torch.int64).numpy()
        return dataclasses.replace(self.op, weight=weight, bias=bias)


class Norm(nn.Module):
    """What moves of one GDN."""

    gamma0: Tensor
    beta0: Tensor

    def __init__(self, op: DivisiveNormalization, unrounded: Tensor) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("gamma0", unrounded.clone())
        self.register_buffer("beta0", torch.from_numpy(op.beta).double())
        self.gamma = nn.Parameter(torch.zeros_like(unrounded, dtype=torch.float32))
        self.beta_log = nn.Parameter(torch.zeros(len(unrounded)))

    def relaxed(self, rounded: bool) -> DivisiveNormalization:
        gamma = (self.gamma0 + self.gamma).clamp(0, 2**self.op.bits - 1)
        beta = self.beta0 * torch.exp(self.beta_log)
        if rounded:
            gamma, beta = round_ste(gamma), round_ste(beta).clamp(min=1)
        return dataclasses.replace(self.op, gamma=gamma, beta=beta)

    def export(self) -> DivisiveNormalization:
        found = self.relaxed(True)
        return dataclasses.replace(
            found,
            gamma=torch.round(found.gamma).to(torch.int16).numpy(),
            beta=torch.round(found.beta).to(torch.int64).numpy(),
        )


@dataclass(frozen=True)
class Stage:
    """``nodes`` of a network, the first convolution of which names it."""

    name: str
    network: str
    nodes: tuple[str, ...]


def stages_of(network: str, graph: Graph) -> list[Stage]:
    """A network cut before each convolution but the first."""
    found: list[list[str]] = [[]]
    named = False
    for node in graph.nodes:
        if isinstance(node.op, Convolution):
            if named:
                found.append([])
            named = True
        found[-1].append(node.name)
    names = [next((n for n in nodes if isinstance(graph[n].op, Convolution)), nodes[0]) for nodes in found]
    return [Stage(name, network, tuple(nodes)) for name, nodes in zip(names, found, strict=True)]
