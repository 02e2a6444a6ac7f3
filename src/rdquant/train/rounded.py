"""Training on rounded weights, so that the other layers and the latents' quantizer meet what will be shipped.

Each kernel is rounded to the nearest of its output channels' levels on the way through, its gradient passes
straight through (Bengio et al. 2013; as in LSQ, with ranges by the largest weight). Quantization afterwards
rounds the float weights more cleverly (`rdquant.passes.rounding`): what was trained on is about as far off.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.base import ste_round


def rounded(weight: Tensor, bits: int, output: int) -> Tensor:
    """``weight`` on ``2^bits - 1`` levels between +- the largest of each output channel (axis ``output``)."""
    axes = [i for i in range(weight.ndim) if i != output]
    step = weight.detach().abs().amax(axes, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ste_round(weight / step) * step


def _rounding(kind: type[nn.Module], bits: int) -> type[nn.Module]:
    """``kind``, a convolution, whose ``weight`` reads as rounded; what it stores is what was stored."""
    output = 1 if issubclass(kind, nn.ConvTranspose2d) else 0

    def weight(self: nn.Module) -> Tensor:
        stored, mask = self._parameters["weight"], getattr(self, "mask", None)
        assert stored is not None
        return rounded(stored if mask is None else stored * mask, bits, output)

    return type(f"Rounded{kind.__name__}", (kind,), {"weight": property(weight)})


def round_weights(codec: FloatCodec, bits: int) -> FloatCodec:
    """From now on every convolution of ``codec`` rounds its weights in passing; they stay as they are."""
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.__class__ = _rounding(type(module), bits)  # type: ignore[assignment]
    return codec
