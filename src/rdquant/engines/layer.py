"""A convolution and what takes its accumulators, ready to run.

Sums have 32 bits where that is proven from the weights and the range that comes in; else activations are
split into ``256 high + low``. Grouped convolutions (but for `depthwise` ones), and the few that have no 32
bits even so, are loops in float64.
"""

from __future__ import annotations

import numpy as np

from ..graph import Port
from ..graph.operations import Convolution, Operation, Requantize
from ..threads import allowed, share
from . import dense, depthwise, direct
from .buffers import Form, flat
from .epilogues import prepared, vectors_for
from .products import BYTES, LANES, SPAN, instructions

#: bytes of weights that stay in the first cache while a tile goes through
_CACHED = 24 * 2**10
#: bytes of a task's buffer, positions of its rows
_BUFFER, _COLUMNS = 2**18, 4 * SPAN


class Layer:
    """Values of one form to values of another."""

    def __init__(self, conv: Convolution, port: Port, form: Form, after: Operation | None, out: Form) -> None:
        self.conv, self.form, self.out = conv, form, out
        bound = conv.accumulator_bound(port)
        load = bound // max(-port.lo, port.hi) + 1  # of an activation of one
        self.split = form.size > 2 or bound + int(np.abs(conv.bias).max()) >= 2**31
        self.direct = conv.groups > 1 or (self.split and 256 * load >= 2**31)
        self._epilogue, self._zero = prepared(after, conv.out_channels), out.zero
        single = conv.groups == conv.in_channels == conv.out_channels and not conv.transposed
        self.depthwise = single and not self.split and conv.groups > 1
        if self.depthwise:
            self._single = depthwise.packed(conv)
        elif self.direct:
            self._kernel = conv.by_output().astype(np.float64).transpose(2, 3, 1, 0).copy()
            self._bias = conv.bias.astype(np.float64)
        else:
            self._packed = self._pack(after is None or isinstance(after, Requantize))

    def _pack(self, by_channel: bool) -> dense.Packed:
        """``by_channel``: what follows does not mix channels."""
        conv, zero = self.conv, self.form.zero.astype(np.int64)
        few = conv.stride**2 * conv.out_channels <= LANES
        merged = conv.transposed and by_channel and not self.split and few
        phases = dense.phases_of(conv, merged)
        outputs = phases[0][1].shape[2]
        copies = outputs // conv.out_channels
        e = self._epilogue
        self._zero = np.tile(self._zero, copies)
        self._epilogue = e._replace(channels=outputs, factors=np.tile(e.factors, copies))
        small = bool((np.abs(conv.weight.astype(np.int32)) < 128).all())
        bytewise = instructions() == "avx512vnni" and self.form.size == 1 and not self.split and small
        vectors, each = vectors_for(outputs), 4 if bytewise else 2
        words, width = -(-conv.in_channels // each), LANES * vectors
        weights, start = [], np.zeros((len(phases), -(-outputs // width) * width), np.int64)
        for line, (_, kernel) in zip(start, phases, strict=True):
            room = np.zeros((len(kernel), words * each, len(line)), np.int8 if bytewise else np.int16)
            room[:, : conv.in_channels, :outputs] = kernel
            blocks = room.reshape(len(kernel), words, each, -1, width).transpose(3, 0, 1, 4, 2)
            weights.append(blocks.reshape(-1).view(np.uint8))
            line[:outputs] = 0 if self.split else np.tile(conv.bias, copies)
            if bytewise:
                line[:outputs] += np.einsum("tio,i->o", kernel, zero)
        taps = np.concatenate([taps for taps, _ in phases]).astype(np.int64)
        side, size = conv.kernel_size, words * width * 4
        run = 1 if conv.transposed or side * size > _CACHED else side
        return dense.Packed(
            stride=1 if conv.transposed else conv.stride,
            up=conv.stride if conv.transposed else 1,
            merged=merged,
            taps=np.ascontiguousarray(taps[::run]),
            phases=np.cumsum([0, *(len(taps) // run for taps, _ in phases)]),
            least=int(taps.min()),
            most=int(taps.max()),
            kernel=BYTES if bytewise else e.kernel,
            vectors=vectors,
            words=words,
            run=run,
            weights=np.concatenate(weights),
            at=np.cumsum([0, *map(len, weights)])[:-1],
            start=start.astype(np.int32),
            bias=conv.bias.astype(np.float64),
            split=self.split,
            chunk=max(1, _CACHED // (size * run)),
        )

    def __call__(self, values: np.ndarray, valid: bool = False) -> np.ndarray:
        """``values: (B, H, W, I)`` -> ``(B, H', W', O)``, of its forms. ``valid``: without padding."""
        conv = self.conv
        b, h, w, _ = values.shape
        s, origin = conv.stride, conv.padding if valid else 0
        stride, up = (1, s) if conv.transposed else (s, 1)
        sides = h, w
        if not conv.transposed:
            around = 2 * (conv.padding - origin) - conv.kernel_size
            sides = (h + around) // s + 1, (w + around) // s + 1
        out = np.empty((b, sides[0] * up, sides[1] * up, conv.out_channels), self.out.dtype)
        whole = out
        if self.direct:
            shift, stored = origin - conv.padding, out.reshape(b, out.shape[1], -1).view(np.uint8)
            after = self._epilogue, stored, self.out.size, self.out.zero, out.shape[2]
            if self.depthwise:
                single, beyond = self._single, -conv.out_channels % LANES
                x = values.astype(np.int16, copy=False)
                x = x + self.form.zero.astype(np.int16) if self.form.zero.any() else x
                x = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, beyond))) if beyond else np.ascontiguousarray(x)
                share(
                    b * out.shape[1],
                    lambda first, last: depthwise.convolve(first, last, x, shift, stride, single, *after),
                )
                return whole
            wide, how = (
                values.astype(np.int32) + self.form.zero,
                (shift, stride, up, conv.transposed, conv.groups),
            )
            share(
                b * out.shape[1],
                lambda first, last: direct.convolve(
                    first, last, wide, *how, self._kernel, self._bias, *after
                ),
            )
            return whole
        if conv.is_matrix:  # positions are all alike
            values, out = (t.reshape(1, 1, b * h * w, -1) for t in (values, out))
            sides = 1, b * h * w
        k, columns = self._packed, min(sides[1], _COLUMNS)
        row = ((columns + dense.TOGETHER) * stride + k.most - k.least) * k.words * 4 * stride
        fair = sides[0] * -(-sides[1] // columns) // (4 * allowed())
        rows = max(1, min(_BUFFER // row, fair, sides[0]))
        tasks = len(values) * -(-sides[0] // rows) * -(-sides[1] // columns)
        given, shape = flat(values), values.shape[1:]
        share(
            tasks,
            lambda first, last: dense.convolve(
                first, last, sides, rows, columns, given, self.form.size, shape, self.form.zero,
                origin, k, self._epilogue, flat(out), self.out.size, self._zero, out.shape[2],
            ),
        )  # fmt: skip
        return whole
