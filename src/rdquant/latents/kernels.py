"""Compiled searches over latent levels. Meaning: `rdquant.latents.rdoq` and `rdquant.latents.trellis`."""

from __future__ import annotations

import numpy as np

from ..compiled import njit

# mypy: disable-error-code="assignment"


@njit(cache=True, nogil=True, inline="always")
def _rate_in(symbol, start, last, offset, bits, escape):  # type: ignore[no-untyped-def]
    """By a table that starts at ``start``, whose escape is its interval ``last``."""
    value = np.int64(symbol) - offset
    if value >= 0 and value < last:
        # unsigned: numba asks of other indexes whether they count from the end
        return bits[np.uint64(start + value)]
    raw = -2 * value - 1 if value < 0 else 2 * (value - last)
    length = 0
    while (raw >> length) != 0:
        length += 1
    return bits[start + last] + escape[min(length, 33)]


@njit(cache=True, nogil=True, inline="always")
def _rate(symbol, table, bits, escape, starts, offsets):  # type: ignore[no-untyped-def]
    start = np.int64(starts[table])
    last = np.int64(starts[table + 1]) - 2 - start
    return _rate_in(symbol, start, last, np.int64(offsets[table]), bits, escape)


@njit(cache=True, nogil=True)
def symbol_bits(symbols, indexes, bits, escape, starts, offsets, out):  # type: ignore[no-untyped-def]
    for i in range(len(symbols)):
        out[i] = _rate(symbols[i], indexes[i], bits, escape, starts, offsets)


@njit(cache=True, nogil=True)
def reconstruct(levels, largest, nexts, quantizer, step, means, lo, hi, out):  # type: ignore[no-untyped-def]
    """``means`` and ``step`` times what levels stand for, in lo..hi: all ``(rows, n)``, each row a sequence
    of its own. As `rdquant.latents.trellis.Trellis.reconstruct`, of levels clipped to ``largest``.
    """
    after, odd = nexts.reshape(-1).astype(np.uint64), np.empty(levels.shape[1], np.int64)
    for row in range(len(levels)):
        # unsigned: numba asks of other indexes whether they count from the end
        level, mean, o, state = levels[row], means[row], out[row], np.uint64(0)
        for i in range(len(level)):
            odd[i] = quantizer[state]
            state = after[np.uint64(2) * state + np.uint64(level[i] & 1)]
        for i in range(len(level)):
            k = min(max(np.int64(level[i]), -largest), largest)
            by = 2 * k - (np.int64(k > 0) - np.int64(k < 0)) * odd[i]
            o[i] = min(max(by * step + mean[i], lo), hi)


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


@njit(cache=True, nogil=True, inline="always")
def _cost(u, w, k, q, start, last, offset, bits, escape):  # type: ignore[no-untyped-def]
    """Of level ``k`` by quantizer ``q``, which reconstructs it as ``2 k - sign(k) q`` steps."""
    sign = 1 if k > 0 else (-1 if k < 0 else 0)
    e = u - np.float32(2 * k - sign * q)
    return w * e * e + _rate_in(k, start, last, offset, bits, escape)


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
    # the two ways into each state, in the order of where they come from: 2 state + parity
    ways = np.empty((2, states), np.int64)
    found = np.zeros(states, np.int64)
    for s in range(states):
        for p in range(2):
            n = nexts[s, p]
            ways[found[n], n] = 2 * s + p
            found[n] += 1
    # unsigned: numba asks of other indexes whether they count from the end
    origin, slots = np.empty(ways.shape, np.uint64), np.empty(ways.shape, np.uint64)
    for j in range(2):
        for n in range(states):
            origin[j, n] = ways[j, n] >> 1
            slots[j, n] = 2 * quantizer[ways[j, n] >> 1] + (ways[j, n] & 1)
    cost = np.full(states, infinity, np.float32)
    cost[0] = 0
    fresh = np.empty(states, np.float32)
    local = np.empty(4, np.float32)  # by quantizer and parity
    for i in range(count):
        u, w = residual[i], weight[i]
        for q in range(2):
            t = np.uint64(indexes[i] + q * tables)
            start, offset = np.int64(starts[t]), np.int64(offsets[t])
            last = np.int64(starts[t + np.uint64(1)]) - 2 - start
            # see `trellis.candidates`; of two that cost the same, the one that was tried first there
            side = 1 if u >= 0 else -1
            base = np.int64(np.floor((abs(u) + q) * np.float32(0.5)))
            own, other = np.uint64(2 * q + (base & 1)), np.uint64(2 * q + 1 - (base & 1))
            levels[i, own], levels[i, other] = side * base, side * (base + 1)
            local[own] = _cost(u, w, side * base, q, start, last, offset, bits, escape)
            local[other] = _cost(u, w, side * (base + 1), q, start, last, offset, bits, escape)
            if base > 0:
                value = _cost(u, w, side * (base - 1), q, start, last, offset, bits, escape)
                if value <= local[other]:
                    local[other], levels[i, other] = value, side * (base - 1)
            if base > 1:
                value = _cost(u, w, 0, q, start, last, offset, bits, escape)
                if value < local[2 * q]:
                    local[2 * q], levels[i, 2 * q] = value, 0
        for n in range(states):
            one = cost[origin[0, n]] + local[slots[0, n]]
            two = cost[origin[1, n]] + local[slots[1, n]]
            second = two < one
            fresh[n] = two if second else one
            back[i, n] = ways[1, n] if second else ways[0, n]
        cost, fresh = fresh, cost
        if i & 255 == 255:  # keep float32 fine in long sequences
            low = cost.min()
            if low > np.float32(1e6):
                cost -= low
    s = np.argmin(cost)
    total = cost[s]
    for i in range(count - 1, -1, -1):
        step = np.int64(back[i, s])
        s, p = step >> 1, step & 1
        out[i] = levels[i, 2 * quantizer[s] + p]
    return total


@njit(cache=True, nogil=True)
def viterbi_channels(  # type: ignore[no-untyped-def]
    residual, indexes, weight, bits, escape, starts, offsets, nexts, quantizer, tables, quiet, out
):
    """`viterbi` for each row of ``residual: (C, K)``, with one weight each. Rows whose squared errors are all
    worth less than ``quiet: (tables,)`` bits, of `trellis.quiet_bits`, are zero and need no search.
    """
    channels, count = residual.shape
    for c in range(channels):
        i = 0
        while i < count and weight[c] * residual[c, i] * residual[c, i] < quiet[indexes[c, i]]:
            i += 1
        if i == count:
            out[c] = 0
            continue
        viterbi(
            residual[c], indexes[c], np.full(count, weight[c], np.float32), bits, escape, starts, offsets,
            nexts, quantizer, tables, out[c], np.empty((count, len(nexts)), np.uint8),
            np.zeros((count, 4), np.int32),
        )  # fmt: skip
