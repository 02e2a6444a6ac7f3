"""Muon (Jordan et al. 2024) for kernels, matrices of one shape orthogonalized together.

Updates have the root-mean-square of Adam's (Liu et al. 2025, arXiv 2502.16982): one rate serves both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..hardware import multiplies_bf16

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """``g: (K, R, C)`` -> about the nearest semi-orthogonal matrix of each: Newton-Schulz, in bfloat16 where
    that is fast.
    """
    a, b, c = QUINTIC
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if multiplies_bf16(g.device):
        x = x.bfloat16()
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, gram, beta=a) if tall else torch.baddbmm(x, gram, x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized per kernel seen as a matrix ``(first axis, the rest)``.

    The momenta of all kernels of one shape are one tensor, kept as the state of the first of them.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)  # all kernels have gradients in every step
            for shape, params in shapes.items():
                g = torch.stack([p.grad.reshape(shape[0], -1) for p in params if p.grad is not None])
                state = self.state[params[0]]
                if not state:
                    state["momentum"] = torch.zeros_like(g)
                g.lerp_(state["momentum"].lerp_(g, 1 - group["momentum"]), group["momentum"])
                scale = 0.2 * max(g.shape[1:]) ** 0.5
                updates = orthogonalize(g).float().mul_(-group["lr"] * scale)
                torch._foreach_add_(params, [u.reshape(shape) for u in updates])
