"""Self-attention within windows (Swin, Liu et al. 2021), softmax in fixed point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import BadModel
from ..arithmetic import GDN_SHIFT_LIMIT, Multiplier
from .base import Operation, Port, Rounding, check_range, check_tensor, finish, largest, per_channel

#: a logit counts units of 2^-LOGIT_BITS; differences to the largest beyond the table are weighed as its last
LOGIT_BITS, EXPONENTIALS = 6, 1024
#: of the largest weight; sums of a window stay below 2^22
WEIGHT_ONE = 2**14


def exponentials() -> Tensor:
    """``round(2^14 exp(-d / 2^6))`` for d = 0..1023, int32: stored with a model, never computed at load."""
    d = torch.arange(EXPONENTIALS, dtype=torch.float64)
    return torch.round(WEIGHT_ONE * torch.exp(-d * 2.0**-LOGIT_BITS)).to(torch.int32)


def relative_positions(window: int) -> Tensor:
    """Index into a head's ``(2 window - 1)^2`` biases by pair of positions, ``(window^2, window^2)``."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    at = torch.stack((rows, columns), 2).reshape(-1, 2)
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
    bias: Tensor
    logit: Multiplier | None = None
    exponential: Tensor | None = None
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

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each ``(B, windows, heads, positions, channels of a head)``."""
        b, c, h, w = x.shape
        n = self.window
        self.check_sides(h, w)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (2, 3))
        own = c // 3 // self.heads
        parts = x.reshape(b, 3, self.heads, own, h // n, n, w // n, n)
        parts = parts.permute(1, 0, 4, 6, 2, 5, 7, 3).reshape(3, b, -1, self.heads, n * n, own)
        return parts[0], parts[1], parts[2]

    def _join(self, out: Tensor, h: int, w: int) -> Tensor:
        b, _, _, _, d = out.shape
        n = self.window
        x = out.reshape(b, h // n, w // n, self.heads, n, n, d).permute(0, 3, 6, 1, 4, 2, 5)
        x = x.reshape(b, self.heads * d, h, w)
        return torch.roll(x, (-self.shift, -self.shift), (2, 3)) if self.shift else x

    def _apart(self, h: int, w: int) -> Tensor:
        """``(windows, 1, positions, positions)``: whether a pair only meets around the picture's edge."""
        n = self.window
        rows, cols = ((torch.arange(side) < self.shift).long() for side in (h, w))
        label = (2 * rows[:, None] + cols[None, :]).reshape(h // n, n, w // n, n)
        label = label.permute(0, 2, 1, 3).reshape(-1, n * n)
        return (label[:, :, None] != label[:, None, :])[:, None]

    def _bias(self, like: Tensor) -> Tensor:
        return self.bias.to(like)[:, relative_positions(self.window)]

    def real(self, *x: Tensor) -> Tensor:
        q, k, v = self._split(x[0])
        h, w = x[0].shape[2:]
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self._bias(q)
        if self.shift:
            logits = logits.masked_fill(self._apart(h, w).to(logits.device), -torch.inf)
        return self._join(torch.softmax(logits, -1) @ v, h, w)

    def _heads(self, factor: Multiplier, like: Tensor) -> Tensor:
        return factor.as_float().to(like).reshape(-1, 1, 1)

    def exact(self, *q: Tensor) -> Tensor:
        assert self.logit is not None and self.factor is not None and self.exponential is not None
        a, k, v = self._split(q[0])
        h, w = q[0].shape[2:]
        t = torch.floor(a @ k.transpose(-1, -2) * self._heads(self.logit, a) + 0.5) + self._bias(a)
        if self.shift:
            apart = self._apart(h, w).to(t.device)
            t = t.masked_fill(apart, -(2.0**60))
        distance = (t.amax(-1, keepdim=True) - t).clamp(max=EXPONENTIALS - 1).long()
        weight = self.exponential.to(t.device)[distance].to(t)
        weight = weight.masked_fill(apart, 0) if self.shift else weight
        total = self._join((weight.sum(-1, keepdim=True)).expand(*weight.shape[:-1], v.shape[-1]), h, w)
        above = self._join(weight @ v, h, w)
        below = total * per_channel(torch.exp2(self.factor.shift.double()), total)
        m = per_channel(self.factor.m, above)
        return torch.floor((2 * above * m + below) / (2 * below)).clamp_(self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.logit is not None and self.factor is not None
        a, k, v = self._split(q[0])
        h, w = q[0].shape[2:]
        t = (a @ k.transpose(-1, -2) * self._heads(self.logit, a) + self._bias(a)) * 2.0**-LOGIT_BITS
        if self.shift:
            t = t.masked_fill(self._apart(h, w).to(t.device), -torch.inf)
        out = self._join(torch.softmax(t, -1) @ v, h, w)
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
        check_tensor(f"{name}.bias", self.bias, torch.int32, (self.heads, (2 * self.window - 1) ** 2))
        check_tensor(f"{name}.exponential", self.exponential, torch.int32, (EXPONENTIALS,))
        assert self.exponential is not None
        e = self.exponential
        if int(e.min()) < 0 or int(e[0]) < 1 or int(e.max()) > WEIGHT_ONE or largest(self.bias) >= 2**15:
            raise BadModel(f"{name} has exponentials outside 0..2^14 or biases outside 16 bits")
        top = max(-port.lo, port.hi)
        if top**2 * (c // self.heads) >= 2**36 or top > 2**12:
            raise BadModel(f"{name} is given [{port.lo}, {port.hi}], which its products have no room for")
        return Port(c, self.lo, self.hi)
