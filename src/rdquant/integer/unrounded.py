"""The approximate synthesis: an integer network in float32, its activations not rounded.

Twice as fast as the exact one, for those who need the picture and not its last bit. Symbols are decoded
exactly all the same. Factors go into the weights, mixing stages into the convolution behind them; ranges
are kept. On another machine the result may be another float next to a rounding tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import ERROR_BITS, ROOT_SHIFT, SQUARE_SHIFT
from .network import IntegerNetwork
from .stages import Compensate, DivisiveNormalization, Stage
from .strips import in_strips


@dataclass
class _Layer:
    weight: Tensor  #: float32, in the layout that PyTorch's convolutions take
    bias: Tensor
    stage: Stage  #: whose nonlinearity and range follow
    gamma: Tensor | None = None
    beta: Tensor | None = None


def _scale(stage: Stage) -> Tensor:
    """From accumulators to what the nonlinearity takes, ``(O,)`` float64."""
    e = stage.epilogue
    if isinstance(e, DivisiveNormalization):
        return e.widen.as_float()
    if isinstance(e, Compensate):
        return e.factor.as_float() * 2.0**-ERROR_BITS
    return e.factor.as_float()


def _linear(stage: Stage) -> bool:
    """Whether a stage is a 1x1 matrix and nothing else, up to rounding and clipping."""
    e = stage.epilogue
    one = stage.conv.weight.shape[2] == 1 and stage.conv.stride == 1 and not bool(stage.conv.bias.any())
    plain = isinstance(e, Compensate) or (not isinstance(e, DivisiveNormalization) and e.negative is None)
    return one and plain


class UnroundedNetwork:
    """``network`` without roundings between its stages. The last stage is rounded and clipped."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.stages = network.stages
        self.layers: list[_Layer] = []
        matrix: Tensor | None = None
        for stage in network.stages[:-1]:
            scale = _scale(stage)
            if _linear(stage) and matrix is None:
                weight = stage.conv.weight.double()[:, :, 0, 0]
                matrix = (weight.T if stage.conv.transposed else weight) * scale[:, None]
                continue
            self._append(stage, scale, matrix)
            matrix = None
        self._append(network.stages[-1], _scale(network.stages[-1]), matrix)

    def _append(self, stage: Stage, scale: Tensor, before: Tensor | None) -> None:
        conv, e = stage.conv, stage.epilogue
        weight = conv.weight.double()
        if conv.transposed:
            weight = weight * scale[None, :, None, None]
            if before is not None:
                weight = torch.einsum("iokl,ij->jokl", weight, before)
        else:
            weight = weight * scale[:, None, None, None]
            if before is not None:
                weight = torch.einsum("oikl,ij->ojkl", weight, before)
        layer = _Layer(
            weight.float().contiguous(memory_format=torch.channels_last), (conv.bias * scale).float(), stage
        )
        if isinstance(e, DivisiveNormalization):
            # the factor behind the root goes into what the root is taken of
            root = 2.0**ROOT_SHIFT
            inside = (e.factor.as_float() * (root if e.inverse else 1 / root)) ** (2 if e.inverse else -2)
            gamma = e.gamma.double() * 2.0**-SQUARE_SHIFT * inside[:, None]
            layer.gamma = gamma[:, :, None, None].float()
            layer.beta = (e.beta.double() * inside).float()
        self.layers.append(layer)

    @torch.no_grad()
    def run(self, q: Tensor) -> Tensor:
        """``(B, I, H, W)`` holding integers -> the last stage's integers, float32."""
        first = self.stages[0].conv
        q = q.clamp(first.lo, first.hi).float().contiguous(memory_format=torch.channels_last)
        return in_strips(self.stages, q, self._run)

    def _run(self, x: Tensor) -> Tensor:
        last = self.stages[-1].epilogue
        return torch.floor(self.relaxed(x) + 0.5).clamp_(last.lo, last.hi)

    def relaxed(self, x: Tensor) -> Tensor:
        """``(B, I, H, W)`` float32 in the first stage's range -> the last stage's values, not rounded.

        Differentiable.
        """
        for layer in self.layers:
            conv, e = layer.stage.conv, layer.stage.epilogue
            padding = layer.weight.shape[2] // 2
            if conv.transposed:
                x = F.conv_transpose2d(
                    x, layer.weight, layer.bias, conv.stride, padding, output_padding=conv.stride - 1
                )
            else:
                x = F.conv2d(x, layer.weight, layer.bias, conv.stride, padding)
            if isinstance(e, DivisiveNormalization):
                assert layer.gamma is not None and layer.beta is not None
                norm = F.conv2d(x * x, layer.gamma, layer.beta)
                x = x * (norm.sqrt() if e.inverse else norm.rsqrt())
            elif not isinstance(e, Compensate) and e.negative is not None:
                slope = (e.negative.as_float() / e.factor.as_float()).float().reshape(1, -1, 1, 1)
                x = torch.where(x < 0, x * slope, x)
            if not isinstance(e, Compensate):
                x = x.clamp(e.lo, e.hi)
        return x
