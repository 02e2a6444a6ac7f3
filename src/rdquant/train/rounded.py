"""Training on rounded weights, so that the other layers and the latents' quantizer meet what will be shipped.

Each kernel is rounded to the nearest of its output channels' levels on the way through, its gradient passes
straight through (Bengio et al. 2013; as in LSQ, with ranges by the largest weight). Quantization afterwards
rounds the float weights more cleverly (`rdquant.weights.rounding`): what was trained on is about as far off.
"""

from __future__ import annotations

import types

import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.base import ste_round


def rounded(weight: Tensor, bits: int, output: int) -> Tensor:
    """``weight`` on ``2^bits - 1`` levels between +- the largest of each output channel (axis ``output``)."""
    axes = [i for i in range(weight.ndim) if i != output]
    step = weight.detach().abs().amax(axes, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ste_round(weight / step) * step


def round_weights(codec: FloatCodec, bits: int) -> FloatCodec:
    """From now on every convolution of ``codec`` rounds its weights in passing; they stay as they are."""

    def conv(self: nn.Conv2d, x: Tensor) -> Tensor:
        weight = rounded(self.weight, bits, 0)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    def deconv(self: nn.ConvTranspose2d, x: Tensor) -> Tensor:
        weight = rounded(self.weight, bits, 1)
        return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]

    for module in codec.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = types.MethodType(conv, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.ConvTranspose2d):
            module.forward = types.MethodType(deconv, module)  # type: ignore[method-assign]
    return codec
