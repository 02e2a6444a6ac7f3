"""A trained codec with more latent channels, computing the same function.

New channels of y start out rounded to zero: faint rows in the analysis, scales of the smallest table. So the
networks that read y_hat may have fresh columns for them, through which the analysis learns; h_a, which
reads y before rounding, gets zeros. Channel groups of the four-part context keep their members.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..codecs import AllRatesCodec
from ..codecs.base import initialise
from ..codecs.prior import LOG_MIN

GROUPS = 4
#: new rows of the analysis, against those of a fresh codec
SEED_SCALE = 1e-3


def places(old: int, new: int) -> Tensor:
    """``(old,)``: where old latent channels go among the new ones."""
    return torch.cat([torch.arange(old // GROUPS) + g * (new // GROUPS) for g in range(GROUPS)])


@torch.no_grad()
def grow_latent(source: AllRatesCodec, target: AllRatesCodec) -> None:
    """Fill ``target``, which differs from ``source`` in M only, both with the four-part context."""
    initialise(target)
    old, new = source.M, target.M
    at = places(old, new)
    fresh = torch.ones(new, dtype=torch.bool)
    fresh[at] = False
    weights, wide = dict(source.named_parameters()), dict(target.named_parameters())
    last = [n for n, p in wide.items() if n.startswith("g_a.") and p.shape[0] == new][-2:]
    for name, p in wide.items():
        w = weights[name]
        if w.shape == p.shape:
            p.copy_(w)
        elif name.endswith("log_gain"):
            p[:, at] = w
        elif name in last:  # the analysis' rows are the latent's channels
            p.mul_(SEED_SCALE)
            p[at] = w
        elif name.startswith(("prior.first.", "prior.heads.")):  # log-scales, then means
            p.zero_()
            p[torch.cat([at, new + at])] = w
            if p.ndim == 1:
                p[:new][fresh] = LOG_MIN
        else:  # reads y or y_hat first, then what has not changed
            if name.startswith("h_a."):
                p.zero_()
            p[:, at] = w[:, :old]
            p[:, new:] = w[:, old:]
