"""J as a function of one stage, with everything before that stage computed once.

An operation of the synthesis cannot change the rate, so neither analysis nor hyperprior runs again for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import segment_of
from .judges import distortion
from .twin import Twin


class SuffixCost:
    """``advance(name)`` for stages in network order, then ``cost()`` as often as that stage changes.

    ``x: (B, 3, H, W)`` of 0..255. What lies before the stage keeps the rounding that it had when it was
    advanced over. The networks between z_hat and the parameters are run whole: contexts depend on their ends.
    ``reference: (B,)``: squared errors by picture, for a J whose distortion is relative to them
    (`rdquant.passes.judges.distortion`).
    """

    def __init__(self, twin: Twin, x: Tensor, lambda_: float, reference: Tensor | None = None) -> None:
        self.twin, self.x, self.lambda_, self.reference = twin, x, lambda_, reference
        self._order = twin.names()
        self._at = 0
        self._live: dict[str, Tensor] = {}  # what the current network's operations still need
        self._y = self._z = self._y_hat = x  # complete once their segments are behind
        self._bits = torch.zeros(())
        self._enter()

    @property
    def _segment(self) -> str:
        return segment_of(self.twin.stages[self._order[self._at]].network)

    @torch.no_grad()
    def advance(self, name: str) -> None:
        """Make ``name`` the current stage: run the stages from the last one up to it."""
        while self._at < self._order.index(name):
            self._pass()
            self._at += 1
            self._enter()

    def _enter(self) -> None:
        """Have what the current network takes, if this is its first stage."""
        segment = self._segment
        before = self._order[self._at - 1] if self._at else None
        if before is not None and segment_of(self.twin.stages[before].network) == segment:
            return
        if segment == "synthesis" and before is not None:
            if self.twin.integer.prior.hyper:
                self._y_hat, bits_y, bits_z = self.twin.latents_around(self._y, self._z)
            else:
                self._y_hat, bits_y, bits_z = self.twin.latents(self._y)
            self._bits = bits_y + bits_z
        given = {"analysis": self.x, "hyper_analysis": self._y, "synthesis": self._y_hat}
        if segment in given:
            (edge,) = self.twin.integer.networks[segment].inputs
            self._live = {edge: given[segment]}

    def _rest(self, first: str, values: dict[str, Tensor], only: tuple[str, ...] | None = None) -> Tensor:
        """Operations of the current network from a stage on, or ``only`` some; fills ``values``."""
        stage = self.twin.stages[first]
        graph = self.twin.integer.networks[stage.network]
        names = [n.name for n in graph.nodes]
        out = torch.empty(0)
        for node in graph.nodes[names.index(stage.nodes[0]) :]:
            if only is not None and node.name not in only:
                break
            out = values[node.name] = self.twin.operate(node, tuple(values[e] for e in node.inputs))
        return values[graph.output] if only is None else out

    def _pass(self) -> None:
        """Run the current stage for good."""
        segment, name = self._segment, self._order[self._at]
        if segment == "parameters":
            return
        stage = self.twin.stages[name]
        graph = self.twin.integer.networks[stage.network]
        out = self._rest(name, self._live, stage.nodes)
        names = [n.name for n in graph.nodes]
        later = graph.nodes[names.index(stage.nodes[-1]) + 1 :]
        needed = {edge for node in later for edge in node.inputs}
        self._live = {edge: t for edge, t in self._live.items() if edge in needed}
        if not later and segment == "analysis":
            self._y = out
        elif not later and segment == "hyper_analysis":
            self._z = out

    @torch.no_grad()
    def cost(self) -> float:
        """J of the whole codec as the stages from the current one on now are."""
        twin, segment, name = self.twin, self._segment, self._order[self._at]
        if segment == "synthesis":
            out, bits = self._rest(name, dict(self._live)), self._bits
        else:
            if segment == "analysis":
                y_hat, bits_y, bits_z = twin.latents(self._rest(name, dict(self._live)))
            else:
                z = self._rest(name, dict(self._live)) if segment == "hyper_analysis" else self._z
                y_hat, bits_y, bits_z = twin.latents_around(self._y, z)
            out, bits = twin.run("synthesis", y_hat), bits_y + bits_z
        pixels = self.x.shape[0] * self.x.shape[2] * self.x.shape[3]
        return float(self.lambda_ * distortion(out, self.x, self.reference) + bits / pixels)
