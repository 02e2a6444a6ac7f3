"""Integer codecs made by hand, one for each prior, that have every operation: random integers, and factors
that let the values of one picture fill each range. They need no float codec and no calibration.
"""

from __future__ import annotations

import numpy as np
import torch

from rdquant.codec import Codec
from rdquant.entropy import gaussian_tables, pmf_tables, scale_boundaries, scale_table, scale_thresholds
from rdquant.graph import Graph, Node, Operation, Port
from rdquant.graph.arithmetic import Multiplier, integer_root, requantize, squares
from rdquant.graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
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
from rdquant.latents import FIXED_HI, FIXED_LO, FixedPointScalar
from rdquant.priors import ChannelGroups, Factorized, FourPart, Hyperprior, Prior, Serial

M = 8
PRIORS: dict[str, Prior] = {
    "factorized": Factorized(),
    "scales": Hyperprior(means=False),
    "means": Hyperprior(),
    "serial": Serial(),
    "checkerboard": ChannelGroups((M,)),
    "groups": ChannelGroups((3, 5), checkerboard=False),
    "elic": ChannelGroups((2, 2, 4)),
    "four_part": FourPart(),
}


def constant(channels: int, factor: float) -> Multiplier:
    return Multiplier.from_float(np.full(channels, factor))


def fill(values: np.ndarray, most: float) -> Multiplier:
    """One factor for all channels."""
    return constant(values.shape[1], most / max(1.0, float(np.abs(values).max())))


class Network:
    """Nodes one after another, and what flows between them; each method gives the name of its node."""

    def __init__(self, prefix: str, inputs: dict[str, tuple[np.ndarray, Port]], seed: int) -> None:
        self.prefix, self.random = prefix, torch.Generator().manual_seed(seed)
        self.inputs = {name: port for name, (_, port) in inputs.items()}
        self.values = {name: value.astype(np.float64) for name, (value, _) in inputs.items()}
        self.ports, self.nodes = dict(self.inputs), []

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        return torch.randint(low, high + 1, shape, generator=self.random).numpy()

    def add(self, op: Operation, *inputs: str) -> str:
        name = f"{self.prefix}.{len(self.nodes)}"
        self.ports[name] = op.check(name, *(self.ports[i] for i in inputs))
        self.values[name] = op.exact(*(self.values[i] for i in inputs))
        self.nodes.append(Node(name, op, inputs))
        return name

    def conv(
        self, x: str, out: int, k: int = 3, stride: int = 1, transposed: bool = False, groups: int = 1,
        bits: int = 7, levels: bool = False, masked: bool = False,
    ) -> str:  # fmt: skip
        channels, top = self.ports[x].channels, 2 ** (bits - 1) - 1
        shape = (channels, out // groups) if transposed else (out, channels // groups)
        spread = torch.randn(*shape, k, k, generator=self.random) * top / 4
        weight = spread.round().clamp(-top, top).numpy()
        if masked:
            weight.reshape(*shape, -1)[..., k * k // 2 :] = 0
        chosen = np.unique(weight)[:: 1 + len(np.unique(weight)) // 2**bits].astype(np.int16)
        if levels:
            weight = chosen[np.searchsorted(chosen, weight).clip(max=len(chosen) - 1)]
        bias = self.integers(-1000, 1000, out)
        beyond = (k - stride + 1) // 2
        op = Convolution(
            weight.astype(np.int16),
            bias,
            stride,
            beyond,
            transposed,
            groups,
            bits,
            chosen if levels else None,
        )
        return self.add(op, x)

    def narrow(
        self, x: str, lo: int = -128, hi: int = 127, most: float | None = None, **options: bool
    ) -> str:
        values = self.values[x]
        negative = fill(values, hi / 4) if options.get("leaky") else None
        op = Requantize(fill(values, most or hi), negative, lo, hi, options.get("absolute", False))
        return self.add(op, x)

    def wide(self, x: str, most: float) -> str:
        return self.narrow(x, FIXED_LO, FIXED_HI, most)

    def gdn(self, x: str, inverse: bool) -> str:
        c = self.ports[x].channels
        widen = fill(self.values[x], 20000)
        gamma, beta = self.integers(0, 255, c, c).astype(np.int16), self.integers(1, 10**6, c)
        wide = requantize(self.values[x], widen, FIXED_LO, FIXED_HI)
        norm = np.einsum("ij,bjhw->bihw", gamma.astype(np.float64), squares(wide)) + beta.reshape(1, -1, 1, 1)
        root = integer_root(norm)
        factor = fill(wide * root, 127) if inverse else fill(wide / root * 2**20, 127)
        if not inverse:
            factor = Multiplier(factor.m, factor.shift - 20)
        return self.add(DivisiveNormalization(inverse, gamma, beta, widen, factor, -128, 127, 8), x)

    def compensate(self, x: str) -> str:
        c = self.ports[x].channels
        feedback = np.triu(self.integers(-100, 100, c, c), 1).astype(np.int16)
        offset = self.integers(-30, 30, c).astype(np.int32)
        return self.add(Compensate(fill(self.values[x], 100 * 256), -128, 127, offset, feedback), x)

    def total(self, a: str, b: str, lo: int = -(2**12), hi: int = 2**12 - 1) -> str:
        c = self.ports[a].channels
        m = np.tile(np.array([[3 * 2**14], [-(2**15)]], np.int32), (1, c))
        return self.add(Sum((1, -1), m, np.full(c, 15, np.int32), lo, hi), a, b)

    def table(self, x: str, function: str) -> str:
        port = self.ports[x]
        at = np.arange(port.lo, port.hi + 1) / 32
        values = 127 / (1 + np.exp(-at)) if function == "sigmoid" else 32 * np.tanh(at)
        return self.add(Pointwise(function, (), values.round().astype(np.int32), port.lo), x)

    def gate(self, a: str, b: str) -> str:
        return self.add(Product(fill(self.values[a] * self.values[b], 127), -128, 127), a, b)

    def norm(self, x: str) -> str:
        c, v = self.ports[x].channels, self.values[x]
        d = v - v.mean(1, keepdims=True)
        root = np.sqrt((d**2).sum(1, keepdims=True) + 100) * 32
        sign = np.where(np.arange(c) % 3 == 0, -1, 1).astype(np.int32)
        bias = self.integers(-2000, 2000, c).astype(np.int32)
        factor = constant(c, 100 / float(np.abs(d / root).max()))
        return self.add(LayerNorm(None, bias, 1e-5, sign, factor, 100, -128, 127), x)

    def attention(self, x: str, heads: int, window: int, shift: int) -> str:
        qkv = self.narrow(self.conv(x, 3 * self.ports[x].channels, 1))
        v = self.values[qkv]
        logit = constant(heads, 256 / float((v**2).mean() * 8))
        bias = self.integers(-64, 64, heads, (2 * window - 1) ** 2).astype(np.int32)
        one = constant(v.shape[1] // 3, 1.0)
        op = WindowAttention(heads, window, shift, bias, logit, exponentials(), one, -128, 127)
        return self.add(op, qkv)

    def graph(self, output: str) -> Graph:
        return Graph(self.inputs, tuple(self.nodes), output)


def analysis(pixels: np.ndarray) -> tuple[Graph, np.ndarray]:
    """Stride 8, all that encoders need and decoders do not."""
    n = Network("g_a", {"x": (pixels, Port(3, 0, 255))}, 1)
    x = n.gdn(n.conv("x", 8, 5, 2), inverse=False)
    x = n.add(Unshuffle(2), x)
    x = n.narrow(n.conv(x, 8, groups=4), leaky=True)
    x = n.wide(n.conv(x, M, 3, 2), 1500)
    return n.graph(x), n.values[x]


def synthesis(y_hat: np.ndarray) -> Graph:
    """Every other operation."""
    n = Network("g_s", {"y_hat": (y_hat, Port(M, FIXED_LO, FIXED_HI))}, 2)
    x = n.narrow("y_hat")
    x = n.total(x, n.attention(n.norm(x), 2, 4, 2))
    x = n.total(x, n.attention(n.norm(x), 1, 4, 0))
    x = n.gdn(n.conv(x, 8, 5, 2, transposed=True), inverse=True)
    x = n.compensate(n.conv(x, 8, 1, levels=True, bits=4))
    x = n.narrow(n.conv(x, 8, 4, 2, transposed=True, groups=2))
    left, right = n.add(Slice(0, 4), x), n.add(Slice(4, 8), x)
    x = n.add(Concatenate(), n.gate(left, n.table(right, "sigmoid")), n.table(left, "tanh"))
    x = n.narrow(n.conv(x, 8, 3, groups=8, bits=9), lo=0, hi=255)
    x = n.add(Shuffle(2), n.wide(n.conv(x, 12), 200))
    return n.graph(n.narrow(n.conv(x, 3, 1), 0, 255))


def codec(kind: str, pixels: np.ndarray) -> Codec:
    """``pixels: (H, W, 3)`` uint8, sides multiples of 32: what ranges are chosen for."""
    prior, latent = PRIORS[kind], Port(M, FIXED_LO, FIXED_HI)
    x = pixels.transpose(2, 0, 1)[None]
    networks: dict[str, Graph] = {}
    networks["analysis"], y = analysis(x)
    networks["synthesis"] = synthesis(y)
    scales = scale_table(16, 0.11, 20)
    laplace = np.exp(-np.abs(np.arange(-9, 10)) / 2)
    factorized = pmf_tables([laplace / laplace.sum() * 0.99] * M, [-9] * M, [0.01] * M)
    y_tables, z_tables, thresholds = factorized, None, None
    if prior.hyper:
        y_tables, z_tables = gaussian_tables(scales), factorized
        thresholds = scale_thresholds(scale_boundaries(scales), 8)
        values = {"y": (y, latent), "y_hat": (y, latent)}
        for i, (name, sources) in enumerate(prior.networks.items()):
            n = Network(name, {s: values[s] for s in sources}, 10 + i)
            if name.startswith(("channel_context", "spatial_context")):
                g = int(name[-1])
                first, own = sum(prior.groups[:g]), prior.groups[g]  # type: ignore[attr-defined]
                part = slice(0, first) if name.startswith("channel") else slice(first, first + own)
                given = y[:, part]
                n = Network(name, {"y_hat": (given, Port(given.shape[1], FIXED_LO, FIXED_HI))}, 10 + i)
            edges = [n.narrow(s) if n.ports[s].hi > 255 else s for s in sources]
            edge = n.add(Concatenate(), *edges) if len(edges) > 1 else edges[0]
            if name == "hyper_analysis":
                edge = n.narrow("y", absolute=True) if kind == "scales" else edge
                edge = n.wide(n.conv(n.narrow(n.conv(edge, M, 3, 2), leaky=True), M, 5, 2), 1000)
                n.nodes = list(n.graph(edge).trimmed().nodes)
                values["z"] = (n.values[edge], latent)
            elif name == "hyper_synthesis":
                edge = n.narrow(n.conv(edge, M, 5, 2, transposed=True), leaky=True)
                edge = n.conv(edge, 2 * M, 4, 2, transposed=True)
            elif name == "context":
                edge = n.narrow(n.conv(edge, 2 * M, 5, masked=True))
            elif "context" in name:
                edge = n.narrow(n.conv(edge, 2 * M, 5))
            else:
                edge = n.narrow(n.conv(edge, 2 * M, 1), lo=0, hi=255)
                edge = n.conv(edge, 2 * M, 1)
            if name in prior.outputs(M):
                channels = prior.outputs(M)[name] * (2 if prior.means else 1)  # type: ignore[attr-defined]
                edge = n.wide(n.conv(n.narrow(edge), channels, 1), 1200)
            elif name == "hyper_synthesis":
                edge = n.narrow(edge)
            networks[name] = n.graph(edge)
            values[name] = (n.values[edge], n.ports[edge])
    medians = np.arange(-M // 2, M // 2, dtype=np.int32) * 20
    quantizer = FixedPointScalar(8)
    return Codec(f"handmade-{kind}", networks, prior, y_tables, z_tables, thresholds, medians, quantizer)
