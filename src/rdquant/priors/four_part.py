"""Four passes over space and channels together (DCVC-DC, Li et al. 2023, section 3.3).

Channels are cut into four groups and positions into the four of each 2x2 square. In pass k each group decodes
one position of the square, a different one for each group, so that every pass sees all groups and, from the
second on, neighbours of every position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadModel
from ..lazy import torch
from .base import Part, Prior, Run, RunArrays, V, register

if TYPE_CHECKING:
    from torch import Tensor

#: position in the square, ``2 row + column``, of group g in pass k: ``ORDER[k][g]``
ORDER = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1))


@register
@dataclass(frozen=True)
class FourPart(Prior):
    """ "parameters_k" of pass k takes the features and, but for the first, y_hat so far. Channels must be a
    multiple of 4, height and width of 2.
    """

    kind = "four_part"

    means: bool = True

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        later = {f"parameters_{k}": ("hyper_synthesis", "y_hat") for k in (1, 2, 3)}
        return {**super().networks, "parameters_0": ("hyper_synthesis",), **later}

    def check(self, channels: int, side: int) -> None:
        if channels % 4 or side % 2:
            raise BadModel(f"four parts need multiples of 4 channels and 2 rows, got {channels} and {side}")

    def outputs(self, channels: int) -> dict[str, int]:
        return {f"parameters_{k}": channels for k in range(4)}

    def _groups(self, height: int, width: int, k: int) -> np.ndarray:
        """What each group decodes in pass k, bool ``(4, height, width)``."""
        square = 2 * (np.arange(height) % 2)[:, None] + (np.arange(width) % 2)[None, :]
        return square[None] == np.array(ORDER[k])[:, None, None]

    def parts(self, channels: int, height: int, width: int) -> list[Part]:
        groups = (self._groups(height, width, k).reshape(4, -1) for k in range(4))
        return [Part(slice(0, channels), g.nonzero()[1].reshape(4, -1), step=2) for g in groups]

    def _inputs(self, features: V, y_hat: V, k: int) -> tuple[V, ...]:
        return (features, y_hat) if k else (features,)

    def walk(
        self, run: RunArrays, features: np.ndarray, y_hat: np.ndarray
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray | None]]:
        for k, part in enumerate(self.parts(*y_hat.shape[1:])):
            inputs = self._inputs(features, y_hat, k)
            yield part, *self.split(run(f"parameters_{k}", *inputs, part=part))

    def _joined(
        self,
        run: Run[Tensor],
        features: Tensor,
        y: Tensor,
        decoded: Callable[[Tensor, Tensor | None], Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Parameters of all passes; each sees ``decoded(y, its means)`` of those before it."""
        channels, height, width = y.shape[1:]
        known = torch.zeros_like(y)
        total: Tensor | None = None
        for k in range(4):
            groups = torch.from_numpy(self._groups(height, width, k)).to(y.device)
            own = groups.repeat_interleave(channels // 4, 0)
            out = run(f"parameters_{k}", *self._inputs(features, known.to(features.dtype), k))
            both = torch.cat([own, own]) if self.means else own
            total = out if total is None else torch.where(both, out, total)
            known = torch.where(own, decoded(y, self.split(out)[1]), known)
        assert total is not None
        return self.split(total)

    def all_parameters(
        self, run: Run[Tensor], features: Tensor, y_hat: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self._joined(run, features, y_hat, lambda y_hat, means: y_hat)

    def parameters_of_rounded(
        self, run: Run[Tensor], features: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        def decoded(y: Tensor, means: Tensor | None) -> Tensor:
            offset = y if means is None else y - means
            return y + (torch.round(offset) - offset).detach()

        return self._joined(run, features, y, decoded)
