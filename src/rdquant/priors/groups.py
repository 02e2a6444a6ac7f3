"""Channel groups, each from those before it, in one or two passes: ELIC (He et al. 2022), checkerboard (He et
al. 2021).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadModel
from ..lazy import torch
from .base import Part, Prior, Run, RunArrays, V, checkerboard, register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class ChannelGroups(Prior):
    """``groups``: channels of each. With ``checkerboard`` a group is decoded in two passes, first the
    positions with an even ``row + column`` (anchors), then the others, which see the anchors next to them.

    Networks, g counting groups from 0: "channel_context_g" over the groups before (not of group 0),
    "spatial_context_g" over the group's anchors (with checkerboard), "parameters_g" over the contexts, the
    spatial one first, and the features; with checkerboard it must be pointwise. For anchors the spatial
    context is zero. One group with checkerboard is the checkerboard model.
    """

    kind = "channel_groups"

    groups: tuple[int, ...]
    checkerboard: bool = True
    means: bool = True

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups must be positive, got {self.groups}")

    def _inputs(self, g: int) -> tuple[str, ...]:
        own = (f"spatial_context_{g}",) if self.checkerboard else ()
        before = (f"channel_context_{g}",) if g else ()
        return (*own, *before, "hyper_synthesis")

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        found = dict(super().networks)
        for g in range(len(self.groups)):
            for name in self._inputs(g)[:-1]:
                found[name] = ("y_hat",)
            found[f"parameters_{g}"] = self._inputs(g)
        return found

    @property
    def pointwise(self) -> tuple[str, ...]:
        return tuple(f"parameters_{g}" for g in range(len(self.groups))) if self.checkerboard else ()

    def seen(self, name: str, channels: int) -> int:
        kind, _, g = name.rpartition("_")
        return self.groups[int(g)] if kind == "spatial_context" else sum(self.groups[: int(g)])

    def check(self, channels: int, side: int) -> None:
        if sum(self.groups) != channels:
            raise BadModel(f"groups {self.groups} must be {channels} channels together")

    def outputs(self, channels: int) -> dict[str, int]:
        return {f"parameters_{g}": n for g, n in enumerate(self.groups)}

    def _slices(self) -> list[slice]:
        ends = list(itertools.accumulate(self.groups))
        return [slice(end - n, end) for end, n in zip(ends, self.groups, strict=True)]

    def parts(self, channels: int, height: int, width: int) -> list[Part]:
        if not self.checkerboard:
            return [Part(s) for s in self._slices()]
        passes = [np.flatnonzero(checkerboard(height, width, p))[None] for p in (0, 1)]
        return [Part(s, positions) for s in self._slices() for positions in passes]

    def walk(
        self, run: RunArrays, features: np.ndarray, y_hat: np.ndarray
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray | None]]:
        parts = iter(self.parts(*y_hat.shape[1:]))
        for g, own in enumerate(self._slices()):
            rest = (*self._before(run, y_hat, g), features)
            if self.checkerboard:
                # the context of anchors, zeros: how wide it is, a single position says
                n, (b, _, h, w) = own.stop - own.start, y_hat.shape
                width = run(f"spatial_context_{g}", np.zeros((1, n, 1, 1), y_hat.dtype)).shape[1]
                nothing = np.zeros((b, width, h, w), features.dtype)
                yield self.of(next(parts), run(f"parameters_{g}", nothing, *rest))
                rest = (run(f"spatial_context_{g}", y_hat[:, own]), *rest)
            yield self.of(next(parts), run(f"parameters_{g}", *rest))

    def _before(self, run: Run[V], y_hat: V, g: int) -> tuple[V, ...]:
        return (run(f"channel_context_{g}", y_hat[:, : self._slices()[g].start]),) if g else ()

    def all_parameters(
        self, run: Run[Tensor], features: Tensor, y_hat: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        anchors = torch.from_numpy(checkerboard(y_hat.shape[2], y_hat.shape[3], 0)).to(y_hat.device)
        found = []
        for g, own in enumerate(self._slices()):
            inputs = (*self._before(run, y_hat, g), features)
            if self.checkerboard:
                inputs = (run(f"spatial_context_{g}", y_hat[:, own] * anchors) * ~anchors, *inputs)
            found.append(self.split(run(f"parameters_{g}", *inputs)))
        scales = torch.cat([s for s, _ in found], 1)
        return scales, torch.cat([m for _, m in found if m is not None], 1) if self.means else None
