"""A convolution and what takes its accumulators, ready to run.

Sums have 32 bits where that is proven from the weights and the range that comes in; else each of some
pieces of the sum has. Grouped convolutions (but for `depthwise` ones), and those of activations that have no
16 bits, are loops in float64.
"""

from __future__ import annotations

import numpy as np

from ..graph import Port
from ..graph.operations import Convolution, Operation, Requantize
from ..threads import allowed, share
from . import dense, depthwise, direct
from .buffers import Form, aligned, empty, flat
from .epilogues import prepared, vectors_for, words_kernel
from .products import BYTE_TILES, BYTES, BYTEWISE, LANES, SPAN, TOGETHER, WORD_TILES, instructions
from .tiles import SHALLOW, depth_of, halved

#: bytes of weights that stay in the first cache while a tile goes through
_CACHED = 24 * 2**10
#: bytes of a task's buffer, positions of its rows
_BUFFER, _COLUMNS = 2**18, 4 * SPAN


def _pieces(phases: list[np.ndarray], largest: int) -> tuple[int, np.ndarray]:
    """Into how many a tap's words are cut, and where pieces start and end among what that makes of each
    phase's taps, ``(phases, P + 1)``: as few as their 32 bits allow, two at least. ``phases``: weights ``(T,
    words, each, O)``; ``largest``: magnitude of activations. A word of two has 32 bits in any case.
    """
    words = phases[0].shape[1]
    for cut in (*(2**i for i in range(words.bit_length())), words):
        found = []
        for kernel in phases:
            beyond = np.pad(np.abs(kernel), ((0, 0), (0, -words % cut), (0, 0), (0, 0)))
            own = beyond.reshape(len(kernel) * cut, beyond.shape[1] // cut, *kernel.shape[2:]).sum((1, 2))
            ends, total = [0], np.zeros(kernel.shape[3], np.int64)
            for i, tap in enumerate(own * largest):
                if int((total + tap).max()) >= 2**31:
                    ends.append(i)
                    total = np.zeros_like(total)
                total = total + tap
            found.append([*ends, len(own)])
            if len(own) and int((own * largest).max()) >= 2**31:
                break
        else:
            most = max(2, *(len(ends) - 1 for ends in found))
            return cut, np.array([ends + [ends[-1]] * (most + 1 - len(ends)) for ends in found])
    raise AssertionError("a word of weights and activations of 16 bits has 32")


class Layer:
    """Values of one form to values of another."""

    #: that which takes what this one makes, tile by tile, where it `can_go_on`
    then: Layer | None = None

    def __init__(self, conv: Convolution, port: Port, form: Form, after: Operation | None, out: Form) -> None:
        self.conv, self.form, self.out = conv, form, out
        bound = conv.accumulator_bound(port) + int(np.abs(conv.bias).max())
        in_words = bound < 2**31
        single = conv.groups == conv.in_channels == conv.out_channels and not conv.transposed
        self.depthwise = single and conv.groups > 1 and form.size <= 2 and in_words
        tiles_of_words = in_words and form.size <= 2 and (conv.groups == 1 or self.depthwise)
        self.epilogue, self._zero = (
            prepared(after, conv.out_channels, bound if tiles_of_words else 2**36),
            out.zero,
        )
        if self.depthwise:
            self._single = depthwise.packed(conv)
        self.direct = conv.groups > 1 or form.size > 2
        assert not self.direct or after is None or isinstance(after, Requantize)
        if not self.direct:
            by_channel = after is None or isinstance(after, Requantize)
            self.packed = self._pack(max(-port.lo, port.hi), in_words, by_channel)
        elif not self.depthwise:
            self._kernel = conv.by_output().astype(np.float64).transpose(2, 3, 1, 0).copy()
            self._bias = conv.bias.astype(np.float64)

    def can_go_on(self, then: Layer) -> bool:
        """Whether ``then``, of the form that this one makes, can take a tile at once."""
        if self.direct or then.direct or not then.conv.is_matrix or self.conv.is_matrix or self.packed.merged:
            return False
        return self.out.size == (1 if then.packed.kernel in (BYTES, BYTE_TILES) else 2)

    def _pack(self, largest: int, in_words: bool, by_channel: bool) -> dense.Packed:
        """``largest``: magnitude of activations; ``in_words``: sums have 32 bits; ``by_channel``: what
        follows does not mix channels.
        """
        conv, zero = self.conv, self.form.zero.astype(np.int64)
        few = conv.stride**2 * conv.out_channels <= LANES
        merged = conv.transposed and by_channel and in_words and few
        phases = dense.phases_of(conv, merged)
        outputs = phases[0][1].shape[2]
        copies = outputs // conv.out_channels
        small = bool((np.abs(conv.weight.astype(np.int32)) < 128).all())
        bytewise = instructions() in BYTEWISE and self.form.size == 1 and in_words and small
        each, kernel = (4, BYTES) if bytewise else (2, words_kernel())
        words = -(-conv.in_channels // each)
        tiled = BYTE_TILES if bytewise else WORD_TILES
        run = self._run(words, vectors_for(outputs, tiled))
        if instructions() == "amx" and in_words and small and depth_of(words * run) >= SHALLOW:
            kernel = tiled
        vectors = vectors_for(outputs, kernel)
        width, run = LANES * vectors, self._run(words, vectors) if in_words else 1
        grouped = [
            np.pad(kernel, ((0, 0), (0, -kernel.shape[1] % each), (0, 0))).reshape(
                len(kernel), words, each, outputs
            )
            for _, kernel in phases
        ]
        pieces = (
            (1, np.array([[0, len(kernel)] for kernel in grouped])) if in_words else _pieces(grouped, largest)
        )
        cut, ends = pieces
        words = -(-words // cut)
        e = self.epilogue
        self._zero = np.tile(self._zero, copies)
        factors, words_of = (np.tile(t, copies) for t in (e.factors, e.words))
        self.epilogue = e._replace(channels=outputs, factors=factors, words=words_of)
        weights, start = [], np.zeros((len(phases), -(-outputs // width) * width), np.int64)
        for line, matrix, (_, matrices) in zip(start, grouped, phases, strict=True):
            shape = len(matrix), words * cut, each, len(line)
            room = np.zeros(shape, np.int8 if bytewise else np.int16)
            room[:, : matrix.shape[1], :, :outputs] = matrix
            apart = len(matrix) * cut, words, each, len(line) // width, width
            blocks = room.reshape(apart).transpose(3, 0, 1, 4, 2)
            blocks = halved(blocks) if kernel == WORD_TILES else blocks.reshape(-1)
            weights.append(blocks.view(np.uint8))
            line[:outputs] = np.tile(conv.bias, copies) if in_words else 0
            if bytewise:
                line[:outputs] += np.einsum("tio,i->o", matrices, zero)
        taps = np.concatenate([taps for taps, _ in phases]).astype(np.int64).reshape(-1, 2)
        least, most = int(taps.min()), int(taps.max())
        taps = np.repeat(taps, cut, 0)
        parts = np.tile(4 * words * np.arange(cut), len(taps) // cut)
        size = words * width * 4
        return dense.Packed(
            stride=1 if conv.transposed else conv.stride,
            up=conv.stride if conv.transposed else 1,
            merged=merged,
            taps=np.ascontiguousarray(np.column_stack([taps, parts])[::run]),
            phases=np.cumsum([0, *(len(kernel) * cut // run for kernel in grouped)]),
            least=least,
            most=most,
            kernel=kernel,
            vectors=vectors,
            words=words,
            cell=4 * words * cut,
            run=run,
            weights=aligned(np.concatenate(weights)),
            at=np.cumsum([0, *map(len, weights)])[:-1],
            start=aligned(start.astype(np.int32)),
            pieces=np.ascontiguousarray(ends // run),
            bias=np.tile(conv.bias.astype(np.float64), copies),
            chunk=max(1, _CACHED // (size * run)),
        )

    def _run(self, words: int, vectors: int) -> int:
        """Taps in a row that a product takes as one, of so many words each."""
        side = self.conv.kernel_size
        return side if not self.conv.transposed and side * words * LANES * vectors * 4 <= _CACHED else 1

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
        last = self.then or self
        out = empty((b, sides[0] * up, sides[1] * up, last.conv.out_channels), last.out.dtype)
        whole = out
        if self.direct:
            shift, stored = origin - conv.padding, out.reshape(b, out.shape[1], -1).view(np.uint8)
            after = self.epilogue, stored, self.out.size, self.out.zero, out.shape[2]
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
        k, columns = self.packed, min(sides[1], _COLUMNS)
        row = ((columns + TOGETHER[k.kernel]) * stride + k.most - k.least) * k.cell * stride
        fair = sides[0] * -(-sides[1] // columns) // (4 * allowed())
        rows = max(1, min(_BUFFER // row, fair, sides[0]))
        tasks = len(values) * -(-sides[0] // rows) * -(-sides[1] // columns)
        given, shape, first = flat(values), values.shape[1:], (k, self.epilogue)
        then = self.then is not None, last.packed, last.epilogue, self.out.zero
        share(
            tasks,
            lambda start, stop: dense.convolve(
                start, stop, sides, rows, columns, given, self.form.size, shape, self.form.zero,
                origin, first, then, flat(out), last.out.size, last._zero, out.shape[2],
            ),
        )  # fmt: skip
        return whole
