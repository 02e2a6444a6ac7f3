"""Compiled searches over latent levels. Meaning: `rdquant.latents.rdoq` and `rdquant.latents.trellis`."""

from __future__ import annotations

import numpy as np

from ..compiled import njit

# mypy: disable-error-code="assignment"


@njit(cache=True, nogil=True, inline="always")
def _rate(symbol, table, bits, escape, starts, offsets):  # type: ignore[no-untyped-def]
    start = np.int64(starts[table])
    last = np.int64(starts[table + 1]) - 2 - start
    value = np.int64(symbol) - np.int64(offsets[table])
    if value >= 0 and value < last:
        return bits[start + value]
    raw = -2 * value - 1 if value < 0 else 2 * (value - last)
    length = 0
    while (raw >> length) != 0:
        length += 1
    return bits[start + last] + escape[min(length, 33)]


@njit(cache=True, nogil=True)
def symbol_bits(symbols, indexes, bits, escape, starts, offsets, out):  # type: ignore[no-untyped-def]
    for i in range(len(symbols)):
        out[i] = _rate(symbols[i], indexes[i], bits, escape, starts, offsets)


@njit(cache=True, nogil=True)
def rdoq(residual, indexes, weight, bits, escape, starts, offsets, out):  # type: ignore[no-untyped-def]
    """``residual: (K,)`` float32 in steps, ``weight: (K,)`` cost in bits of a squared error of one step."""
    for i in range(len(residual)):
        r, t, w = residual[i], indexes[i], weight[i]
        nearest = np.int64(np.floor(r + np.float32(0.5)))
        best = nearest
        least = w * (r - nearest) ** 2 + _rate(nearest, t, bits, escape, starts, offsets)
        step = -1 if nearest > 0 else 1
        level = nearest
        for _ in range(2):
            if level == 0:
                break
            level += step
            cost = w * (r - level) ** 2 + _rate(level, t, bits, escape, starts, offsets)
            if cost < least:
                least, best = cost, level
        if nearest > 2 or nearest < -2:
            cost = w * r * r + _rate(0, t, bits, escape, starts, offsets)
            if cost < least:
                best = 0
        out[i] = best


@njit(cache=True, nogil=True)
def viterbi(  # type: ignore[no-untyped-def]
    residual, indexes, weight, bits, escape, starts, offsets, nexts, quantizer, tables, out, back, levels
):
    """One sequence. ``residual: (K,)`` in steps; ``nexts: (S, 2)``; ``quantizer: (S,)``.

    The table of a level coded by quantizer q is ``indexes[i] + q * tables``. Scratch: ``back: (K, S)``
    uint8, ``levels: (K, 4)`` int32. Fills ``out`` and returns the cost.
    """
    count, states = len(residual), len(nexts)
    infinity = np.float32(1e30)
    cost = np.full(states, infinity, np.float32)
    cost[0] = 0
    fresh = np.empty(states, np.float32)
    local = np.empty(4, np.float32)  # by quantizer and parity
    for i in range(count):
        u, w = residual[i], weight[i]
        for q in range(2):
            t = indexes[i] + q * tables
            # reconstruction of level k: (2 k - sign(k) q) steps; see `trellis.candidates`
            side = 1 if u >= 0 else -1
            base = np.int64(np.floor((abs(u) + q) * np.float32(0.5)))
            local[2 * q] = local[2 * q + 1] = infinity
            for c in range(4):
                k = side * (base - 1 + c) if c < 3 else np.int64(0)
                if (c == 0 and base == 0) or (c == 3 and base <= 1):  # none, or zero a second time
                    continue
                sign = 1 if k > 0 else (-1 if k < 0 else 0)
                e = u - np.float32(2 * k - sign * q)
                value = w * e * e + _rate(k, t, bits, escape, starts, offsets)
                slot = 2 * q + (k & 1)
                if value < local[slot]:
                    local[slot] = value
                    levels[i, slot] = k
        fresh[:] = infinity
        for s in range(states):
            if cost[s] >= infinity:
                continue
            for p in range(2):
                value = cost[s] + local[2 * quantizer[s] + p]
                n = nexts[s, p]
                if value < fresh[n]:
                    fresh[n] = value
                    back[i, n] = 2 * s + p
        low = fresh.min()
        for s in range(states):
            cost[s] = fresh[s]
        if low > np.float32(1e6):  # keep float32 fine in long sequences
            for s in range(states):
                cost[s] -= low
    s = np.argmin(cost)
    total = cost[s]
    for i in range(count - 1, -1, -1):
        step = np.int64(back[i, s])
        s, p = step >> 1, step & 1
        out[i] = levels[i, 2 * quantizer[s] + p]
    return total


@njit(cache=True, nogil=True)
def viterbi_channels(  # type: ignore[no-untyped-def]
    residual, indexes, weight, bits, escape, starts, offsets, nexts, quantizer, tables, out
):
    """`viterbi` for each row of ``residual: (C, K)``, with one weight each."""
    channels, count = residual.shape
    for c in range(channels):
        viterbi(
            residual[c], indexes[c], np.full(count, weight[c], np.float32), bits, escape, starts, offsets,
            nexts, quantizer, tables, out[c], np.empty((count, len(nexts)), np.uint8),
            np.zeros((count, 4), np.int32),
        )  # fmt: skip
