"""Whether the fast engine gives this machine's reference results, on integers that leave nothing to spare."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..graph import Graph, Node, Port
from ..graph.arithmetic import Multiplier
from ..graph.operations import Compensate, Convolution, DivisiveNormalization, Operation, Requantize, Sum
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


def _stream(random: np.random.Generator) -> Graph:
    """A residual stream of 16 bits: a leaky product, its sum with what it is given, a product of bytes."""
    weight = random.integers(-63, 64, (32, 32, 1, 1)).astype(np.int16)
    conv = Convolution(weight, random.integers(-999, 999, 32), bits=8)
    words, down = (-(2**15), 2**15 - 1), np.array([16, 17, 20, 46] * 8, np.int32)
    m = random.integers(2**15, 2**16, (2, 32)).astype(np.int32) * np.array([[1], [-1]], np.int32)
    nodes = (
        Node("mix", conv, ("x",)),
        Node("leaky", Requantize(_factors(32, 2.0**-9), _factors(32, 2.0**-12), *words), ("mix",)),
        Node("sum", Sum((1, 1), m, down, *words), ("leaky", "x")),
        Node("narrow", Requantize(_factors(32, 2.0**-8), None, -128, 127), ("sum",)),
        Node("last", conv, ("narrow",)),
        Node("out", Requantize(_factors(32, 2.0**-6), None, *words), ("last",)),
        Node("added", Sum((1, 1), abs(m), down, *words), ("sum", "out")),
    )
    return Graph({"x": Port(32, *words)}, nodes, "added")


def _mixed(random: np.random.Generator) -> Graph:
    """What GDN gives, tile by tile on to a product of each position, compensated."""
    first, then = (
        Convolution(
            random.integers(-127, 128, (64, 64, k, k)).astype(np.int16), np.zeros(64, np.int64), bits=8
        )
        for k in (3, 1)
    )
    words = _epilogues(64, 255, random)["normalized"]
    assert isinstance(words, DivisiveNormalization)
    nodes = (
        Node("sums", replace(first, padding=1), ("x",)),
        Node("gdn", replace(words, lo=-(2**15), hi=2**15 - 1, factor=_factors(64, 2.0**-12)), ("sums",)),
        Node("mix", then, ("gdn",)),
        Node("out", _epilogues(64, 255, random)["compensated"], ("mix",)),
    )
    return Graph({"x": Port(64, 0, 255)}, nodes, "out")


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
    """Whether ``engine(graph)(integers)`` is the reference's: dense, strided, transposed and depthwise
    convolutions of 8 and 16-bit integers at the ends of their ranges, and what follows them; and steps that
    go together.
    """
    random = np.random.default_rng(0)
    stream, mixed = _stream(random), _mixed(random)
    q = random.integers(0, 256, (1, 64, 9, 11))
    ok = np.array_equal(engine(mixed)(q), mixed.exact(q))
    for q in (
        random.choice([-(2**15), 0, 2**15 - 1], (1, 32, 12, 9)),
        random.integers(-999, 999, (1, 32, 5, 3)),
    ):
        ok &= np.array_equal(engine(stream)(q), stream.exact(q))
    for channels, k, stride, transposed, groups, top in (
        (96, 5, 2, False, 1, 255),
        (64, 5, 2, True, 1, 255),
        (64, 3, 1, False, 1, 2**15 - 1),
        (20, 1, 1, False, 1, 2**15 - 1),
        (32, 5, 1, False, 32, 255),
    ):
        weight = random.integers(-127, 128, (channels, channels // groups, k, k)).astype(np.int16) | 1
        bias = np.zeros(channels, np.int64)
        conv = Convolution(weight, bias, stride, (k - 1) // 2, transposed, groups, 8)
        ends: dict[str, Operation | None] = {"sums": None, **_epilogues(channels, top, random)}
        if k > 1:  # others do: tiles are finished alike
            del ends["normalized"], ends["compensated"]
        for output, after in ends.items():
            nodes = (Node("sums", conv, ("x",)), *([Node(output, after, ("sums",))] if after else []))
            graph = Graph({"x": Port(channels, 0, top)}, nodes, output)
            for least in (top, 0):
                q = random.integers(least, top + 1, (1, channels, 8, 12))
                ok &= np.array_equal(engine(graph)(q), graph.exact(q))
    return ok
