"""J as a function of one stage, with everything before that stage computed once.

A layer of the synthesis cannot change the rate, so neither analysis nor hyperprior runs again for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .twin import Twin


class SuffixCost:
    """``advance(name)`` for stages in network order, then ``cost()`` as often as that stage changes.

    ``x: (B, 3, H, W)`` of 0..255. What lies before the stage keeps the rounding that it had when it was
    advanced over.
    """

    def __init__(self, twin: Twin, x: Tensor, lambda_: float) -> None:
        self.twin, self.x, self.lambda_ = twin, x, lambda_
        self._order = twin.names()
        self._at = -1
        self._q = x  # what the current stage takes in (g_a and g_s)
        self._y = x  # complete once g_a is behind
        self._bits = torch.zeros(())

    @torch.no_grad()
    def advance(self, name: str) -> None:
        """Make ``name`` the current stage: run the stages from the last one up to it."""
        while self._at < self._order.index(name):
            if self._at >= 0:
                self._pass(self._order[self._at])
            self._at += 1

    def _pass(self, name: str) -> None:
        twin, part = self.twin, name.split(".")[0]
        if part in ("g_a", "g_s"):
            if name == twin.order[part][0]:
                self._q = twin.entering(part, self._q)
            self._q = twin.stage(name)(self._q, twin.in_log(name))
        if name == twin.order["g_a"][-1]:
            self._y = self._q
        if name == [n for n in self._order if not n.startswith("g_s.")][-1]:
            self._q, bits_y, bits_z = twin.latents(self._y)
            self._bits = bits_y + bits_z

    @torch.no_grad()
    def cost(self) -> float:
        """J of the whole codec as the stages from the current one on now are."""
        twin, name = self.twin, self._order[self._at]
        part, i = name.split(".")[0], twin.order[name.split(".")[0]].index(name)
        if part == "g_s":
            out, bits = twin.run("g_s", self._q, first=i), self._bits
        else:
            y = twin.run("g_a", self._q, first=i) if part == "g_a" else self._y
            y_hat, bits_y, bits_z = twin.latents(y)
            out, bits = twin.run("g_s", y_hat), bits_y + bits_z
        pixels = self.x.shape[0] * self.x.shape[2] * self.x.shape[3]
        return float(self.lambda_ * torch.mean((out - self.x) ** 2) + bits / pixels)
