"""Integer networks: stages run by the float64 reference or by the fast engine, with equal results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadModel, UsageError
from . import fast
from .arithmetic import V_LIMIT, compensate, gdn, requantize, squares
from .stages import X_HI, X_LO, Compensate, DivisiveNormalization, IntegerConv, Stage
from .strips import in_strips

#: "reference": float64 on any device. "fast": float32 convolutions proven exact, numba epilogues, CPU.
Engine = Literal["reference", "fast"]


def default_engine() -> Engine:
    """Fast if this machine passes the self-test, else the reference; ``RDQUANT_ENGINE`` overrides."""
    chosen = os.environ.get("RDQUANT_ENGINE", "auto")
    if chosen not in ("auto", "fast", "reference"):
        raise UsageError(f"RDQUANT_ENGINE must be auto, fast or reference, got {chosen!r}")
    if chosen == "reference":
        return "reference"
    return "fast" if fast.self_test() or chosen == "fast" else "reference"


def convolve(q: Tensor, conv: IntegerConv) -> Tensor:
    """``q: (B, I, H, W)`` float64 holding integers -> accumulators, float64, bias included."""
    weight, bias = conv.weight.to(q.device, torch.float64), conv.bias.to(q.device, torch.float64)
    padding = weight.shape[2] // 2
    if conv.transposed:
        acc = F.conv_transpose2d(
            q, weight, stride=conv.stride, padding=padding, output_padding=conv.stride - 1
        )
    else:
        acc = F.conv2d(q, weight, stride=conv.stride, padding=padding)
    # a library may pick an algorithm with intermediate fractions; its error is far below 1/2
    return torch.round(acc) + bias.reshape(1, -1, 1, 1)


def run_reference(stage: Stage, q: Tensor) -> Tensor:
    """One stage in float64: ``(B, I, H, W)`` -> ``(B, O, H', W')``."""
    acc, e = convolve(q, stage.conv), stage.epilogue
    if isinstance(e, Compensate):
        return compensate(requantize(acc, e.factor, -V_LIMIT, V_LIMIT), e.lo, e.hi, e.offset, e.feedback)
    if not isinstance(e, DivisiveNormalization):
        return requantize(acc, e.factor, e.lo, e.hi, e.negative)
    x = requantize(acc, e.widen, X_LO, X_HI)
    gamma = e.gamma.to(q.device, torch.float64)[:, :, None, None]
    norm = torch.round(F.conv2d(squares(x), gamma)) + e.beta.to(q.device, torch.float64).reshape(1, -1, 1, 1)
    return gdn(x, norm, e.inverse, e.factor, e.lo, e.hi)


@dataclass(frozen=True)
class IntegerNetwork:
    """A chain of stages: one of g_a, g_s, h_a, h_s."""

    stages: tuple[Stage, ...]

    def check(self) -> None:
        """Raise `BadModel` unless each stage holds its bounds and fits the one before it."""
        if not self.stages:
            raise BadModel("a network needs at least one stage")
        for stage in self.stages:
            stage.check()
        for a, b in zip(self.stages, self.stages[1:], strict=False):
            if a.conv.out_channels != b.conv.in_channels:
                raise BadModel(
                    f"{a.name} gives {a.conv.out_channels} channels, {b.name} takes {b.conv.in_channels}"
                )
            least, most = a.epilogue.reach()
            if least < b.conv.lo or most > b.conv.hi:
                raise BadModel(
                    f"{a.name} gives [{least}, {most}], {b.name} was proven for [{b.conv.lo}, {b.conv.hi}]"
                )

    def run(self, q: Tensor, engine: Engine) -> Tensor:
        """``q: (B, I, H, W)`` of any dtype, holding integers -> the last stage's integers.

        Values outside the first stage's range are clipped to it: no bound is ever broken. Large inputs go
        through in strips, which changes nothing but the memory it takes.
        """
        first = self.stages[0].conv

        def run(part: Tensor) -> Tensor:
            if engine == "fast":
                return fast.run(self.stages, part.clamp(first.lo, first.hi))
            out = part.double().clamp(first.lo, first.hi)
            for stage in self.stages:
                out = run_reference(stage, out)
            return out

        return in_strips(self.stages, q, run)
