"""Rounding weights so that the layer's output stays put: error-compensated rounding.

Nearest rounding minimises each weight's own error. What matters is the error of the output,
``|(W - W_q) X|^2`` over calibration inputs X. Going through a kernel's weights in order, each rounding
error is spread over the weights not yet rounded, in proportion to how their inputs correlate: GPTQ
(Frantar et al. 2023, arXiv 2210.17323, algorithm 1), from Optimal Brain Surgeon. Here the columns of
one output phase of a transposed convolution are a problem of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .formats import Levels

#: added to the diagonal of the Gram matrix, as a fraction of its mean
DAMPING = 0.01
#: positions of a layer's input that the Gram matrix is taken from, over all pictures
POSITIONS = 12_000


def compensated_round(weight: Tensor, scales: Tensor, gram: Tensor, levels: Levels) -> Tensor:
    """``weight: (O, K)``, ``scales: (O,)``, ``gram = X X^T: (K, K)`` -> levels, int16 ``(O, K)``."""
    w = weight.detach().double().clone()
    k = w.shape[1]
    h = gram.double().clone()
    dead = h.diagonal() <= 0
    h.diagonal()[dead] = 1.0
    h.diagonal().add_(DAMPING * float(h.diagonal().mean()))
    # heaviest inputs first: their errors can still be compensated by the others
    order = torch.argsort(h.diagonal(), descending=True)
    w, h = w[:, order], h[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    q = torch.empty_like(w)
    for j in range(k):
        q[:, j] = levels.nearest(w[:, j] / scales)
        error = (w[:, j] - q[:, j] * scales) / inverse[j, j]
        w[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
    out = torch.empty_like(q)
    out[:, order] = q
    return out.to(torch.int16)


def phases(module: nn.Conv2d | nn.ConvTranspose2d) -> list[Tensor]:
    """Index sets of the taps (into the flattened k x k kernel) that meet in one output position."""
    k = module.kernel_size[0]
    taps = torch.arange(k * k).reshape(k, k)
    if isinstance(module, nn.Conv2d):
        return [taps.flatten()]
    s = module.stride[0]
    return [taps[i::s, j::s].flatten() for i in range(s) for j in range(s)]


def columns(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, phase: Tensor) -> Tensor:
    """Inputs that meet the taps of one phase: ``x: (1, I, H, W)`` -> ``(P, I * len(phase))``.

    Columns run over channels, then taps in the order of ``phase``.
    """
    k, s = module.kernel_size[0], module.stride[0]
    if isinstance(module, nn.Conv2d):
        return F.unfold(x, k, stride=s, padding=k // 2)[0].T
    # output o = s * i + t - p: for one phase, taps t apart by s read inputs one apart
    rows, cols = torch.unique(phase // k), torch.unique(phase % k)
    n, m = len(rows), len(cols)
    patches = F.unfold(F.pad(x, (m - 1, m - 1, n - 1, n - 1)), (n, m))[0].T
    patches = patches.reshape(len(patches), x.shape[1], n, m).flip(2, 3)
    return patches.reshape(len(patches), -1)


def gram_matrices(
    module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, pictures: int, generator: torch.Generator
) -> list[Tensor]:
    """``X X^T`` of each phase over random positions of one input, float64 ``(K, K)`` each.

    ``x: (1, I, H, W)``; ``pictures``: how many inputs share the `POSITIONS`.
    """
    keep = max(1, POSITIONS // pictures)
    grams = []
    for phase in phases(module):
        rows = columns(module, x, phase)
        if len(rows) > keep:
            rows = rows[torch.randint(len(rows), (keep,), generator=generator)]
        grams.append((rows.T @ rows).double())
    return grams


def round_kernel(
    module: nn.Conv2d | nn.ConvTranspose2d,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor,
    grams: list[Tensor],
    levels: Levels,
) -> Tensor:
    """Compensated rounding of a whole kernel.

    ``weight: (O, I, k, k)``, already multiplied by ``input_scale: (I,)``; ``scales: (O,)``; ``grams``
    of the unscaled inputs. Returns int16 ``(O, I, k, k)``.
    """
    flat = weight.flatten(2)
    out = torch.empty(flat.shape, dtype=torch.int16)
    for phase, gram in zip(phases(module), grams, strict=True):
        inverse_scale = (1 / input_scale).repeat_interleave(len(phase))
        scaled = gram * inverse_scale[:, None] * inverse_scale[None, :]
        part = compensated_round(flat[:, :, phase].flatten(1), scales, scaled, levels)
        out[:, :, phase] = part.reshape(len(flat), -1, len(phase))
    return out.reshape(weight.shape)
