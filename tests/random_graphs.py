"""Random integer operations and graphs, within the contract's bounds and up to them."""

from __future__ import annotations

import math

import numpy as np
import torch

from rdquant.graph import Graph, Node, Operation, Port
from rdquant.graph.arithmetic import Multiplier
from rdquant.graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
    Gain,
    LayerNorm,
    Pointwise,
    Product,
    Requantize,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
    WindowAttention,
)
from rdquant.graph.operations.attention import exponentials

KINDS = (
    "convolution", "requantize", "leaky", "absolute", "compensate", "gdn", "igdn", "sum", "sum1", "sum3",
    "product", "concatenate", "slice", "shuffle", "unshuffle", "table", "layer_norm", "attention",
    "shifted attention", "gain",
)  # fmt: skip
#: sides must be multiples of it
GRANULE = {"attention": 4, "shifted attention": 4, "unshuffle": 2}
WIDE = ((-100, 155), (-(2**15), 2**15 - 1), (0, 2**16 - 1))


def multiplier(g: torch.Generator, channels: int, low: float, high: float) -> Multiplier:
    span = torch.rand(channels, generator=g, dtype=torch.float64)
    return Multiplier.from_float(low * (high / low) ** span)


def integers(g: torch.Generator, low: int, high: int, *shape: int) -> np.ndarray:
    """int64 in low..high, both met often."""
    t = torch.randint(low, high + 1, shape, generator=g)
    extreme = torch.rand(shape, generator=g)
    return torch.where(extreme < 0.02, low, torch.where(extreme > 0.98, high, t)).numpy()


def convolution(
    g: torch.Generator, cin: int, cout: int, k: int, stride: int = 1, transposed: bool = False,
    groups: int = 1, bits: int = 8,
) -> Convolution:  # fmt: skip
    top = 2 ** (bits - 1) - 1
    shape = (cin, cout // groups, k, k) if transposed else (cout, cin // groups, k, k)
    weight = integers(g, -top, top, *shape).astype(np.int16)
    bias = integers(g, -5000, 5000, cout)
    return Convolution(weight, bias, stride, (k - 1) // 2, transposed, groups, bits)


def epilogue(g: torch.Generator, kind: str, channels: int, reach: float) -> Operation:
    """What takes accumulators whose typical magnitude is ``reach``."""
    scale = 200 / reach
    factor = multiplier(g, channels, scale / 3, scale * 3)
    if kind == "requantize":
        return Requantize(factor, None, 0, 255)
    if kind == "leaky":
        return Requantize(factor, multiplier(g, channels, scale / 90, scale / 30), -9, 246)
    if kind == "absolute":
        return Requantize(factor, None, 0, 255, absolute=True)
    if kind == "compensate":
        feedback = np.triu(integers(g, -900, 900, channels, channels), 1).astype(np.int16)
        offset = integers(g, -100, 100, channels).astype(np.int32)
        return Compensate(multiplier(g, channels, scale * 80, scale * 700), -128, 127, offset, feedback)
    gamma = integers(g, 0, 255, channels, channels).astype(np.int16)
    beta = integers(g, 1, 2**20, channels)
    widen = multiplier(g, channels, scale * 30, scale * 300)
    root = math.sqrt(128 * channels * 20_000) * 32
    out = 1 / (300 * root) if kind == "igdn" else root / 300
    factor = multiplier(g, channels, out / 3, out * 3)
    return DivisiveNormalization(kind == "igdn", gamma, beta, widen, factor, -120, 135, 8)


def attention(g: torch.Generator, heads: int, width: int, shift: int, top: int) -> WindowAttention:
    c = heads * width
    return WindowAttention(
        heads, 4, shift, integers(g, -200, 200, heads, 49).astype(np.int32),
        multiplier(g, heads, 30 / (top**2 * width**0.5), 300 / (top**2 * width**0.5)), exponentials(),
        multiplier(g, c, 60 / top, 600 / top), -120, 130,
    )  # fmt: skip


def operation(kind: str, g: torch.Generator, channels: int, lo: int, hi: int) -> tuple[Operation, list[Port]]:
    """An operation, and what it takes."""
    port, c = Port(channels, lo, hi), channels
    top = max(-lo, hi)
    if kind == "convolution":
        k, stride = [(1, 1), (3, 1), (5, 2), (4, 2), (2, 2), (7, 1)][int(torch.randint(6, (1,), generator=g))]
        groups = [1, c][int(torch.randint(2, (1,), generator=g))]
        transposed = bool(torch.randint(2, (1,), generator=g))
        bits = int(torch.randint(2, 10, (1,), generator=g))
        return convolution(g, c, 2 * c, k, stride, transposed, groups, bits), [port]
    if kind in ("requantize", "leaky", "absolute", "compensate", "gdn", "igdn"):
        return epilogue(g, kind, c, top), [port]
    if kind.startswith("sum"):
        n = int(kind[3:] or 2)
        m = integers(g, -(2**16) + 1, 2**16 - 1, n, c).astype(np.int32)
        around = 16 + round(math.log2(top / 128))
        shift = integers(g, around - 2, around + 2, c).astype(np.int32)
        return Sum((1,) * n, m, shift, -120, 130), [port] * n
    if kind == "product":
        scale = 200 / top**2
        return Product(multiplier(g, c, scale / 9, scale * 9), -120, 130), [port, Port(c, -128, 127)]
    if kind == "concatenate":
        return Concatenate(), [port, Port(c + 2, -5, 7), port]
    if kind == "slice":
        return Slice(c // 2, c), [port]
    if kind == "shuffle":
        return Shuffle(2), [Port(4 * c, lo, hi)]
    if kind == "unshuffle":
        return Unshuffle(2), [port]
    if kind == "table":
        values = integers(g, -(2**15), 2**15 - 1, min(hi - lo + 1, 2**16)).astype(np.int32)
        return Pointwise("gelu", values=values, lo=lo), [port]
    if kind == "gain":
        log2 = integers(g, -4096 * 3, 4096 * 3, 5, c).astype(np.int32)
        return Gain(log2, int(torch.randint(4097, (1,), generator=g)), -120, 130), [port]
    if kind == "layer_norm":
        sign = torch.where(torch.rand(c, generator=g) < 0.2, -1, 1).numpy().astype(np.int32)
        factor = multiplier(g, c, 300, 9000) if top < 2**12 else multiplier(g, c, 3000, 9000)
        bias = integers(g, -5000, 5000, c).astype(np.int32)
        return LayerNorm(None, bias, 1e-5, sign, factor, 7, -120, 130), [port]
    lo, hi = max(lo, -1024), min(hi, 1024)
    shift = 2 if kind.startswith("shifted") else 0
    return attention(g, 2, c, shift, max(-lo, hi)), [Port(6 * c, lo, hi)]


def graph_of(op: Operation, ports: list[Port]) -> Graph:
    names = tuple(f"x{i}" for i in range(len(ports)))
    return Graph(dict(zip(names, ports, strict=True)), (Node("op", op, names),), "op")


def inputs_of(
    graph: Graph, g: torch.Generator, height: int, width: int, batch: int = 1
) -> tuple[np.ndarray, ...]:
    return tuple(integers(g, p.lo, p.hi, batch, p.channels, height, width) for p in graph.inputs.values())


def branching(g: torch.Generator, channels: int = 6) -> Graph:
    """Two inputs; strides, a skip, a gate, accumulators with two readers, up and down again."""
    c = channels
    reach = 90 * 60 * math.sqrt(9 * c)
    table = integers(g, -90, 90, 251).astype(np.int32)
    nodes = [
        Node("down", convolution(g, c, 2 * c, 5, 2), ("a",)),
        Node("gdn", epilogue(g, "gdn", 2 * c, reach), ("down",)),
        Node("b.in", convolution(g, c, 2 * c, 4, 2), ("b",)),
        Node("b.out", epilogue(g, "requantize", 2 * c, reach), ("b.in",)),
        Node("b.abs", epilogue(g, "absolute", 2 * c, reach), ("b.in",)),
        Node("joined", Concatenate(), ("gdn", "b.out", "b.abs")),
        Node("deep", convolution(g, 6 * c, 6 * c, 3, 1, False, 6 * c), ("joined",)),
        Node("deep.out", epilogue(g, "leaky", 6 * c, 40_000), ("deep",)),
        Node("halves", Slice(0, 4 * c), ("deep.out",)),
        Node("up", Shuffle(2), ("halves",)),
        Node("back", convolution(g, 6 * c, c, 5, 2, True), ("joined",)),
        Node("back.out", epilogue(g, "compensate", c, reach), ("back",)),
        Node("sum", Sum((1, 1), *_weights(g, 2, c), -120, 130), ("up", "back.out")),
        Node("gate", Product(multiplier(g, c, 0.005, 0.05), -120, 130), ("sum", "up")),
        Node("table", Pointwise("silu", values=table, lo=-120), ("gate",)),
        Node("out", convolution(g, c, 3, 3), ("table",)),
        Node("out.out", epilogue(g, "igdn", 3, reach), ("out",)),
    ]
    return Graph({"a": Port(c, -100, 155), "b": Port(c, 0, 2**16 - 1)}, tuple(nodes), "out.out")


def pointwise(g: torch.Generator, channels: int = 6) -> Graph:
    """Positions by themselves: 1x1 convolutions and what follows them, a skip, two readers of most edges; and
    one 3x3 convolution in between.
    """
    c = channels
    nodes = [
        Node("a.mix", convolution(g, c, 2 * c, 1), ("a",)),
        Node("a.out", epilogue(g, "leaky", 2 * c, 90 * 60 * math.sqrt(c)), ("a.mix",)),
        Node("first", Slice(0, c), ("a.out",)),
        Node("second", Slice(c, 2 * c), ("a.out",)),
        Node("gate", Product(multiplier(g, c, 0.005, 0.05), -120, 130), ("first", "second")),
        Node("wide", convolution(g, c, c, 3), ("gate",)),
        Node("wide.out", epilogue(g, "requantize", c, 90 * 60 * math.sqrt(9 * c)), ("wide",)),
        Node("sum", Sum((1, 1), *_weights(g, 2, c), -120, 130), ("gate", "wide.out")),
        Node("both", Concatenate(), ("sum", "a.out")),
        Node("mix", convolution(g, 3 * c, c, 1), ("both",)),
        Node("mix.out", epilogue(g, "compensate", c, 90 * 60 * math.sqrt(3 * c)), ("mix",)),
        Node("narrow", epilogue(g, "requantize", c, 60), ("mix.out",)),
    ]
    return Graph({"a": Port(c, -100, 155)}, tuple(nodes), "narrow")


def _weights(g: torch.Generator, n: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    return integers(g, 2**14, 2**15, n, c).astype(np.int32), np.full(c, 16, np.int32)
