"""No search ends worse than its start: what pictures that it did not learn from say.

A search sees half of the calibration pictures (`split`), and what it moved is judged by J of the others, with
every stage quantized (`HeldOut`). If the move as a whole does not lower that J, half of it is tried, then a
quarter; if none helps, what moved goes back (`HeldOut.settle`). Distortion is relative to the float codec's,
picture by picture (`rdquant.passes.judges.distortion`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .calibration import LEAST_MSE
from .crops import probe
from .judges import distortion
from .twin import Twin

#: of the calibration pictures at most so many judge
MOST = 8
#: shares of a move that are tried, the largest first; 0, where it began, needs no try
SHARES = (1.0, 0.5, 0.25)


def split(pictures: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Those to learn from and those to judge by: every second one, at most `MOST`. One alone does both."""
    if len(pictures) < 2:
        return pictures, pictures
    places = np.linspace(0, len(pictures) - 1, min(MOST, len(pictures) // 2)).round().astype(int).tolist()
    return [p for i, p in enumerate(pictures) if i not in places], [pictures[i] for i in places]


class HeldOut:
    """J of pictures that a search does not see. ``twin``: one of the codec that is searched."""

    def __init__(self, twin: Twin, pictures: list[np.ndarray], lambda_: float) -> None:
        self.x, self.lambda_ = probe(pictures, most=MOST), lambda_
        twin.set_rounding(twin.names(), False, False)
        self.float_j = self._measure(twin, None)
        twin.set_rounding(twin.names(), True, True)

    @torch.no_grad()
    def _measure(self, twin: Twin, reference: Tensor | None) -> dict[str, float]:
        x = self.x
        y_hat, bits_y, bits_z = twin.latents(twin.run("analysis", x))
        out = twin.run("synthesis", y_hat)
        if reference is None:
            reference = self.reference = (out - x).square().mean((1, 2, 3)).clamp(min=LEAST_MSE)
        bpp = float(bits_y + bits_z) / (x.shape[0] * x.shape[2] * x.shape[3])
        j = bpp + self.lambda_ * float(distortion(out, x, reference))
        return {"J": j, "bpp": bpp, "mse": float(torch.mean((out - x) ** 2))}

    def report(self, twin: Twin) -> dict[str, float]:
        """J, bpp and mean squared error with every stage quantized. Leaves it so."""
        twin.set_rounding(twin.names(), True, True)
        twin.soft_end = False
        return self._measure(twin, self.reference)

    def cost(self, twin: Twin) -> float:
        """J of `report`."""
        return self.report(twin)["J"]

    def settle(
        self, twin: Callable[[], Twin], moved: Sequence[Tensor], start: Sequence[Tensor], before: float
    ) -> tuple[float, float]:
        """Leave ``moved`` at the share of its way from ``start`` that J likes best, the start included.

        ``twin``: of ``moved`` as it is when called; ``before``: J at the start. Returns the share and its J.
        """
        end = [t.detach().clone() for t in moved]
        best, least = 0.0, before
        for share in SHARES:
            _place(moved, start, end, share)
            if (j := self.cost(twin())) < least:
                best, least = share, j
            elif best:  # shorter ways are not tried once a longer one was better
                break
        _place(moved, start, end, best)
        return best, least


@torch.no_grad()
def _place(moved: Sequence[Tensor], start: Sequence[Tensor], end: Sequence[Tensor], share: float) -> None:
    for t, a, b in zip(moved, start, end, strict=True):
        t.copy_(a + share * (b - a) if share < 1 else b)
