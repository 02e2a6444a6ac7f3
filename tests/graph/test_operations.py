"""Each operation's integers: as plain Python counts them, as its relaxed form gives them, and its bounds."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from random_graphs import GRANULE, KINDS, convolution, epilogue, graph_of, inputs_of, integers, operation
from rdquant.codecs.layers import conv1
from rdquant.errors import BadModel
from rdquant.graph import OPERATIONS, Graph, Node, Operation, Port, Rounding
from rdquant.graph.arithmetic import Multiplier
from rdquant.graph.operations import DivisiveNormalization, LayerNorm, Product, Sum, WindowAttention
from rdquant.graph.operations.attention import EXPONENTIALS, exponentials, relative_positions

SPANS = ((-100, 155), (-(2**15), 2**15 - 1))


def _sample(kind: str, seed: int = 0, span: tuple[int, int] = SPANS[0]) -> tuple[Operation, list[Port]]:
    return operation(kind, torch.Generator().manual_seed(seed), 3, *span)


def test_every_kind_of_operation_is_tested() -> None:
    assert {type(_sample(kind)[0]) for kind in KINDS} == set(OPERATIONS.values())
    for name, op in OPERATIONS.items():
        assert op.kind == name
        assert all(f.name != "inputs" for f in fields(op))  # type: ignore[arg-type]


# relaxed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("seed", range(4))
def test_relaxed_is_exact_up_to_what_it_leaves_out(kind: str, span: tuple[int, int], seed: int) -> None:
    """Only means, roots, squares and exponentials are not rounded in it."""
    op, ports = _sample(kind, seed, span)
    graph = graph_of(op, ports)
    granule = GRANULE.get(kind, 2)
    q = inputs_of(graph, torch.Generator().manual_seed(seed), 2 * granule, 3 * granule)
    off = np.abs(graph.relaxed(*(torch.from_numpy(t).double() for t in q)).numpy() - graph.exact(*q))
    if isinstance(op, DivisiveNormalization):
        return  # x is not clipped in it: see test_relaxed_gdn
    if isinstance(op, (LayerNorm, WindowAttention)):
        assert float(off.max()) <= 9 and float(off.mean()) < 1
    else:
        assert not off.any()


@pytest.mark.parametrize("kind", ["gdn", "igdn"])
def test_relaxed_gdn(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    op = epilogue(g, kind, 9, 3e5)
    q = torch.randint(-(10**5), 10**5, (1, 9, 20, 20), generator=g).double()
    off = np.abs(op.relaxed(q).numpy() - op.exact(q.numpy()))
    assert float(off.max()) <= 1 and float(off.mean()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_relaxed_has_gradients_and_degrees_of_rounding(kind: str) -> None:
    op, ports = _sample(kind)
    graph = graph_of(op, ports)
    granule = GRANULE.get(kind, 2)
    given = inputs_of(graph, torch.Generator().manual_seed(0), 2 * granule, 2 * granule)
    q = tuple(torch.from_numpy((0.05 * t).round()).requires_grad_() for t in given)
    for rounding in Rounding:
        out = graph.relaxed(*q, rounding=rounding)
        gradients = torch.autograd.grad(out.square().sum(), q, allow_unused=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
        assert any(g is not None and bool(g.any()) for g in gradients)
    off = graph.relaxed(*q, rounding=Rounding.CLIPPED) - graph.relaxed(*q)
    assert float(off.detach().abs().max()) <= (0.5 + 1e-9 if kind != "compensate" else 99)


# plain Python


def _python_gdn(acc: list[int], e: DivisiveNormalization) -> list[int]:
    assert e.widen is not None and e.factor is not None
    m, s = e.widen.m.tolist(), e.widen.shift.tolist()
    xs = [(a * m[c] + (1 << s[c] >> 1)) >> s[c] for c, a in enumerate(acc)]
    xs = [max(-(2**15), min(2**15 - 1, x)) for x in xs]
    squared = [min((x * x + 2**13) >> 14, 65535) for x in xs]
    out = []
    for c, x in enumerate(xs):
        norm = e.beta.tolist()[c] + sum(a * v for a, v in zip(e.gamma.tolist()[c], squared, strict=True))
        root, m_c, s_c = math.isqrt(norm << 10), e.factor.m.tolist()[c], e.factor.shift.tolist()[c]
        if e.inverse:
            y = (x * root * m_c + (1 << s_c >> 1)) >> s_c
        else:
            y = (2 * x * m_c + (root << s_c)) // (2 * (root << s_c))
        out.append(max(e.lo, min(e.hi, y)))
    return out


@pytest.mark.parametrize("kind", ["gdn", "igdn"])
def test_convolution_and_gdn_equal_python_integers(kind: str) -> None:
    g = torch.Generator().manual_seed(3)
    conv, e = convolution(g, 4, 6, 4, 2, groups=2), epilogue(g, kind, 6, 20_000)
    assert isinstance(e, DivisiveNormalization)
    q = integers(g, -128, 127, 1, 4, 6, 8)
    out = e.exact(conv.exact(q.astype(np.float64)))[0]
    padded = np.pad(q[0], ((0, 0), (1, 1), (1, 1))).tolist()
    w, b = conv.weight.tolist(), conv.bias.tolist()
    for i in range(3):
        for j in range(4):
            acc = [
                b[c] + sum(
                    w[c][k][u][v] * padded[c // 3 * 2 + k][2 * i + u][2 * j + v]
                    for k in range(2) for u in range(4) for v in range(4)
                )
                for c in range(6)
            ]  # fmt: skip
            assert out[:, i, j].tolist() == _python_gdn(acc, e)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("k", "stride"), [(1, 1), (3, 1), (4, 2), (5, 2), (5, 3)])
def test_transposed_convolutions_scatter(groups: int, k: int, stride: int) -> None:
    g = torch.Generator().manual_seed(k)
    conv = replace(convolution(g, 4, 6, k, stride, True, groups), padding=(k - 1) // 2)
    q = integers(g, -9, 9, 1, 4, 3, 2)
    expected = np.zeros((6, 3 * stride + 2 * k, 2 * stride + 2 * k), np.int64)
    for i in range(4):
        first = i // (4 // groups) * (6 // groups)
        for r in range(3):
            for c in range(2):
                at = (slice(first, first + 6 // groups), slice(r * stride, r * stride + k))
                part = expected[at][..., c * stride : c * stride + k]
                part += conv.weight[i].astype(np.int64) * q[0, i, r, c]
    p = conv.padding
    expected = expected[:, p : p + 3 * stride, p : p + 2 * stride] + conv.bias[:, None, None]
    assert np.array_equal(conv.exact(q.astype(np.float64))[0], expected)
    assert np.array_equal(conv.stored_as(conv.by_output()), conv.weight)


@pytest.mark.parametrize("kind", ["sum", "sum1", "sum3", "product"])
@pytest.mark.parametrize("span", SPANS)
def test_sums_and_products_equal_python_integers(kind: str, span: tuple[int, int]) -> None:
    op, ports = _sample(kind, 1, span)
    graph = graph_of(op, ports)
    q = inputs_of(graph, torch.Generator().manual_seed(1), 4, 5)
    out = graph.exact(*q)[0].tolist()
    for c in range(3):
        for i in range(4):
            for j in range(5):
                values = [int(t[0, c, i, j]) for t in q]
                if isinstance(op, Sum):
                    assert op.m is not None and op.shift is not None
                    total = sum(v * int(m) for v, m in zip(values, op.m[:, c], strict=True))
                    s = int(op.shift[c])
                else:
                    assert isinstance(op, Product) and op.factor is not None
                    total, s = values[0] * values[1] * int(op.factor.m[c]), int(op.factor.shift[c])
                assert out[c][i][j] == max(-120, min(130, (total + (1 << s >> 1)) >> s))


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_layer_norm_equals_python_integers(span: tuple[int, int], channels: int) -> None:
    g = torch.Generator().manual_seed(2)
    op, ports = operation("layer_norm", g, channels, *span)
    assert isinstance(op, LayerNorm) and op.factor is not None and op.sign is not None
    op.check("n", *ports)
    q = integers(g, *span, 1, channels, 5, 6)
    q[0, :, 0, 0] = span[1]  # nothing but the mean
    out = op.exact(q.astype(np.float64))[0]
    m, shift = (op.factor.m * op.sign).tolist(), op.factor.shift.tolist()
    for i in range(5):
        for j in range(6):
            x = q[0, :, i, j].tolist()
            d = [(2 * (channels * v - sum(x)) + channels) // (2 * channels) for v in x]
            root = math.isqrt((sum(v * v for v in d) + op.floor) << 10)
            for c, v in enumerate(d):
                below = root << shift[c]
                y = (512 * v * m[c] + below * (2 * op.bias.tolist()[c] + 256)) // (512 * below)
                assert int(out[c, i, j]) == max(op.lo, min(op.hi, y))


@pytest.mark.parametrize("shift", [0, 3])
def test_attention_equals_python_integers(shift: int) -> None:
    g = torch.Generator().manual_seed(4)
    op, (port,) = operation("attention", g, 3, -200, 200)
    assert isinstance(op, WindowAttention) and op.logit is not None and op.factor is not None
    op = replace(op, shift=shift)
    op.check("a", port)
    h, w, n, heads, width = 8, 12, 4, 2, 3
    q = integers(g, -200, 200, 1, 18, h, w)
    out = op.exact(q.astype(np.float64))[0]
    table, relative = exponentials().tolist(), relative_positions(n).tolist()

    def windows(at: int, side: int) -> tuple[int, bool, int]:
        """Which, whether from beyond the edge, and where in it."""
        moved = (at + shift) % side
        return moved // n, moved < shift, moved % n

    for head in range(heads):
        for r in range(h):
            for c in range(w):
                own = (windows(r, h), windows(c, w))
                rows = slice(head * width, (head + 1) * width)
                query = q[0, :6][rows, r, c].tolist()
                logits, values = [], []
                for r2 in range(h):
                    for c2 in range(w):
                        other = (windows(r2, h), windows(c2, w))
                        if [a[:2] for a in own] != [a[:2] for a in other]:
                            continue
                        key = q[0, 6:12][rows, r2, c2].tolist()
                        product = sum(a * b for a, b in zip(query, key, strict=True))
                        m, s = int(op.logit.m[head]), int(op.logit.shift[head])
                        position = relative[own[0][2] * n + own[1][2]][other[0][2] * n + other[1][2]]
                        logits.append((product * m + (1 << s >> 1) >> s) + int(op.bias[head, position]))
                        values.append(q[0, 12:][rows, r2, c2].tolist())
                weights = [table[min(max(logits) - t, EXPONENTIALS - 1)] for t in logits]
                for k in range(width):
                    m, s = (int(t[head * width + k]) for t in (op.factor.m, op.factor.shift))
                    above = sum(e * v[k] for e, v in zip(weights, values, strict=True)) * m
                    below = sum(weights) << s
                    expected = max(op.lo, min(op.hi, (2 * above + below) // (2 * below)))
                    assert int(out[head * width + k, r, c]) == expected


def test_attention_does_not_look_around_the_edge_however_large_its_logits() -> None:
    g = torch.Generator().manual_seed(5)
    op, _ = operation("shifted attention", g, 3, -1000, 1000)
    assert isinstance(op, WindowAttention)
    op = replace(op, logit=Multiplier(*(np.array([v, v], np.int32) for v in (2**16 - 1, 0))))
    q = integers(g, -1000, 1000, 1, 18, 4, 4).astype(np.float64)
    q[:, :12] = np.sign(np.arange(4) - 1.5) * 1000  # left and right half disagree as they can
    changed = q.copy()
    changed[:, 12:, :, 2:] = 0
    assert np.array_equal(op.exact(q)[..., :2], op.exact(changed)[..., :2])


# bounds


def _constant(channels: int, m: int, shift: int) -> Multiplier:
    return Multiplier(*(np.full(channels, v).astype(np.int32) for v in (m, shift)))


def _full(value: int, dtype: type, *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype)


I16, I32, I64 = np.int16, np.int32, np.int64


@pytest.mark.parametrize(
    ("kind", "lies", "message"),
    [
        ("convolution", {"weight": _full(0, I32, 6, 3, 5, 5)}, "int16"),
        ("convolution", {"weight": _full(0, I16, 6, 3, 5)}, "4 axes"),
        ("convolution", {"weight": _full(0, I16, 6, 3, 5, 3)}, "square"),
        ("convolution", {"weight": _full(0, I16, 6, 2, 5, 5)}, "takes 2 channels"),
        ("convolution", {"weight": _full(0, I16, 0, 3, 5, 5)}, "groups"),
        ("convolution", {"weight": _full(128, I16, 6, 3, 5, 5)}, "128"),
        ("convolution", {"weight": _full(-(2**15), I16, 6, 3, 5, 5)}, "32768"),
        ("convolution", {"bias": _full(0, I64, 5)}, "bias"),
        ("convolution", {"bias": _full(0, I32, 6)}, "bias"),
        ("convolution", {"bias": _full(2**36, I64, 6)}, "2\\^36"),
        ("convolution", {"bias": _full(-(2**63), I64, 6)}, "2\\^36"),
        ("convolution", {"stride": 0}, "stride"),
        ("convolution", {"stride": 17}, "stride"),
        ("convolution", {"padding": 0}, "padding"),
        ("convolution", {"padding": 3}, "padding"),
        ("convolution", {"groups": 4}, "groups"),
        ("convolution", {"groups": 0}, "groups"),
        ("convolution", {"bits": 1}, "bits"),
        ("convolution", {"bits": 17}, "bits"),
        ("convolution", {"levels": _full(0, I16, 2)}, "rise"),
        ("convolution", {"levels": np.arange(3, dtype=I16)}, "not in its levels"),
        ("requantize", {"lo": 1}, "lo <= 0"),
        ("requantize", {"hi": 2**16}, "16 bits"),
        ("requantize", {"lo": 0, "hi": 0}, "lo <= 0"),
        ("requantize", {"factor": _constant(2, 2**15, 15)}, "factor"),
        ("requantize", {"factor": _constant(3, 2**16, 15)}, "65535"),
        ("requantize", {"factor": _constant(3, 2**15, 47)}, "46"),
        ("leaky", {"negative": _constant(3, -1, 15)}, "negative"),
        ("gdn", {"gamma": _full(256, I16, 3, 3)}, "256"),
        ("gdn", {"gamma": _full(-1, I16, 3, 3)}, "-1"),
        ("gdn", {"gamma": _full(1, I32, 3, 3)}, "gamma"),
        ("gdn", {"beta": _full(0, I64, 3)}, "norms"),
        ("gdn", {"beta": _full(2**33, I64, 3)}, "norms"),
        ("gdn", {"factor": _constant(3, 40_000, 31)}, "shift"),
        ("gdn", {"widen": _constant(2, 0, 0)}, "widen"),
        ("gdn", {"widen": None}, "lacks"),
        ("gdn", {"bits": 16}, "bits"),
        ("sum", {"m": _full(2**16, I32, 2, 3)}, "2\\^16"),
        ("sum", {"m": _full(-(2**31), I32, 2, 3)}, "2\\^16"),
        ("sum", {"m": _full(1, I32, 3, 3)}, "m must"),
        ("sum", {"shift": _full(47, I32, 3)}, "shift"),
        ("sum", {"shift": _full(-1, I32, 3)}, "shift"),
        ("sum", {"signs": (1, 0)}, "signs"),
        ("sum", {"hi": -1}, "lo <= 0"),
        ("product", {"factor": None}, "factor"),
        ("product", {"factor": _constant(3, 1, -1)}, "shift"),
        ("slice", {"stop": 4}, "channels"),
        ("slice", {"start": 3, "stop": 3}, "channels"),
        ("shuffle", {"factor": 5}, "shuffled"),
        ("unshuffle", {"factor": 0}, "unshuffled"),
        ("table", {"function": "cosh"}, "cosh"),
        ("table", {"values": None}, "values"),
        ("table", {"values": _full(0, I16, 256)}, "values"),
        ("table", {"values": _full(2**15, I32, 256)}, "16 bits"),
        ("table", {"values": _full(0, I32, 255)}, "its table"),
        ("table", {"lo": -99}, "its table"),
        ("layer_norm", {"floor": 0}, "squares"),
        ("layer_norm", {"floor": 2**42}, "squares"),
        ("layer_norm", {"sign": _full(0, I32, 3)}, "sign"),
        ("layer_norm", {"sign": None}, "lacks"),
        ("layer_norm", {"factor": _constant(3, 2**15, 40)}, "53 bits"),
        ("layer_norm", {"bias": _full(-(2**31), I32, 3), "floor": 2**29}, "53 bits"),
        ("layer_norm", {"bias": _full(0, I64, 3)}, "bias"),
        ("attention", {"heads": 0}, "heads"),
        ("attention", {"heads": 4}, "heads"),
        ("attention", {"window": 17}, "window"),
        ("attention", {"shift": 4}, "shift"),
        ("attention", {"logit": None}, "lacks"),
        ("attention", {"factor": _constant(6, 2**15, 31)}, "shift"),
        ("attention", {"bias": _full(0, I32, 2, 48)}, "bias"),
        ("attention", {"bias": _full(-(2**31), I32, 2, 49)}, "16 bits"),
        ("attention", {"exponential": _full(0, I32, EXPONENTIALS)}, "exponentials"),
        ("attention", {"exponential": _full(2**15, I32, EXPONENTIALS)}, "exponentials"),
        ("attention", {"exponential": _full(1, I32, 10)}, "exponential"),
    ],
)  # fmt: skip
def test_each_lie_is_refused(kind: str, lies: dict, message: str) -> None:
    op, ports = _sample(kind)
    if kind == "convolution":
        op = convolution(torch.Generator().manual_seed(0), 3, 6, 5, 2)
    op.check("n", *ports)
    with pytest.raises(BadModel, match=message):
        replace(op, **lies).check("n", *ports)  # type: ignore[type-var]


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_an_operation_has_no_room_for_are_refused(kind: str) -> None:
    op, ports = _sample(kind)
    if kind in ("concatenate", "slice", "shuffle", "unshuffle"):
        return  # moves anything
    wide = 2**36 if kind in ("requantize", "leaky", "absolute", "compensate", "gdn", "igdn") else 2**16
    for lo, hi in ((-wide, 0), (0, wide)):
        with pytest.raises(BadModel):
            op.check("n", *(replace(p, lo=lo, hi=hi) for p in ports))
    with pytest.raises(BadModel):
        op.check("n", *(replace(p, channels=p.channels + 1) for p in ports)) if kind != "table" else op.check(
            "n", Port(3, -(2**20), 0)
        )


def test_a_wide_convolution_is_refused() -> None:
    conv = convolution(torch.Generator().manual_seed(0), 40, 3, 5, bits=16)
    with pytest.raises(BadModel, match="2\\^36"):
        conv.check("n", Port(40, -(2**15), 2**15 - 1))


# the graph


def _chain(*nodes: Node, output: str = "b") -> Graph:
    return Graph({"x": Port(3, -100, 155)}, nodes, output)


def test_graphs_that_do_not_fit_are_refused() -> None:
    g = torch.Generator().manual_seed(0)
    conv, after = convolution(g, 3, 3, 3), epilogue(g, "requantize", 3, 9_000)
    a, b = Node("a", conv, ("x",)), Node("b", after, ("a",))
    assert _chain(a, b).check() == Port(3, 0, 255)
    down = Node("d", convolution(g, 3, 3, 3, 2), ("x",))
    for graph, message in (
        (_chain(a, b, output="c"), "'c' is no node"),
        (_chain(b, a), "not before it"),
        (_chain(a, b, b), "two nodes"),
        (_chain(a, Node("b", conv, ("a",))), "16 bits"),
        (_chain(a, Node("b", after, ("a", "x"))), "takes 1 inputs"),
        (_chain(Node("b", _sample("concatenate")[0], ())), "inputs"),
        (_chain(a, down, Node("b", _sample("concatenate")[0], ("a", "d"))), "resolutions"),
        (Graph({"x": Port(3, 1, 255)}, (a, b), "b"), "input x"),
        (Graph({"x": Port(3, -(2**16), 255)}, (a, b), "b"), "input x"),
        (Graph({"x": Port(0, 0, 255)}, (a, b), "b"), "input x"),
        (Graph({"x": Port(4, 0, 255)}, (a, b), "b"), "4"),
    ):
        with pytest.raises(BadModel, match=message):
            graph.check()


@pytest.mark.parametrize("channels", [3, 8, 16])
def test_strided_1x1_convolutions_have_gradients_in_any_layout(channels: int) -> None:
    """PyTorch's own write beyond their buffers here: what died was the process."""
    layer = conv1(channels, 48, stride=2)
    x = torch.randn(2, channels, 64, 64).contiguous(memory_format=torch.channels_last)
    for _ in range(10):
        y = layer(x)
        (found,) = torch.autograd.grad(y, [layer.weight], torch.ones_like(y))
    assert torch.allclose(y, F.conv2d(x, layer.weight, layer.bias, 2), atol=1e-5)
    expected = x[..., ::2, ::2].sum((0, 2, 3))
    assert torch.allclose(found[:, :, 0, 0], expected.expand(48, -1), atol=1e-3, rtol=1e-3)
