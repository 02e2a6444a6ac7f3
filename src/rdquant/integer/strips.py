"""Large pictures through a network in strips of rows: the same integers in bounded memory.

Each strip takes as many rows more on either side as its outputs depend on. Integers do not depend on how
a tensor is cut, so strips join exactly; floats of other strip heights may differ in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .stages import Stage

#: positions of a network's widest tensor, at its highest resolution, that go through at a time
POSITIONS = 2**20


def halo(stages: Sequence[Stage]) -> int:
    """Rows of input on either side of a strip that its outputs depend on."""
    rows = 0
    for stage in reversed(stages):
        reach = stage.conv.weight.shape[2] // 2
        rows = (
            -(-(rows + reach) // stage.conv.stride)
            if stage.conv.transposed
            else rows * stage.conv.stride + reach
        )
    return rows


def in_strips(
    stages: Sequence[Stage], q: Tensor, run: Callable[[Tensor], Tensor], positions: int = POSITIONS
) -> Tensor:
    """``run(q)`` of a network that consists of ``stages``, strip by strip where q is large.

    ``q: (B, I, H, W)``, H a multiple of the network's downsampling.
    """
    up = math.prod(s.conv.stride for s in stages if s.conv.transposed)
    down = math.prod(s.conv.stride for s in stages if not s.conv.transposed)
    height, row = q.shape[2], q.shape[0] * q.shape[3] * up**2
    rows = max(1, positions // row // down) * down
    beyond = -(-halo(stages) // down) * down
    if height <= rows + 2 * beyond:
        return run(q)
    parts = []
    for start in range(0, height, rows):
        end, top = min(height, start + rows), max(0, start - beyond)
        out = run(q[:, :, top : min(height, end + beyond)])
        parts.append(out[:, :, (start - top) * up // down : (end - top) * up // down].clone())
    return torch.cat(parts, 2)
