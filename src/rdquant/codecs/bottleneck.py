"""The two probability models of the hyperprior family, in float, as training needs them.

* `EntropyBottleneck`: a learned factorized density per channel (Ballé et al. 2018, appendix 6.1),
  parameter names and shapes as CompressAI's.
* `gaussian_likelihood`: a Gaussian convolved with the unit uniform (Minnen et al. 2018).

Files are never coded with these: `rdquant.entropy` turns them once into integer tables.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadModel
from .layers import lower_bound
from .protocol import Density

LIKELIHOOD_MIN = 1e-9
SCALE_MIN = 0.11
_SPELLINGS = re.compile(r"^_?(matri|bia|facto)(?:x|ces|s|ses|r|rs)[._]?(\d+)$")
_NAMES = {"matri": "_matrix", "bia": "_bias", "facto": "_factor"}
#: tables of the factorized prior reach at most this far on each side; what lies beyond is escaped
TABLE_REACH = 1024


class EntropyBottleneck(nn.Module):
    """Factorized density over integers, one per channel.

    The cumulative is a small monotone network per channel (filters 3, 3, 3, 3). ``quantiles[c, 0]``
    holds the lower tail, median and upper tail of channel c; a separate auxiliary loss fits them.
    """

    def __init__(
        self,
        channels: int,
        filters: tuple[int, ...] = (3, 3, 3, 3),
        init_scale: float = 10.0,
        tail_mass: float = 1e-9,
    ) -> None:
        super().__init__()
        self.channels, self.filters, self.tail_mass = channels, tuple(filters), tail_mass
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(filters) + 1))
        for i in range(len(widths) - 1):
            init = math.log(math.expm1(1 / scale / widths[i + 1]))
            matrix = torch.full((channels, widths[i + 1], widths[i]), init)
            self.register_parameter(f"_matrix{i}", nn.Parameter(matrix))
            bias = torch.empty(channels, widths[i + 1], 1).uniform_(-0.5, 0.5)
            self.register_parameter(f"_bias{i}", nn.Parameter(bias))
            if i < len(filters):
                self.register_parameter(f"_factor{i}", nn.Parameter(torch.zeros(channels, widths[i + 1], 1)))
        self.quantiles = nn.Parameter(torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1))

    def logits_cumulative(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``x: (C, 1, K)`` -> logit of the cumulative density at x, same shape.

        ``frozen`` stops gradients into the density (for the auxiliary loss).
        """
        logits = x
        for i in range(len(self.filters) + 1):
            matrix, bias = getattr(self, f"_matrix{i}"), getattr(self, f"_bias{i}")
            if frozen:
                matrix, bias = matrix.detach(), bias.detach()
            logits = torch.matmul(F.softplus(matrix), logits) + bias
            if i < len(self.filters):
                factor = getattr(self, f"_factor{i}")
                if frozen:
                    factor = factor.detach()
                logits = logits + torch.tanh(factor) * torch.tanh(logits)
        return logits

    def interval_mass(self, x: Tensor) -> Tensor:
        """Probability of ``[x - 1/2, x + 1/2]``; ``x: (C, 1, K)``. Computed on the smaller tail side."""
        lower, upper = self.logits_cumulative(x - 0.5), self.logits_cumulative(x + 0.5)
        sign = -torch.sign(lower + upper).detach()
        return torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))

    def likelihood(self, z: Tensor) -> Tensor:
        """``z: (B, C, H, W)`` (rounded or noisy) -> probabilities in [1e-9, 1], same shape, float32."""
        b, c, h, w = z.shape
        flat = z.float().permute(1, 0, 2, 3).reshape(c, 1, -1)
        p = lower_bound(self.interval_mass(flat), LIKELIHOOD_MIN)
        return p.reshape(c, b, h, w).permute(1, 0, 2, 3)

    def medians(self) -> Tensor:
        """``(1, C, 1, 1)``: the centre that z is rounded around."""
        return self.quantiles[:, 0, 1].reshape(1, -1, 1, 1)

    def auxiliary_loss(self) -> Tensor:
        """Distance of the stored quantiles from the density's own (CompressAI's `loss`)."""
        t = math.log(2 / self.tail_mass - 1)
        target = torch.tensor([-t, 0.0, t], device=self.quantiles.device)
        return (self.logits_cumulative(self.quantiles, frozen=True) - target).abs().sum()

    @torch.no_grad()
    def solve_quantiles(self) -> None:
        """Set the quantiles exactly, by bisection in float64, instead of training them."""
        t = math.log(2 / self.tail_mass - 1)
        dtype = self.quantiles.dtype
        self.double()
        target = torch.tensor([-t, 0.0, t], dtype=torch.float64, device=self.quantiles.device)
        lo = torch.full_like(self.quantiles, -1e4)
        hi = torch.full_like(self.quantiles, 1e4)
        for _ in range(60):
            mid = (lo + hi) / 2
            below = self.logits_cumulative(mid) < target
            lo, hi = torch.where(below, mid, lo), torch.where(below, hi, mid)
        self.quantiles.copy_((lo + hi) / 2)
        self.to(dtype)

    @torch.no_grad()
    def pmfs(self) -> tuple[list[np.ndarray], list[int], list[float]]:
        """The density on integers, per channel: ``(probabilities, first integer, mass outside)``.

        Integers count from the channel's median. Evaluated in float64 between the quantiles.
        """
        model = copy.deepcopy(self).double()
        model.solve_quantiles()
        lower, centre, upper = model.quantiles[:, 0].unbind(1)
        first = torch.floor(lower - centre).clamp(-TABLE_REACH, TABLE_REACH - 1).long()
        last = torch.ceil(upper - centre).clamp(-TABLE_REACH + 1, TABLE_REACH).long()
        last = torch.maximum(last, first + 1)
        longest = int((last - first).max()) + 1
        grid = (first[:, None] + torch.arange(longest)).double() + centre[:, None]
        mass = model.interval_mass(grid[:, None])[:, 0]
        ends = torch.stack([first - 0.5 + centre, last + 0.5 + centre], 1)[:, None]
        below, above = model.logits_cumulative(ends)[:, 0].unbind(1)
        outside = torch.sigmoid(below) + torch.sigmoid(-above)
        counts = (last - first + 1).tolist()
        return [mass[c, :n].numpy() for c, n in enumerate(counts)], first.tolist(), outside.tolist()


def parameter_name(name: str) -> str:
    """A parameter in any of CompressAI's three spellings -> ours; other names as they are."""
    match = _SPELLINGS.match(name)
    return f"{_NAMES[match[1]]}{match[2]}" if match else name


def density(found: Any) -> Density:
    """``found`` if it is a `Density`; ours with the same tensors if it is CompressAI's. Raises `BadModel`."""
    if hasattr(found, "pmfs") and hasattr(found, "medians"):
        return found
    stored = found.state_dict() if isinstance(found, nn.Module) else {}
    tensors = {parameter_name(name): t for name, t in stored.items()}
    own = EntropyBottleneck(int(found.channels), tuple(found.filters)) if "quantiles" in tensors else None
    if own is None or not set(own.state_dict()) <= set(tensors):
        raise BadModel(f"the entropy bottleneck, a {type(found).__name__}, has no medians() and pmfs()")
    own.load_state_dict({name: tensors[name].cpu().float() for name in own.state_dict()})
    return own


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor | None = None) -> Tensor:
    """Probability of ``[y - 1/2, y + 1/2]`` under N(means, max(scales, 0.11)); all ``(B, M, H, W)``."""
    values = (y if means is None else y - means).float().abs()
    scales = lower_bound(scales.float(), SCALE_MIN)
    upper = _normal_cdf((0.5 - values) / scales)
    lower = _normal_cdf((-0.5 - values) / scales)
    return lower_bound(upper - lower, LIKELIHOOD_MIN)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * -(2**-0.5))
