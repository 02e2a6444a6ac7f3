"""Self-attention within windows (Swin, Liu et al. 2021), softmax in fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import torch
from ..arithmetic import GDN_SHIFT_LIMIT, Multiplier, by_channel
from .base import (
    Operation,
    Port,
    Rounding,
    Values,
    check_array,
    check_range,
    finish,
    largest,
    per_channel,
    tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

#: a logit counts units of 2^-LOGIT_BITS; differences to the largest beyond the table are weighed as its last
LOGIT_BITS, EXPONENTIALS = 6, 1024
#: of the largest weight; sums of a window stay below 2^22
WEIGHT_ONE = 2**14


def exponentials() -> np.ndarray:
    """``round(2^14 exp(-d / 2^6))`` for d = 0..1023, int32: stored with a model, never computed at load."""
    d = np.arange(EXPONENTIALS, dtype=np.float64)
    return np.round(WEIGHT_ONE * np.exp(-d * 2.0**-LOGIT_BITS)).astype(np.int32)


def relative_positions(window: int) -> np.ndarray:
    """Index into a head's ``(2 window - 1)^2`` biases by pair of positions, ``(window^2, window^2)``."""
    at = np.stack(np.divmod(np.arange(window**2), window), 1)
    apart = at[:, None] - at[None, :] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


@dataclass(frozen=True)
class WindowAttention(Operation):
    """``(B, 3 C, H, W)`` of queries, keys and values -> ``(B, C, H, W)``, in windows of ``window`` a side.

    ``shift``: windows begin so many rows and columns before the picture's corner, and positions that only
    meet around its edge do not see each other. Sides are multiples of ``window``. ``bias: (heads, (2 window -
    1)^2)``: of logits, by relative position; real, or int32 in units of ``2^-LOGIT_BITS``.

    In integers: logit ``t = floor(sum(q k) * m / 2^shift + 1/2) + bias`` with ``logit`` (one for each head);
    weight ``e = exponential[min(largest t - t, 1023)]``; output ``floor(sum(e v) * m / (sum(e) * 2^shift) +
    1/2)`` with ``factor``, clipped to [lo, hi].
    """

    kind = "window_attention"

    heads: int
    window: int
    shift: int
    bias: Values
    logit: Multiplier | None = None
    exponential: Values | None = None
    factor: Multiplier | None = None
    lo: int = 0
    hi: int = 0

    @property
    def halo(self) -> int | None:
        return None

    def channels(self, *channels: int) -> int:
        if self.heads < 1 or channels[0] % (3 * self.heads):
            raise BadModel(f"{channels[0]} channels are no queries, keys and values of {self.heads} heads")
        return channels[0] // 3

    def check_sides(self, h: int, w: int) -> None:
        if h % self.window or w % self.window:
            raise BadModel(f"windows of {self.window} do not fit a tensor of {h}x{w}")

    def _split(self, x: Values) -> tuple[Values, Values, Values]:
        """Each ``(B, windows, heads, positions, channels of a head)``, of a tensor or an array."""
        b, c, h, w = x.shape
        n, own = self.window, c // 3 // self.heads
        self.check_sides(h, w)
        if self.shift:
            x = _rolled(x, self.shift)
        parts = x.reshape(b, 3, self.heads, own, h // n, n, w // n, n)
        parts = _permuted(parts, 1, 0, 4, 6, 2, 5, 7, 3).reshape(3, b, -1, self.heads, n * n, own)
        return parts[0], parts[1], parts[2]

    def _join(self, out: Values, h: int, w: int) -> Values:
        b, _, _, _, d = out.shape
        n = self.window
        x = _permuted(out.reshape(b, h // n, w // n, self.heads, n, n, d), 0, 3, 6, 1, 4, 2, 5)
        x = x.reshape(b, self.heads * d, h, w)
        return _rolled(x, -self.shift) if self.shift else x

    def _apart(self, h: int, w: int) -> np.ndarray:
        """``(windows, 1, positions, positions)``: whether a pair only meets around the picture's edge."""
        n = self.window
        rows, columns = (np.arange(side) < self.shift for side in (h, w))
        labels = (2 * rows[:, None] + columns[None, :]).reshape(h // n, n, w // n, n)
        label = labels.transpose(0, 2, 1, 3).reshape(-1, n * n)
        return (label[:, :, None] != label[:, None, :])[:, None]

    def _biases(self, like: Tensor) -> Tensor:
        return tensor(self.bias, like)[:, relative_positions(self.window)]

    def _soft(self, logits: Tensor, v: Tensor, h: int, w: int) -> Tensor:
        if self.shift:
            logits = logits.masked_fill(torch.from_numpy(self._apart(h, w)).to(logits.device), -torch.inf)
        joined: Tensor = self._join(torch.softmax(logits, -1) @ v, h, w)
        return joined

    def real(self, *x: Tensor) -> Tensor:
        q, k, v = self._split(x[0])
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self._biases(q)
        return self._soft(logits, v, *x[0].shape[2:])

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.logit is not None and self.factor is not None and self.exponential is not None
        a, k, v = self._split(q[0])
        h, w = q[0].shape[2:]
        logit, bias = self.logit.as_float().reshape(-1, 1, 1), self.bias[:, relative_positions(self.window)]
        t = np.floor(a @ k.swapaxes(-1, -2) * logit + 0.5) + bias
        apart = self._apart(h, w) if self.shift else np.zeros(1, bool)
        t = np.where(apart, -(2.0**60), t)
        distance = np.minimum(t.max(-1, keepdims=True) - t, EXPONENTIALS - 1)
        weight = np.where(apart, 0.0, self.exponential[distance.astype(np.int64)])
        total = np.broadcast_to(weight.sum(-1, keepdims=True), (*weight.shape[:-1], v.shape[-1]))
        above = self._join(weight @ v, h, w)
        below = self._join(total, h, w) * by_channel(np.ldexp(1.0, self.factor.shift))
        return np.floor((2 * above * by_channel(self.factor.m) + below) / (2 * below)).clip(self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.logit is not None and self.factor is not None
        a, k, v = self._split(q[0])
        logit = tensor(self.logit.as_float(), a).reshape(-1, 1, 1)
        t = (a @ k.transpose(-1, -2) * logit + self._biases(a)) * 2.0**-LOGIT_BITS
        out = self._soft(t, v, *q[0].shape[2:])
        return finish(out * per_channel(self.factor.as_float(), out), self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        c = self.channels(port.channels)
        check_range(name, self.lo, self.hi)
        if not 1 <= self.window <= 16 or not 0 <= self.shift < self.window:
            raise BadModel(f"{name}: heads {self.heads}, window {self.window}, shift {self.shift}")
        if self.logit is None or self.factor is None:
            raise BadModel(f"{name} lacks its factors")
        self.logit.check(f"{name}.logit", self.heads)
        self.factor.check(f"{name}.factor", c)
        if int(self.factor.shift.max()) > GDN_SHIFT_LIMIT:
            raise BadModel(f"{name}.factor.shift must be at most {GDN_SHIFT_LIMIT}")
        check_array(f"{name}.bias", self.bias, np.int32, (self.heads, (2 * self.window - 1) ** 2))
        check_array(f"{name}.exponential", self.exponential, np.int32, (EXPONENTIALS,))
        assert self.exponential is not None
        e = self.exponential
        if int(e.min()) < 0 or int(e[0]) < 1 or int(e.max()) > WEIGHT_ONE or largest(self.bias) >= 2**15:
            raise BadModel(f"{name} has exponentials outside 0..2^14 or biases outside 16 bits")
        top = max(-port.lo, port.hi)
        if top**2 * (c // self.heads) >= 2**36 or top > 2**12:
            raise BadModel(f"{name} is given [{port.lo}, {port.hi}], which its products have no room for")
        return Port(c, self.lo, self.hi)


def _rolled(x: Values, by: int) -> Values:
    return (np if isinstance(x, np.ndarray) else torch).roll(x, (by, by), (2, 3))


def _permuted(x: Values, *axes: int) -> Values:
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)
