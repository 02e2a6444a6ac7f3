"""Whether the fast engine gives this machine's reference results, on integers that leave nothing to spare."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..graph import Graph, Node, Port
from ..graph.arithmetic import Multiplier
from ..graph.operations import Compensate, Convolution, DivisiveNormalization, Operation, Requantize
from . import cache, dense
from .fast import plan


def _factors(channels: int, factor: float) -> Multiplier:
    return Multiplier.from_float(np.full(channels, factor))


def _epilogues(channels: int, top: int, random: np.random.Generator) -> dict[str, Operation]:
    """What is done to accumulators in the same tile, of inputs up to ``top``."""
    gamma = random.integers(0, 256, (channels, channels)).astype(np.int16)
    beta = np.full(channels, 2**20)
    feedback = np.triu(random.integers(-300, 301, (channels, channels)), 1).astype(np.int16)
    wide, narrow = _factors(channels, 2.0**-6 / top), _factors(channels, 2.0**-18)
    return {
        "requantized": Requantize(_factors(channels, 2.0**-8 / top), None, -(2**15), 2**15 - 1),
        "normalized": DivisiveNormalization(True, gamma, beta, wide, narrow, -128, 127, 8),
        "compensated": Compensate(
            _factors(channels, 2.0**-5 / top), -128, 127, np.zeros(channels, np.int32), feedback
        ),
    }


@functools.cache
def self_test() -> bool:
    """Whether `passes`, which is asked once of what is compiled and kept on a machine. Warns if not."""
    passed = cache.verdict(dense.convolve, Path(__file__).parent)
    if passed is not None and passed.exists():
        return True
    ok = passes(lambda graph: plan(graph).run)
    if ok and passed is not None:
        with contextlib.suppress(OSError):  # kernels may be somebody else's
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()
    if not ok:
        warnings.warn(
            "the fast engine is not exact on this machine; using the float64 reference",
            RuntimeWarning,
            stacklevel=2,
        )
    return ok


def passes(engine: Callable[[Graph], Callable[[np.ndarray], np.ndarray]]) -> bool:
    """Whether ``engine(graph)(integers)`` is the reference's: dense, strided, transposed and grouped
    convolutions of 8 and 16-bit integers at the ends of their ranges, and what follows them.
    """
    random = np.random.default_rng(0)
    ok = True
    for channels, k, stride, transposed, groups, top in (
        (96, 5, 2, False, 1, 255),
        (64, 5, 2, True, 1, 255),
        (64, 3, 1, False, 1, 2**15 - 1),
        (20, 1, 1, False, 1, 2**16 - 1),
        (32, 5, 1, False, 32, 255),
    ):
        weight = random.integers(-127, 128, (channels, channels // groups, k, k)).astype(np.int16) | 1
        bias = np.zeros(channels, np.int64)
        conv = Convolution(weight, bias, stride, (k - 1) // 2, transposed, groups, 8)
        ends: dict[str, Operation | None] = {"sums": None, **_epilogues(channels, top, random)}
        if k > 1 and groups == 1:  # the others do: tiles are finished alike
            del ends["normalized"], ends["compensated"]
        for output, after in ends.items():
            nodes = (Node("sums", conv, ("x",)), *([Node(output, after, ("sums",))] if after else []))
            graph = Graph({"x": Port(channels, 0, top)}, nodes, output)
            for least in (top, 0):
                q = random.integers(least, top + 1, (1, channels, 8, 12))
                ok &= np.array_equal(engine(graph)(q), graph.exact(q))
    return ok
