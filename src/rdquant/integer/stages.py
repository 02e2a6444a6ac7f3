"""What an integer network is made of: a convolution and what happens to its accumulators.

A stage is ``IntegerConv`` followed by one epilogue:

* `Requantize`: to activations in [lo, hi], with an optional second factor for negative values (leaky
  rectifier). A plain rectifier is ``lo = 0``.
* `DivisiveNormalization`: GDN or inverse GDN, then to activations in [lo, hi].
* `Compensate`: to activations in a range of each channel's own, rounded one channel after another.

An activation is an integer q in [lo, hi] with ``lo <= 0 <= hi``; its real value is ``q * scale``.
There is no zero point in the arithmetic: storing ``q - lo`` as unsigned bytes is an engine's affair.
Each class checks its own invariants and names its tensors for the model file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadModel
from .arithmetic import (
    ACC_LIMIT,
    ERROR_LIMIT,
    FEEDBACK_BITS,
    FEEDBACK_SUM_LIMIT,
    GDN_BITS,
    GDN_SHIFT_LIMIT,
    NORM_LIMIT,
    V_LIMIT,
    Multiplier,
)

LATENT_LIMIT = 2**15


def _check_tensor(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if t.dtype != dtype or tuple(t.shape) != shape:
        raise BadModel(f"{name} must be {dtype} {shape}, got {t.dtype} {tuple(t.shape)}")


def _check_range(name: str, lo: int, hi: int) -> None:
    if not -(2**15) <= lo <= 0 <= hi <= 2**16 - 1 or lo == hi:
        raise BadModel(f"{name} must have lo <= 0 <= hi within 16 bits, got [{lo}, {hi}]")


@dataclass(frozen=True)
class IntegerConv:
    """``acc = conv(q, weight) + bias`` or its transpose, in exact integers.

    ``weight``: int16, ``(O, I, k, k)``, or ``(I, O, k, k)`` when ``transposed``. ``bias``: int64 ``(O,)``.
    Padding is ``k // 2`` zeros, output padding of a transposed one ``stride - 1``. ``lo, hi``: range of
    the incoming activations.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    transposed: bool
    lo: int
    hi: int
    bits: int
    """Width of a weight in a file. Without ``levels`` the values lie in +-(2^(bits-1) - 1)."""
    levels: Tensor | None = None
    """The integers that a weight can be, rising, int16, at most 2^bits; None for the plain range."""

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0 if self.transposed else 1]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1 if self.transposed else 0]

    def accumulator_bound(self) -> int:
        """Largest |acc - bias| that any input in range can reach, partial sums in any order included.

        A transposed convolution of stride s reaches each output through the taps of one phase only.
        """
        w = self.weight.double()
        magnitude = w.abs() * float(max(-self.lo, self.hi))
        if not self.transposed:
            return int(magnitude.sum((1, 2, 3)).max())
        taps = magnitude.sum(0)  # (O, k, k)
        s = self.stride
        phases = [taps[:, i::s, j::s].sum((1, 2)).max() for i in range(s) for j in range(s)]
        return int(torch.stack(phases).max())

    def check(self, name: str) -> None:
        """Raise `BadModel` unless every bound of the contract holds."""
        if self.weight.dtype != torch.int16 or self.weight.ndim != 4:
            raise BadModel(
                f"{name}.weight must be int16 with 4 axes, got {self.weight.dtype} {self.weight.ndim}"
            )
        k = self.weight.shape[2]
        if self.weight.shape[3] != k or k % 2 == 0:
            raise BadModel(
                f"{name}.weight must have an odd square kernel, got {tuple(self.weight.shape[2:])}"
            )
        _check_tensor(f"{name}.bias", self.bias, torch.int64, (self.out_channels,))
        if not 2 <= self.bits <= 16:
            raise BadModel(f"{name}.bits must be 2..16, got {self.bits}")
        self._check_levels(name)
        if self.stride not in (1, 2):
            raise BadModel(f"{name}.stride must be 1 or 2, got {self.stride}")
        _check_range(f"{name} input range", self.lo, self.hi)
        bound = self.accumulator_bound() + int(self.bias.abs().max())
        if bound >= ACC_LIMIT:
            raise BadModel(f"{name} can accumulate {bound}, over the contract's 2^36")

    def _check_levels(self, name: str) -> None:
        if self.levels is None:
            limit = 2 ** (self.bits - 1) - 1
            largest = int(self.weight.to(torch.int32).abs().max())
            if largest > limit:
                raise BadModel(f"{name}.weight holds {largest}, over the {limit} of {self.bits} bits")
            return
        levels = self.levels
        if levels.dtype != torch.int16 or levels.ndim != 1 or not 1 <= len(levels) <= 2**self.bits:
            raise BadModel(
                f"{name}.levels must be 1 to {2**self.bits} int16, got {levels.dtype} {tuple(levels.shape)}"
            )
        wide = levels.to(torch.int32)
        if bool((wide[1:] <= wide[:-1]).any()):
            raise BadModel(f"{name}.levels must rise strictly")
        used = torch.unique(self.weight.to(torch.int32))
        if not bool(torch.isin(used, wide).all()):
            raise BadModel(f"{name}.weight holds integers that are not in its levels")


@dataclass(frozen=True)
class Requantize:
    """Accumulators to activations; see `rdquant.integer.arithmetic.requantize`."""

    factor: Multiplier
    negative: Multiplier | None
    lo: int
    hi: int

    def reach(self) -> tuple[int, int]:
        """The least and the largest integer that can come out."""
        return self.lo, self.hi

    def check(self, name: str, channels: int) -> None:
        _check_range(name, self.lo, self.hi)
        self.factor.check(f"{name}.factor", channels)
        if self.negative is not None:
            self.negative.check(f"{name}.negative", channels)


@dataclass(frozen=True)
class Compensate:
    """Accumulators to activations, rounding errors passed on from channel to channel.

    See `rdquant.integer.arithmetic.compensate`; ``factor`` leads to units of ``2^-ERROR_BITS`` activations.
    """

    factor: Multiplier
    lo: int
    hi: int
    offset: Tensor
    """int32 ``(C,)``: the range of channel c is ``[lo + offset[c], hi + offset[c]]``, and holds 0."""
    feedback: Tensor
    """int16 ``(C, C)``, zero on the diagonal and below."""

    def ends(self) -> tuple[Tensor, Tensor]:
        """Each channel's least and largest activation, two ``(C,)`` float64."""
        return self.lo + self.offset.double(), self.hi + self.offset.double()

    def reach(self) -> tuple[int, int]:
        """The least and the largest integer of any channel."""
        return self.lo + int(self.offset.min()), self.hi + int(self.offset.max())

    def check(self, name: str, channels: int) -> None:
        _check_range(name, self.lo, self.hi)
        _check_tensor(f"{name}.offset", self.offset, torch.int32, (channels,))
        least, most = int(self.offset.min()), int(self.offset.max())
        if self.lo + most > 0 or self.hi + least < 0:
            raise BadModel(f"{name}.offset in {least}..{most} leaves a range [lo, hi] without 0")
        _check_range(f"{name} with its offsets", *self.reach())
        self.factor.check(f"{name}.factor", channels)
        _check_tensor(f"{name}.feedback", self.feedback, torch.int16, (channels, channels))
        if bool(torch.tril(self.feedback.to(torch.int32)).any()):
            raise BadModel(f"{name}.feedback must be zero on the diagonal and below")
        reached = int(self.feedback.to(torch.int64).abs().sum(0).max()) * ERROR_LIMIT
        if reached + V_LIMIT * 2**FEEDBACK_BITS >= FEEDBACK_SUM_LIMIT:
            raise BadModel(f"{name}.feedback can pass on {reached}, over the contract's 2^40")


@dataclass(frozen=True)
class DivisiveNormalization:
    """GDN in integers: 16-bit x, 16-bit squares v, ``norm = gamma v + beta``, integer root, 8-bit out.

    ``widen``: accumulators to x. ``gamma``: int16 ``(C, C)``, not negative, at most 2^bits - 1.
    ``beta``: int64 ``(C,)``, at least 1. ``factor``: to the outgoing activations.
    """

    inverse: bool
    widen: Multiplier
    gamma: Tensor
    beta: Tensor
    factor: Multiplier
    lo: int
    hi: int
    bits: int

    def reach(self) -> tuple[int, int]:
        """The least and the largest integer that can come out."""
        return self.lo, self.hi

    def norm_bound(self) -> int:
        """Largest norm that 16-bit squares can reach."""
        return int((self.gamma.double().sum(1) * 65535 + self.beta.double()).max())

    def check(self, name: str, channels: int) -> None:
        _check_range(name, self.lo, self.hi)
        self.widen.check(f"{name}.widen", channels)
        self.factor.check(f"{name}.factor", channels)
        _check_tensor(f"{name}.gamma", self.gamma, torch.int16, (channels, channels))
        _check_tensor(f"{name}.beta", self.beta, torch.int64, (channels,))
        top = 2**self.bits - 1
        if int(self.gamma.min()) < 0 or int(self.gamma.max()) > top:
            raise BadModel(
                f"{name}.gamma must be in 0..{top}, got {int(self.gamma.min())}..{int(self.gamma.max())}"
            )
        if int(self.beta.min()) < 1 or self.norm_bound() >= NORM_LIMIT:
            raise BadModel(
                f"{name} has norms in {int(self.beta.min())}..{self.norm_bound()}, contract 1..2^32"
            )
        if not self.inverse and int(self.factor.shift.max()) > GDN_SHIFT_LIMIT:
            raise BadModel(f"{name}.factor.shift must be at most {GDN_SHIFT_LIMIT}")


X_LO, X_HI = -(2 ** (GDN_BITS - 1)), 2 ** (GDN_BITS - 1) - 1


@dataclass(frozen=True)
class Stage:
    """One convolution and its epilogue. ``name`` is the float layer's, e.g. ``g_s.2``."""

    name: str
    conv: IntegerConv
    epilogue: Requantize | DivisiveNormalization | Compensate

    def check(self) -> None:
        self.conv.check(self.name)
        self.epilogue.check(self.name, self.conv.out_channels)
