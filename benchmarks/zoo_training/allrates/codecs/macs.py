"""Multiplications a pixel, counted on the modules as they run."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn

from rdquant.codecs.layers import GDN

from .base import AllRatesCodec

ENCODER_ONLY = ("g_a", "h_a")


def _module_macs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    if isinstance(module, nn.ConvTranspose2d):
        return inputs[0].numel() // inputs[0].shape[0] * module.weight[0].numel()
    if isinstance(module, nn.Conv2d):
        return output.numel() // output.shape[0] * module.weight[0].numel()
    if isinstance(module, GDN):
        return inputs[0].numel() // inputs[0].shape[0] * module.gamma.shape[0]
    return 0


@torch.no_grad()
def kmacs(codec: AllRatesCodec, side: int = 256) -> dict[str, float]:
    """kMAC a pixel of every network, and of ``decoder`` (all but g_a and h_a) and ``encoder`` together.

    An encoder runs h_s and the prior too; they count for the decoder alone.
    """
    total: Counter[str] = Counter()

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        total[name] += _module_macs(module, inputs, output)

    handles = [
        m.register_forward_hook(partial(add, name.split(".")[0]))
        for name, m in codec.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | GDN)
    ]
    codec(torch.rand(1, 3, side, side), torch.tensor([3.0]), training=False)
    for handle in handles:
        handle.remove()
    out = {name: count / side**2 / 1000 for name, count in total.items()}
    out["encoder"] = sum(v for k, v in out.items() if k in ENCODER_ONLY)
    out["decoder"] = sum(v for k, v in out.items() if k not in (*ENCODER_ONLY, "encoder"))
    return out
