"""Rounding weights so that the layer's output stays put: error-compensated rounding.

Nearest rounding minimises each weight's own error. What matters is the error of the output,
``|(W - W_q) X|^2`` over calibration inputs X. Going through a kernel's weights in order, each rounding
error is spread over the weights not yet rounded, in proportion to how their inputs correlate: GPTQ
(Frantar et al. 2023, arXiv 2210.17323, algorithm 1), from Optimal Brain Surgeon. Here the columns of
one output phase of a transposed convolution are a problem of their own.

Two-sided: errors of different output channels matter together as well, by ``S = E[J^T J]`` of what comes
after them: ``trace(S E H E^T)`` for the error E of the weights. Going through the output channels of a
column in order, each error is answered by those still to come in the same way; what then remains of the
column is spread over the later columns as before, which is optimal whatever S is. Single moves to
neighbouring levels then take what this greedy order has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiled import njit
from ..graph.operations import Convolution
from .formats import Levels

#: added to the diagonal of the Gram matrix, as a fraction of its mean
DAMPING = 0.003
#: the same for the sensitivities of outputs
OUTPUT_DAMPING = 0.003
#: passes over a matrix in search of single moves that help, at most; and moves that make another worth it
PASSES, LEAST_MOVES = 4, 0.002
#: positions of a layer's input that the Gram matrix is taken from, over all pictures
POSITIONS = 24_000


#: columns that are rounded before what they pass on reaches all later ones, as one matrix product
BLOCK = 64


def followers(metric: Tensor) -> Tensor:
    """Upper triangular, ones on the diagonal: entry (i, j) is how much of i's error j takes on."""
    # U with U^T U = metric^-1, by the Cholesky factor of the reversed metric and its inverse
    reversed_root = torch.linalg.cholesky(metric.flip(0, 1)).flip(0, 1)
    eye = torch.eye(len(metric), dtype=metric.dtype)
    upper = torch.linalg.solve_triangular(reversed_root, eye, upper=True)
    return upper / upper.diagonal()[:, None]


@njit(cache=True, nogil=True)
def _round_columns(w, along, across, values, middles, out):  # type: ignore[no-untyped-def]
    """Column by column, row by row. ``w: (K, O)`` in levels, changed on the way; ``out: (K, O)``."""
    columns, rows = w.shape
    column = np.empty(rows)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = np.empty((end - start, rows))
        for j in range(start, end):
            column[:] = w[j]
            for o in range(rows):
                q = values[np.searchsorted(middles, column[o])]
                error = column[o] - q
                out[j, o] = q
                for p in range(o + 1, rows):
                    column[p] -= error * across[o, p]
            for o in range(rows):
                errors[j - start, o] = w[j, o] - out[j, o]
            for k in range(j + 1, end):
                share = along[j, k]
                for o in range(rows):
                    w[k, o] -= share * errors[j - start, o]
        if end < columns:
            w[end:] -= np.dot(np.ascontiguousarray(along[start:end, end:].T), errors)


@njit(cache=True, nogil=True)
def _descend(index, values, scales, gradient, h, s):  # type: ignore[no-untyped-def]
    """One pass over all entries, each moved to a neighbouring level where that lowers the cost.

    ``index: (K, O)`` into ``values``, changed; ``gradient = H E^T S: (K, O)``, kept up to date. Returns the
    number of moves.
    """
    columns, rows = index.shape
    moves = 0
    for j in range(columns):
        for o in range(rows):
            own = s[o, o] * h[j, j]
            for way in (-1, 1):
                to = index[j, o] + way
                if to < 0 or to >= len(values):
                    continue
                step = (values[to] - values[index[j, o]]) * scales[o]
                if 2 * step * gradient[j, o] + step * step * own < -1e-9 * step * step * own:
                    index[j, o] = to
                    moves += 1
                    for k in range(columns):
                        share = step * h[j, k]
                        for p in range(rows):
                            gradient[k, p] += share * s[o, p]
                    break
    return moves


class _Problem:
    """``trace(S E H E^T)`` for the errors E of one matrix of weights ``(O, K)``, prepared for rounding."""

    def __init__(self, weight: Tensor, gram: Tensor, sensitivity: Tensor | None) -> None:
        self.weight = weight.detach().double()
        h = gram.double().clone()
        dead = h.diagonal() <= 0
        h.diagonal()[dead] = 1.0
        h.diagonal().add_(DAMPING * float(h.diagonal().mean()))
        matters = sensitivity is not None and float(sensitivity.diagonal().mean()) > 0
        self.h, self.s = h, sensitivity if matters else None
        # heaviest inputs first: their errors can still be compensated by the others
        self.columns = torch.argsort(h.diagonal(), descending=True)
        self.along = followers(h[self.columns][:, self.columns])

    def round(self, scales: Tensor, levels: Levels) -> Tensor:
        """Levels, int16 ``(O, K)``, for ``scales: (O,)``."""
        w = self.weight / scales.double()[:, None]
        rows, across = torch.arange(len(w)), torch.eye(len(w), dtype=torch.float64)
        if self.s is not None:
            s = self.s.double() * scales[:, None] * scales[None, :]
            s.diagonal().add_(OUTPUT_DAMPING * float(s.diagonal().mean()))
            rows = torch.argsort(s.diagonal(), descending=True)
            across = followers(s[rows][:, rows])
        values = levels.values.double().numpy()
        work = w[rows][:, self.columns].T.contiguous().numpy()
        found = np.empty_like(work)
        middles = (values[1:] + values[:-1]) / 2
        _round_columns(work, self.along.numpy(), across.numpy(), values, middles, found)
        out = torch.empty_like(w)
        out[rows[:, None], self.columns[None, :]] = torch.from_numpy(found).T
        return out.to(torch.int16)

    def descend(self, q: Tensor, scales: Tensor, levels: Levels) -> Tensor:
        """What single moves to neighbouring levels make of a rounding, until hardly any helps."""
        s = torch.eye(len(q), dtype=torch.float64) if self.s is None else self.s.double()
        error = q.double() * scales[:, None] - self.weight
        gradient = (s @ error @ self.h).T.contiguous().numpy()
        values = levels.values.double().numpy()
        index = np.searchsorted(values, q.double().numpy().T).copy()
        for _ in range(PASSES):
            moves = _descend(index, values, scales.double().numpy(), gradient, self.h.numpy(), s.numpy())
            if moves < LEAST_MOVES * q.numel():
                break
        return torch.from_numpy(values[index].T.copy()).to(torch.int16)

    def cost(self, q: Tensor, scales: Tensor) -> float:
        error = q.double() * scales[:, None] - self.weight
        if self.s is None:
            return float((error @ self.h * error).sum())
        return float((error @ self.h * (self.s @ error)).sum())


def compensated_round(
    weight: Tensor, scales: Tensor, gram: Tensor, levels: Levels, sensitivity: Tensor | None = None
) -> Tensor:
    """``weight: (O, K)``, ``scales: (O,)``, ``gram = X X^T: (K, K)`` -> levels, int16 ``(O, K)``.

    ``sensitivity: (O, O)``: S of the outputs, for two-sided rounding.
    """
    return _Problem(weight, gram, sensitivity).round(scales, levels)


def phases(op: Convolution) -> list[Tensor]:
    """Index sets of the taps (into the flattened k x k kernel) that meet in one output position; masked ones,
    where all weights are zero, are left out.
    """
    k, s = op.kernel_size, op.stride
    taps = torch.arange(k * k).reshape(k, k)
    if not op.transposed:
        used = used_taps(op)
        return [taps[used] if bool(used.any()) else taps.flatten()]
    found = [taps[i::s, j::s].flatten() for i in range(s) for j in range(s)]
    return [phase for phase in found if len(phase)]


def used_taps(op: Convolution) -> Tensor:
    """Where any weight is not zero, bool ``(k, k)``."""
    return (op.weight != 0).any(0).any(0)


def columns(
    op: Convolution, x: Tensor, phase: Tensor, choose: Callable[[int], Tensor] = torch.arange
) -> Tensor:
    """Inputs that meet the taps of one phase: ``x: (1, I, H, W)`` -> ``(P, I, len(phase))``.

    ``choose``: positions, of how many there are; all by default.
    """
    k, s, p = op.kernel_size, op.stride, op.padding
    if not op.transposed:
        return _patches(F.pad(x, (p, p, p, p)), (k, k), s, choose).flatten(2)[:, :, phase]
    # output o = s * i + t - p: for one phase, taps t apart by s read inputs one apart
    n, m = len(torch.unique(phase // k)), len(torch.unique(phase % k))
    padded = F.pad(x, (m - 1, m - 1, n - 1, n - 1))
    return _patches(padded, (n, m), 1, choose).flip(2, 3).flatten(2)


def _patches(x: Tensor, size: tuple[int, int], stride: int, choose: Callable[[int], Tensor]) -> Tensor:
    """``(1, I, H, W)`` -> ``(P, I, *size)``, those chosen of the positions row by row."""
    windows = x[0].unfold(1, size[0], stride).unfold(2, size[1], stride)
    rows, cols = windows.shape[1:3]
    chosen = choose(rows * cols)
    return windows[:, chosen // cols, chosen % cols].transpose(0, 1).contiguous()


def problems(op: Convolution) -> Iterator[tuple[slice, slice, Tensor]]:
    """Output channels, input channels and taps that are rounded together: by phase and group."""
    outs, ins = op.out_channels // op.groups, op.in_channels // op.groups
    for phase in phases(op):
        for g in range(op.groups):
            yield slice(g * outs, (g + 1) * outs), slice(g * ins, (g + 1) * ins), phase


def gram_matrices(op: Convolution, x: Tensor, pictures: int, generator: torch.Generator) -> list[Tensor]:
    """``X X^T`` of each of `problems` over random positions of one input, float32 ``(K, K)`` each.

    Columns run over channels, then taps in the order of the phase. ``x: (1, I, H, W)``; ``pictures``: how
    many inputs share the `POSITIONS`.
    """
    keep = max(1, POSITIONS // pictures)
    grams = []

    def choose(count: int) -> Tensor:
        return torch.randint(count, (keep,), generator=generator) if count > keep else torch.arange(count)

    for phase in phases(op):
        rows = columns(op, x, phase, choose)
        grouped = rows.reshape(len(rows), op.groups, -1).transpose(0, 1)
        grams += [group.T @ group for group in grouped]
    return grams


def round_kernel(
    op: Convolution,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor,
    grams: list[Tensor],
    levels: Levels,
    sensitivity: Tensor | None = None,
    clips: tuple[float, ...] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """Compensated rounding of a whole kernel, at whichever of ``clips`` times the scales costs least.

    ``weight: (O, I / groups, k, k)``, already multiplied by ``input_scale: (I,)``; ``scales: (O,)``;
    ``grams`` of the unscaled inputs. Returns int16 ``(O, I / groups, k, k)`` and the scales that were used.
    """
    flat = weight.flatten(2)
    places, prepared = list(problems(op)), []
    for (outs, ins, phase), gram in zip(places, grams, strict=True):
        inverse_scale = (1 / input_scale[ins]).repeat_interleave(len(phase))
        scaled = gram * inverse_scale[:, None] * inverse_scale[None, :]
        own = None if sensitivity is None else sensitivity[outs, outs]
        prepared.append(_Problem(flat[outs][:, :, phase].flatten(1), scaled, own))
    least, best = float("inf"), (torch.empty(0), scales)
    for clip in clips:
        chosen = scales * clip
        parts = [p.round(chosen[outs], levels) for p, (outs, _, _) in zip(prepared, places, strict=True)]
        costs = [p.cost(q, chosen[outs]) for p, q, (outs, _, _) in zip(prepared, parts, places, strict=True)]
        if len(clips) == 1 or sum(costs) < least:
            out = torch.zeros(flat.shape, dtype=torch.int16)
            for (outs, _, phase), q in zip(places, parts, strict=True):
                out[outs.start : outs.stop, :, phase] = q.reshape(len(q), -1, len(phase))
            least, best = sum(costs), (out.reshape(weight.shape), chosen)
    q, chosen = best
    levelled = q.flatten(2)
    for (outs, _, phase), problem in zip(places, prepared, strict=True):
        part = levelled[outs][:, :, phase].flatten(1)
        better = problem.descend(part, chosen[outs], levels)
        levelled[outs.start : outs.stop, :, phase] = better.reshape(len(part), -1, len(phase))
    return levelled.reshape(weight.shape), chosen
