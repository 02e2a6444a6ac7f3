"""Which module is which operation: what capture stops at."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from .operations import Convolution, DivisiveNormalization, Operation, Pointwise, Shuffle, Unshuffle


def operations_of(m: nn.Module) -> list[Operation] | None:
    """The operations that ``m`` is, one after another; none for an identity. None: it is no operation.

    Raises `CaptureError` for a module that would be one with other settings.
    """
    found = _operations(m)
    return None if found is None else [_frozen(op) for op in found]


def _operations(m: nn.Module) -> list[Operation] | None:
    if hasattr(m, "operation"):
        return [m.operation()]  # type: ignore[operator]
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
        plain = type(m).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward)
        return [_convolution(m)] if plain or _mask(m) is not None else None
    gamma, beta = (getattr(m, f"{name}_reparam", None) for name in ("gamma", "beta"))
    if gamma is not None and beta is not None and type(m).__name__ == "GDN":
        return [DivisiveNormalization(bool(m.inverse), gamma(m.gamma), beta(m.beta))]
    if isinstance(m, nn.PixelShuffle):
        return [Shuffle(m.upscale_factor)]
    if isinstance(m, nn.PixelUnshuffle):
        return [Unshuffle(m.downscale_factor)]
    if isinstance(m, nn.Identity | nn.Dropout | nn.Dropout2d):
        return []
    function = _pointwise(m)
    return None if function is None else [function]


def _pointwise(m: nn.Module) -> Pointwise | None:
    if isinstance(m, nn.Hardtanh):  # ReLU6 is one
        return Pointwise("clamp", (m.min_val, m.max_val))
    if isinstance(m, nn.LeakyReLU):
        return Pointwise("leaky_relu", (m.negative_slope,))
    if isinstance(m, nn.GELU) and m.approximate != "none":
        raise CaptureError(f"GELU approximated by {m.approximate!r} is not supported; the exact one is")
    for kind, name in (
        (nn.ReLU, "relu"),
        (nn.GELU, "gelu"),
        (nn.SiLU, "silu"),
        (nn.Sigmoid, "sigmoid"),
        (nn.Tanh, "tanh"),
    ):
        if isinstance(m, kind):
            return Pointwise(name)
    return None


def _mask(m: nn.Module) -> Tensor | None:
    found = getattr(m, "mask", None)
    return found if isinstance(found, Tensor) else None


def _convolution(m: nn.Conv2d | nn.ConvTranspose2d) -> Convolution:
    mask = _mask(m)
    weight = m.weight if mask is None else m.weight * mask
    (k, other), (s, t) = m.kernel_size, m.stride
    padding = (k // 2, k // 2) if m.padding == "same" and s == 1 and k % 2 else m.padding
    transposed = isinstance(m, nn.ConvTranspose2d)
    fits = k == other and s == t and tuple(m.dilation) == (1, 1) and m.padding_mode == "zeros"
    if not fits or isinstance(padding, str) or padding[0] != padding[1] or not 1 <= k - 2 * padding[0] <= s:
        raise CaptureError(
            "a convolution must have a square kernel k, zero padding p, stride s with 1 <= k - 2 p <= s, and "
            f"no dilation, so that a side becomes exactly an s-th; got {m}"
        )
    p = padding[0]
    beyond = s - k + 2 * p
    if transposed and tuple(m.output_padding) != (beyond, beyond):
        raise CaptureError(
            f"output_padding must be {beyond}, so that a side becomes exactly {s}-fold; got {m}"
        )
    bias = torch.zeros(m.out_channels) if m.bias is None else m.bias
    return Convolution(weight, bias, s, p, transposed, m.groups)


def _frozen(op: Operation) -> Operation:
    """With copies of its tensors, float32 on the CPU, without gradients."""
    tensors = {
        f.name: value.detach().cpu().float().clone()
        for f in dataclasses.fields(op)  # type: ignore[arg-type]
        if isinstance(value := getattr(op, f.name), Tensor)
    }
    return dataclasses.replace(op, **tensors)  # type: ignore[type-var]
