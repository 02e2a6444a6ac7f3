"""Convolution and transposed convolution, grouped or not: the matrix product of every network.

A masked convolution is one whose masked weights are zero; a matrix product is one of 1x1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...errors import BadModel
from ...lazy import F
from ..arithmetic import ACC_LIMIT, by_channel
from .base import Operation, Port, Rounding, Values, check_array, check_fits, largest, tensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Convolution(Operation):
    """``acc = conv(q, weight) + bias`` or its transpose, in exact integers.

    ``weight: (O, I / groups, k, k)``, or ``(I, O / groups, k, k)`` when ``transposed``; ``bias: (O,)``.
    Integers: int16 and int64. Padding is zeros; a side of the input must be a multiple of ``stride``, and
    then has a ``stride``-th of its positions, or, transposed, ``stride`` times as many.
    """

    kind = "convolution"
    integers: ClassVar = {"weight": np.int16, "bias": np.int64, "levels": np.int16}

    weight: Values
    bias: Values
    stride: int = 1
    padding: int = 0
    transposed: bool = False
    groups: int = 1
    bits: int = 0
    """Width of a weight in a file. Without ``levels`` the values lie in +-(2^(bits-1) - 1)."""
    levels: Values | None = None
    """The integers that a weight can be, rising, int16, at most 2^bits; None for the plain range."""

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups)

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0])

    @property
    def kernel_size(self) -> int:
        return int(self.weight.shape[2])

    @property
    def is_matrix(self) -> bool:
        """Whether this is a product with one matrix at each position."""
        return self.kernel_size == 1 and self.stride == 1 and self.groups == 1

    @property
    def up(self) -> int:
        return self.stride if self.transposed else 1

    @property
    def down(self) -> int:
        return 1 if self.transposed else self.stride

    @property
    def halo(self) -> int:
        reach = max(self.padding, self.kernel_size - 1 - self.padding)
        return -(-reach // self.stride) if self.transposed else reach

    def channels(self, *channels: int) -> int:
        if channels[0] != self.in_channels:
            raise BadModel(f"a convolution of {self.in_channels} channels is given {channels[0]}")
        return self.out_channels

    def convolve(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """In the type of ``x``."""
        weight = tensor(self.weight, x)
        if self.transposed:
            beyond = self.stride - self.kernel_size + 2 * self.padding
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, beyond, self.groups)
        if self.kernel_size == 1 and self.stride > 1:
            # of the positions that it reads: the backward pass of PyTorch 2.13's own, channels last and of
            # fewer than 16 channels, writes beyond its buffers (oneDNN, with AVX2 and AVX-512)
            return F.conv2d(x[..., :: self.stride, :: self.stride], weight, bias, 1, 0, 1, self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)

    def real(self, *x: Tensor) -> Tensor:
        return self.convolve(x[0], tensor(self.bias, x[0]))

    def exact(self, *q: np.ndarray) -> np.ndarray:
        """Tap after tap: what it multiplies, and where it adds that."""
        (b, _, h, w), s, k, p = q[0].shape, self.stride, self.kernel_size, self.padding
        up, down = (s, 1) if self.transposed else (1, s)
        rows, columns = (
            side * s if self.transposed else (side + 2 * p - k) // s + 1 for side in q[0].shape[2:]
        )
        kernel = self.by_output().astype(np.float64)
        kernel = kernel.reshape(self.groups, -1, *kernel.shape[1:])  # (groups, O / groups, I / groups, k, k)
        x = q[0].reshape(b, self.groups, -1, h, w)
        around = (0, 0) if self.transposed else (p, p)
        x = np.pad(x, ((0, 0), (0, 0), (0, 0), around, around))
        room = max((h - 1) * up + k, rows + p), max((w - 1) * up + k, columns + p)
        out = np.zeros((b, self.groups, kernel.shape[1], *(room if self.transposed else (rows, columns))))
        for i in range(k):
            for j in range(k):
                if self.transposed:
                    taken, to = x, (slice(i, i + (h - 1) * up + 1, up), slice(j, j + (w - 1) * up + 1, up))
                else:
                    last = i + (rows - 1) * down + 1, j + (columns - 1) * down + 1
                    taken, to = x[..., i : last[0] : down, j : last[1] : down], (slice(None), slice(None))
                product = kernel[..., i, j] @ taken.reshape(*taken.shape[:3], -1)
                out[..., to[0], to[1]] += product.reshape(*product.shape[:3], *taken.shape[3:])
        if self.transposed:
            out = out[..., p : p + rows, p : p + columns]
        return out.reshape(b, -1, rows, columns) + by_channel(self.bias)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        return self.real(*q)

    def by_output(self) -> Values:
        """The kernel as ``(O, I / groups, k, k)``, whichever way it is stored."""
        if not self.transposed:
            return self.weight
        i, o, *taps = self.weight.shape
        grouped = self.weight.reshape(self.groups, i // self.groups, o, *taps).swapaxes(1, 2)
        return grouped.reshape(self.groups * o, i // self.groups, *taps)

    def stored_as(self, by_output: Values) -> Values:
        """The inverse of `by_output`: ``(O, I / groups, k, k)`` as this operation stores it."""
        if not self.transposed:
            return by_output
        o, i, *taps = by_output.shape
        grouped = by_output.reshape(self.groups, o // self.groups, i, *taps).swapaxes(1, 2)
        return grouped.reshape(self.groups * i, o // self.groups, *taps)

    def accumulator_bound(self, port: Port) -> int:
        """Largest |acc - bias| that any input in range can reach, partial sums in any order included.

        A transposed convolution of stride s reaches each output through the taps of one phase only.
        """
        magnitude = np.abs(self.by_output().astype(np.float64)) * max(-port.lo, port.hi)
        if not self.transposed:
            return int(magnitude.sum((1, 2, 3)).max())
        taps, s = magnitude.sum(1), self.stride
        return int(max(taps[:, i::s, j::s].sum((1, 2)).max() for i in range(s) for j in range(s)))

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        if self.weight.dtype != np.int16 or self.weight.ndim != 4:
            raise BadModel(
                f"{name}.weight must be int16 with 4 axes, got {self.weight.dtype} {self.weight.ndim}"
            )
        k, s = self.kernel_size, self.stride
        if self.weight.shape[3] != k or not 1 <= k <= 31:
            raise BadModel(f"{name}.weight must have a square kernel, got {tuple(self.weight.shape[2:])}")
        if not 1 <= s <= 16 or not 0 <= self.padding < k or not 1 <= k - 2 * self.padding <= s:
            raise BadModel(f"{name}: kernel {k}, stride {s} and padding {self.padding} do not fit")
        if self.groups < 1 or not self.weight.shape[0] or self.weight.shape[0] % self.groups:
            raise BadModel(f"{name}.groups must divide {self.weight.shape[0]} channels, got {self.groups}")
        check_array(f"{name}.bias", self.bias, np.int64, (self.out_channels,))
        if not 2 <= self.bits <= 16:
            raise BadModel(f"{name}.bits must be 2..16, got {self.bits}")
        self._check_levels(name)
        if port.channels != self.in_channels:
            raise BadModel(f"{name} takes {self.in_channels} channels, got {port.channels}")
        check_fits(name, port)
        bound = self.accumulator_bound(port) + largest(self.bias)
        if bound >= ACC_LIMIT:
            raise BadModel(f"{name} can accumulate {bound}, over the contract's 2^36")
        return Port(self.out_channels, -bound, bound)

    def _check_levels(self, name: str) -> None:
        if self.levels is None:
            limit = 2 ** (self.bits - 1) - 1
            top = largest(self.weight)
            if top > limit:
                raise BadModel(f"{name}.weight holds {top}, over the {limit} of {self.bits} bits")
            return
        levels = self.levels
        if levels.dtype != np.int16 or levels.ndim != 1 or not 1 <= len(levels) <= 2**self.bits:
            raise BadModel(
                f"{name}.levels must be 1 to {2**self.bits} int16, got {levels.dtype} {tuple(levels.shape)}"
            )
        if (levels[1:] <= levels[:-1]).any():
            raise BadModel(f"{name}.levels must rise strictly")
        if not np.isin(self.weight, levels).all():
            raise BadModel(f"{name}.weight holds integers that are not in its levels")
