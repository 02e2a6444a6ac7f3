"""A start at the best linear codec: principal components of 8x8 blocks, and of 2x2 squares of those.

From random kernels a codec for all rates learns what low rates need, and keeps to it; components of as many
channels start with the detail that high rates need, and training has to improve only (docs/training.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.unshuffle8 import LEVELS, SCALES, Unshuffle8
from ..errors import UsageError
from .data import CropSource

CROPS, SIDE = 512, 128
#: steps that training does not come to
ASIDE = 10**6


def components(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x: (K, C)`` -> mean ``(C,)``, orthonormal rows ``(count, C)`` and their deviations, largest first."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T).double())
    rows = vectors.flip(1).T[:count]
    return mean, rows.float(), values.flip(0)[:count].clamp(min=0).sqrt().float()


def _ends(network: nn.Module) -> list[nn.Conv2d]:
    """First and last convolution."""
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    return [found[0], found[-1]]


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


@torch.no_grad()
def start_from_components(codec: FloatCodec, source: CropSource) -> list[Tensor]:
    """Set the first and last kernels of both transforms, and return them. Raises `UsageError`.

    Streams between them have the square root of the components' deviations, so that a block sees fine
    detail beside the mean; blocks add nothing at first. Channels go to the context's four groups in turn.
    Scales that the prior starts with are the components' own, in the middle of the gains.
    """
    if not isinstance(codec, Unshuffle8):
        raise UsageError(f"start components is for unshuffle8, not for {codec.architecture}")
    analysis, synthesis = _ends(codec.g_a), _ends(codec.g_s)
    blocks = torch.cat([F.pixel_unshuffle(source.batch(ASIDE + i, 32, SIDE), 8) for i in range(CROPS // 32)])
    mean, rows, deviations = components(_channels_last(blocks), codec.width)
    stream = deviations.rsqrt() / deviations.mean().sqrt()  # a channel's amplitude, for a mean power of 1
    _set(analysis[0], stream[:, None] * rows, -stream * (rows @ mean))
    _set(synthesis[1], (rows / stream[:, None]).T, mean)
    centred = torch.einsum("bchw,dc->bdhw", blocks - mean[:, None, None], rows)
    wide = stream.repeat_interleave(4)  # of the squares' channels
    mean, rows, deviations = components(_channels_last(F.pixel_unshuffle(centred, 2)), codec.M)
    order = torch.arange(codec.M).reshape(-1, 4).T.reshape(-1)  # every fourth to one group
    rows, deviations = rows[order], deviations[order]
    _set(analysis[1], rows / wide, -rows @ mean)
    _set(synthesis[0], (rows * wide).T, wide * mean)
    for name, p in codec.named_parameters():
        if name.endswith(("project.weight", "mix_out.weight")):
            p.mul_(0.0 if name.startswith(("g_a", "g_s")) else 0.3)
    gain = torch.exp(codec.gain.log_gain[LEVELS // 2])
    for head in (codec.context.first, *codec.context.heads):
        head.weight.mul_(0.1)
        head.bias[: codec.M] = torch.log((deviations * gain).clamp(min=SCALES[0]))
    return [layer.weight for layer in (*analysis, *synthesis)]
