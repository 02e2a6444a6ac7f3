"""AdaRound and block reconstruction: roundings learned so that a unit's output comes close to the float
one's.

Unit after unit, in network order: a unit takes in what the units before it, already rounded, put out, and its
weights choose between the levels below and above, softly at first (Nagel et al. 2020, arXiv 2004.10568).
AdaRound's units are single layers, compared by squared error. BRECQ's (Li et al. 2021, arXiv 2102.05426) are
blocks; errors of their outputs count by the squared gradient of the task's loss (the diagonal of Fisher's
matrix), which is the codec's J here, and the scales of the activations that leave them move too (as in LSQ).
Networks start from the float codec's inputs: between them latents are rounded anyway.

Departures: everything is integers in the end; what a unit moved is judged by held-out pictures
(`rdquant.passes.held_out`); hundreds of steps where the papers take 10,000 to 20,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph, Node
from ..graph.operations import Convolution
from .flow import networks_in_order
from .held_out import HeldOut
from .mixed import is_mixing
from .mixing import Progress
from .moving import Weights
from .rdo_config import RdoConfig
from .twin import Twin
from .walk import walk

#: gradient steps of a unit, where nothing else is asked for
STEPS = 300
#: of the rectified sigmoid, and of the regularizer: its weight, the share of steps without it, its exponents
ZETA, GAMMA = 1.1, -0.1
PRICE, WARM_UP, EXPONENTS = 0.01, 0.2, (20.0, 2.0)
#: Adam's rates of roundings and of logarithms of scales
RATE, SCALE_RATE = 0.02, 0.001
#: side of the tiles that a unit learns from
TILE = 64


@dataclass(frozen=True)
class Unit:
    """Stages that are reconstructed together."""

    network: str
    stages: tuple[str, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]  #: edges that they take from before
    outputs: tuple[str, ...]  #: edges that later nodes, or other networks, read


def units(twin: Twin, network: str, least: int) -> list[Unit]:
    """A network cut where a single edge leads on, ``least`` stages or more in a unit but the last."""
    graph, found, own = twin.integer.networks[network], [], []
    names = twin.of_network(network)
    for name in names:
        own.append(name)
        unit = _unit(twin, graph, network, tuple(own))
        if (len(own) >= least and len(unit.outputs) == 1) or name == names[-1]:
            found.append(unit)
            own = []
    return found


def _unit(twin: Twin, graph: Graph, network: str, stages: tuple[str, ...]) -> Unit:
    inside = {n for name in stages for n in twin.stages[name].nodes}
    nodes = tuple(n for n in graph.nodes if n.name in inside)
    last = max(i for i, n in enumerate(graph.nodes) if n.name in inside)
    later = {edge for n in graph.nodes[last + 1 :] for edge in n.inputs} | {graph.output}
    inputs = dict.fromkeys(edge for n in nodes for edge in n.inputs if edge not in inside)
    return Unit(network, stages, nodes, tuple(inputs), tuple(n.name for n in nodes if n.name in later))


class SoftRounding:
    """Of one layer: each weight between the levels below and above it, by a rectified sigmoid of ``v``."""

    def __init__(self, layer: Weights, in_log: Tensor | None) -> None:
        self.layer, self.in_log = layer, in_log
        with torch.no_grad():
            w = layer.scaled(in_log).float().contiguous()
            inside = w.clamp(layer.lowest, layer.highest)
            values = layer.values.float()
            index = torch.bucketize(inside.contiguous(), values, right=True).clamp(1, len(values) - 1)
            self.below, self.gap = values[index - 1], values[index] - values[index - 1]
            share = ((inside - self.below) / self.gap).clamp(1e-3, 1 - 1e-3)
            self.v = nn.Parameter(torch.logit((share - GAMMA) / (ZETA - GAMMA)))

    def share(self) -> Tensor:
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self) -> Tensor:
        return (self.below + self.gap * self.share()) * self.layer.unmasked

    def price(self, exponent: float) -> Tensor:
        """Least where each weight has chosen."""
        return ((1 - (2 * self.share() - 1).abs() ** exponent) * self.layer.unmasked).sum()

    @torch.no_grad()
    def harden(self) -> None:
        """Give the layer the nearer of both levels."""
        hard = self.below + self.gap * (self.share() > 0.5)
        move = (hard - self.layer.scaled(self.in_log)) / self.layer.spacing
        self.layer.weight.copy_(move)
        self.layer.soft = None


class Reconstruction:
    """Reconstructs every unit of a twin, once. ``x: (B, 3, H, W)`` of 0..255: what is learned from, in tiles.

    ``least``: layers in a unit; ``fisher``: outputs' errors count by squared gradients of J; ``scales``:
    those of activations move as well.
    """

    def __init__(
        self, twin: Twin, x: Tensor, rdo: RdoConfig, held: HeldOut, least: int, fisher: bool, scales: bool
    ) -> None:
        self.twin, self.rdo, self.held = twin, rdo, held
        self.least, self.fisher, self.scales = least, fisher, scales
        # contiguous: oneDNN's gradients of 1x1 kernels write past their end in PyTorch's other memory formats
        self.x = torch.cat([t for rows in x.split(TILE, 2) for t in rows.split(TILE, 3)]).contiguous()
        self.j = held.cost(twin)

    def run(self, energies: dict[str, Tensor], progress: Progress | None = None) -> None:
        """``energies``: by node, mean squares of each channel of the float codec's values, ``(C,)``."""
        twin = self.twin
        twin.set_rounding(twin.names(), False, False)
        with torch.no_grad():
            inputs = self._inputs()
        parts = {n: units(twin, n, self.least) for n in networks_in_order(twin.integer)}
        total, done = sum(map(len, parts.values())), 0
        for network, found in parts.items():
            graph = twin.integer.networks[network]
            given, valid = inputs[network]
            live = dict(zip(graph.inputs, given, strict=True))
            real, rounded = dict(live), dict(live)
            shares = self._fisher(network, found) if self.fisher else {}
            for unit in found:
                nodes = {n.name: n for n in (graph.valid() if valid else graph).nodes}
                unit_nodes = [nodes[n.name] for n in unit.nodes]
                twin.set_rounding(list(unit.stages), False, False)
                with torch.no_grad():
                    self._through(unit_nodes, real)
                weights = {
                    e: shares[e] if self.fisher else _squares(real[e], energies.get(_plain(e)))
                    for e in unit.outputs
                }
                twin.set_rounding(list(unit.stages), True, True)
                self._learn(unit, unit_nodes, rounded, real, weights)
                twin.set_rounding(list(unit.stages), True, True)
                with torch.no_grad():
                    self._through(unit_nodes, rounded)
                last = [n.name for n in graph.nodes].index(unit.nodes[-1].name)
                needed = {e for n in graph.nodes[last + 1 :] for e in n.inputs} | {graph.output}
                for values in (real, rounded):
                    for edge in [e for e in values if e not in needed]:
                        del values[edge]
                done += 1
                if progress:
                    progress(done, total, f"{unit.stages[0]}  J {self.j:.4f}")
        twin.set_rounding(twin.names(), True, True)

    def _through(self, nodes: list[Node], values: dict[str, Tensor]) -> None:
        for node in nodes:
            values[node.name] = self.twin.operate(node, tuple(values[e] for e in node.inputs))

    def _learn(
        self,
        unit: Unit,
        nodes: list[Node],
        rounded: dict[str, Tensor],
        real: dict[str, Tensor],
        weights: dict[str, Tensor],
    ) -> None:
        twin = self.twin
        layers = [n for n in unit.stages if isinstance(twin.ops[n], Convolution) and not is_mixing(n)]
        soft = [SoftRounding(twin.layer(n), _detached(twin.in_log(n))) for n in layers]
        movable = {e for s in unit.stages for e in twin.scale_edges(s)} if self.scales else set()
        logs = {e: twin.log(e) for e in unit.outputs if e in movable}
        if not soft:
            return
        groups: list[dict[str, Any]] = [{"params": [s.v for s in soft], "lr": RATE}]
        if logs:
            groups.append({"params": [log.requires_grad_(True) for log in logs.values()], "lr": SCALE_RATE})
        moved = [*(s.v for s in soft), *logs.values()]
        start = [t.detach().clone() for t in moved]
        before = [twin.layer(n).weight.detach().clone() for n in layers]
        optimizer = torch.optim.Adam(groups)
        steps = self.rdo.steps or STEPS
        generator = torch.Generator().manual_seed(self.rdo.seed)
        first = 0.0
        for n, s in zip(layers, soft, strict=True):
            twin.layer(n).soft = s.weight
        for step in range(steps):
            chosen = torch.randint(len(self.x), (2 * self.rdo.batch,), generator=generator)
            values = {e: rounded[e][chosen] for e in unit.inputs}
            self._through(nodes, values)
            loss = torch.zeros(())
            for edge in unit.outputs:
                out = values[edge]
                if edge in logs:
                    out = out * torch.exp(logs[edge]).reshape(1, -1, 1, 1)
                w = weights[edge]
                w = w[chosen] if len(w) > 1 else w
                loss = loss + ((out - real[edge][chosen]) ** 2 * w).mean()
            first = first or max(float(loss.detach()), 1e-12)
            t = (step / steps - WARM_UP) / (1 - WARM_UP)
            total = loss / first * len(soft)
            if t > 0:
                exponent = EXPONENTS[1] + (EXPONENTS[0] - EXPONENTS[1]) * 0.5 * (1 + math.cos(math.pi * t))
                total = total + PRICE * sum(s.price(exponent) for s in soft)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
        for log in logs.values():
            log.requires_grad_(False)

        def settled() -> Twin:
            for s in soft:
                s.harden()
            return twin

        share, self.j = self.held.settle(settled, moved, start, self.j)
        if share:
            settled()
            return
        with torch.no_grad():
            for n, w in zip(layers, before, strict=True):
                twin.layer(n).weight.copy_(w)
                twin.layer(n).soft = None

    def _inputs(self) -> dict[str, tuple[tuple[Tensor, ...], bool]]:
        """What each network takes in, and whether it runs without padding, as the twin stands."""
        found: dict[str, tuple[tuple[Tensor, ...], bool]] = {}

        def run(name: str, *inputs: Tensor, valid: bool = False) -> Tensor:
            found[name] = inputs, valid
            return self.twin.run(name, *inputs, valid=valid)

        walk(self.twin, self.x, run)
        return found

    def _fisher(self, network: str, found: list[Unit]) -> dict[str, Tensor]:
        """Squared gradients of J by the edges that leave the units: ``(B, C, H, W)`` each, whose mean is
        1."""
        twin, wanted = self.twin, {e for unit in found for e in unit.outputs}
        squares: dict[str, list[Tensor]] = {e: [] for e in wanted}
        operate = twin.operate

        def noted(node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
            out = operate(node, inputs)
            if node.name in wanted and torch.is_grad_enabled():
                seen[node.name] = out = out if out.requires_grad else out.requires_grad_(True)
            return out

        was = dict(twin.weights_rounded), dict(twin.outputs_rounded)
        twin.set_rounding(twin.names(), False, False)
        twin.operate = noted  # type: ignore[method-assign]
        try:
            for x in self.x.split(8):
                seen: dict[str, Tensor] = {}
                j = twin(x).cost(self.rdo.weight, x.shape[0] * x.shape[2] * x.shape[3])
                for edge, g in zip(seen, torch.autograd.grad(j, list(seen.values())), strict=True):
                    squares[edge].append(g.square())
        finally:
            del twin.operate
            twin.weights_rounded, twin.outputs_rounded = was
        joined = {e: torch.cat(parts) for e, parts in squares.items()}
        return {e: t / t.mean().clamp(min=1e-30) for e, t in joined.items()}


def _squares(values: Tensor, energy: Tensor | None) -> Tensor:
    """Square of what one integer of each channel is, of an edge whose real energy ``(C,)`` is known."""
    own = values.square().mean((0, 2, 3))
    known = torch.ones_like(own) if energy is None else energy / own.clamp(min=1e-12)
    return torch.where(own > 0, known, 0.0).reshape(1, -1, 1, 1)


def _plain(edge: str) -> str:
    """The node of the float graph that an integer one stands for."""
    for suffix in (".out", ".narrow", ".wide", ".index"):
        edge = edge.removesuffix(suffix)
    return edge


def _detached(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()
