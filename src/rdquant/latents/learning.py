"""What learning from true levels needs: the encoder's search with networks that move, and bits with slopes.

What has no derivative gets one so:

- a table's bits are interpolated to the next scale's, which gives them a slope in the scale;
- the slope in y and in its mean is that between two neighbouring levels, around y and a uniform noise:
  without the noise nothing would pull a mean towards the many elements whose level is zero. TCQ takes it from
  the tables of quantizer 0: the levels of quantizer 1 have unequal widths, so that their bits do not follow
  the density.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.layers import lower_bound
from ..entropy import scale_table
from ..priors import Part
from .coding import LatentCoding, coded_with
from .parts import walk
from .rates import SymbolRates


@dataclass(frozen=True)
class InTraining(Codec):
    """A codec whose networks are in training: ``runner`` runs them on arrays, as `Codec.run`."""

    runner: Callable[..., np.ndarray] | None = None

    @classmethod
    def of(cls, codec: Codec, runner: Callable[..., np.ndarray]) -> InTraining:
        fields = {f.name: getattr(codec, f.name) for f in dataclasses.fields(Codec)}
        return cls(**fields, runner=runner)

    def run(
        self, name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None
    ) -> np.ndarray:
        assert self.runner is not None
        out = self.runner(name, *inputs, valid=valid)
        return out if part is None else part.pick(out)


def true_levels(
    codec: Codec, features: np.ndarray, y: np.ndarray, coding: LatentCoding, stored: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, list[Part]]:
    """``(levels, y_hat, parts)`` as an encoder finds them; ``stored``: the levels, if they are known."""

    def choose(part: Part, tables: np.ndarray, means: np.ndarray) -> np.ndarray:
        if stored is not None:
            return part.take(stored)
        return coding.levels(codec, part.take(y), means, tables, part.channels)

    y_hat, levels = codec.blank(len(y), *y.shape[2:]), np.zeros(y.shape, np.int32)
    parts = []
    for part, found, _, _ in walk(codec, features, y_hat, coding, choose):
        part.put(found, levels)
        parts.append(part)
    return levels, y_hat, parts


class _WithSlopes(torch.autograd.Function):
    """``value``, with given slopes in ``position`` and ``offset``. All of one shape."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, offset: Tensor, value: Tensor, *slopes: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        by_position, by_offset = ctx.saved_tensors
        return grad * by_position, grad * by_offset, None, None, None


class LevelBits:
    """Bits of levels by the integer tables that the coder really uses. ``coding``, ``codec``: of which the
    tables and the distance of levels count.
    """

    def __init__(self, coding: LatentCoding, codec: Codec) -> None:
        scales = scale_table()
        self._lowest, self._pitch = float(scales[0]), math.log(scales[1] / scales[0])
        self._last = len(scales) - 1
        self._rates = SymbolRates.of(coding.tables(codec))
        steps = 1.0 if coding.spacing is None else coding.spacing / codec.quantizer.unit
        #: of a table's integers, in y as the networks have it
        self._spacing = steps * codec.quantizer.step

    def __call__(
        self,
        coding: LatentCoding,
        levels: np.ndarray,
        parts: list[Part],
        y: Tensor,
        scales: Tensor,
        means: Tensor,
    ) -> Tensor:
        """Of each of ``levels``, as `true_levels` gave them; with slopes. All are ``(B, M, H, W)``."""
        wanted = lower_bound(scales / self._spacing, self._lowest)
        position = (torch.log(wanted / self._lowest) / self._pitch).clamp(max=self._last)
        offset = (y - means) / self._spacing
        found = self._found(coding, levels, parts, position.detach().cpu(), offset.detach().cpu())
        return _WithSlopes.apply(position, offset, *(t.to(y.device) for t in found))

    @torch.no_grad()
    def _found(
        self, coding: LatentCoding, levels: np.ndarray, parts: list[Part], position: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bits, and their slopes in ``position`` (of the table) and in ``offset``."""
        low = position.floor().clamp(0, self._last - 1)
        tables = low.to(torch.int32).numpy()
        stated = np.empty(tables.shape, np.int32)  # the quantizer's state considered
        for part in parts:
            own = part.take(levels)
            found = coded_with(coding, own, part.take(tables))
            part.put(found.reshape(own.shape), stated)
        flat, indexes, plain = (t.reshape(-1) for t in (levels, stated, tables))
        below = torch.floor(offset + torch.rand_like(offset) - 0.5).to(torch.int32).reshape(-1).numpy()
        here, next_table, left, right = (
            torch.from_numpy(self._rates.of_symbols(k, t)).reshape(levels.shape)
            for k, t in ((flat, indexes), (flat, indexes + 1), (below, plain), (below + 1, plain))
        )
        return here + (position - low) * (next_table - here), next_table - here, right - left
