"""The integer contract: reference, kernels and plain Python integers agree to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.integer import (
    DivisiveNormalization,
    IntegerConv,
    IntegerNetwork,
    Requantize,
    Stage,
    fast,
    network,
)
from rdquant.integer.arithmetic import Multiplier, gdn, integer_root, requantize, squares


def _multiplier(generator: torch.Generator, channels: int, low: float, high: float) -> Multiplier:
    span = torch.rand(channels, generator=generator, dtype=torch.float64)
    return Multiplier.from_float(low * (high / low) ** span)


def _stage(
    generator: torch.Generator, cin: int, cout: int, lo: int, hi: int, transposed: bool, kind: str
) -> Stage:
    k, stride = (5, 2) if transposed or kind != "plain3" else (3, 1)
    shape = (cin, cout, k, k) if transposed else (cout, cin, k, k)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int16)
    bias = torch.randint(-5000, 5000, (cout,), generator=generator)
    conv = IntegerConv(weight, bias, stride, transposed, lo, hi, 8)
    # factors that spread accumulators over the whole output range and beyond
    scale = 200 / (max(-lo, hi) * 60 * math.sqrt(cin * k * k / (4 if transposed else 1)))
    factor = _multiplier(generator, cout, scale / 3, scale * 3)
    if kind.startswith("plain"):
        return Stage("s", conv, Requantize(factor, None, 0, 255))
    if kind == "leaky":
        return Stage(
            "s", conv, Requantize(factor, _multiplier(generator, cout, scale / 90, scale / 30), -9, 246)
        )
    gamma = torch.randint(0, 256, (cout, cout), generator=generator, dtype=torch.int16)
    beta = torch.randint(1, 2**20, (cout,), generator=generator)
    widen = _multiplier(generator, cout, scale * 30, scale * 300)
    inverse = kind == "igdn"
    root = math.sqrt(128 * cout * 20_000) * 32
    out = 1 / (300 * root) if inverse else root / 300
    e = DivisiveNormalization(
        inverse, widen, gamma, beta, _multiplier(generator, cout, out / 3, out * 3), -120, 135, 8
    )
    return Stage("s", conv, e)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["plain3", "plain5", "leaky", "gdn", "igdn"]),
    transposed=st.booleans(),
    wide=st.booleans(),
    cin=st.sampled_from([1, 3, 16, 65]),
    size=st.sampled_from([(1, 1), (2, 3), (7, 5), (16, 16)]),
)
@settings(max_examples=60, deadline=None)
def test_fast_engine_equals_the_reference(
    seed: int, kind: str, transposed: bool, wide: bool, cin: int, size: tuple[int, int]
) -> None:
    g = torch.Generator().manual_seed(seed)
    lo, hi = (-(2**15), 2**15 - 1) if wide else (-100, 155)
    stage = _stage(g, cin, 9, lo, hi, transposed, kind)
    stage.check()
    q = torch.randint(lo, hi + 1, (2, cin, *size), generator=g)
    q[0, 0, 0, 0] = hi  # extremes are worth meeting
    chain = IntegerNetwork((stage,))
    assert torch.equal(chain.run(q, "reference"), chain.run(q, "fast").double())


def test_reference_equals_python_integers() -> None:
    g = torch.Generator().manual_seed(3)
    stage = _stage(g, 2, 3, -128, 127, False, "gdn")
    e = stage.epilogue
    assert isinstance(e, DivisiveNormalization)
    q = torch.randint(-128, 128, (1, 2, 6, 7), generator=g)
    out = network.run_reference(stage, q.double())[0].long().tolist()
    padded = torch.nn.functional.pad(q[0], (2, 2, 2, 2)).tolist()
    w, b = stage.conv.weight.tolist(), stage.conv.bias.tolist()
    m, s = e.widen.m.tolist(), e.widen.shift.tolist()
    for i in range(3):
        for j in range(4):
            xs = []
            for c in range(3):
                acc = b[c] + sum(
                    w[c][k][u][v] * padded[k][2 * i + u][2 * j + v]
                    for k in range(2) for u in range(5) for v in range(5)
                )  # fmt: skip
                x = (acc * m[c] + (1 << s[c] >> 1)) >> s[c]
                xs.append(max(-(2**15), min(2**15 - 1, x)))
            squared = [min((x * x + 2**13) >> 14, 65535) for x in xs]
            for c in range(3):
                norm = e.beta.tolist()[c] + sum(
                    a * v for a, v in zip(e.gamma.tolist()[c], squared, strict=True)
                )
                d = math.isqrt(norm << 10) << e.factor.shift.tolist()[c]
                y = (2 * xs[c] * e.factor.m.tolist()[c] + d) // (2 * d)
                assert out[c][i][j] == max(e.lo, min(e.hi, y))


@given(st.integers(1, 2**32 - 1))
def test_root_is_the_integer_root(norm: int) -> None:
    assert int(integer_root(torch.tensor(float(norm), dtype=torch.float64))) == math.isqrt(norm << 10)


@given(x=st.integers(-(2**15), 2**15 - 1), norm=st.integers(1, 2**32 - 1), factor=st.floats(1e-6, 60_000))
def test_gdn_divides_like_integers(x: int, norm: int, factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    if int(f.shift[0]) > 30:
        return
    m, d = int(f.m[0]), math.isqrt(norm << 10) << int(f.shift[0])
    t = [torch.tensor(float(v), dtype=torch.float64).reshape(1, 1, 1, 1) for v in (x, norm)]
    expected = max(-200, min(200, (2 * x * m + d) // (2 * d)))
    assert int(gdn(*t, False, f, -200, 200)) == expected


@given(acc=st.integers(-(2**36), 2**36), factor=st.floats(1e-9, 65_000))
def test_requantize_rounds_half_up(acc: int, factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    m, s = int(f.m[0]), int(f.shift[0])
    t = torch.tensor(float(acc), dtype=torch.float64).reshape(1, 1, 1, 1)
    expected = max(-999, min(999, (acc * m + (1 << s >> 1)) >> s))
    assert int(requantize(t, f, -999, 999)) == expected


@given(st.floats(1e-8, 65_535))
def test_multiplier_is_near_its_factor(factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    assert float(f.as_float()[0]) == pytest.approx(factor, rel=2**-16)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 65_536.0])
def test_impossible_factors_are_refused(bad: float) -> None:
    with pytest.raises(BadModel):
        Multiplier.from_float(torch.tensor([bad], dtype=torch.float64))


def test_squares_saturate() -> None:
    x = torch.tensor([0.0, 90, 91, -32768], dtype=torch.float64)
    assert squares(x).tolist() == [0, 0, 1, 65535]


def test_self_test_passes_here_and_sees_a_wrong_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast.self_test()
    exact = fast._float_conv

    def rounded(q: torch.Tensor, weight: torch.Tensor, conv: IntegerConv) -> torch.Tensor:
        if q.dtype == torch.float64:
            return exact(q, weight, conv)
        return exact(q.bfloat16().float(), weight, conv) * (1 + 2**-20)

    monkeypatch.setattr(fast, "_float_conv", rounded)
    fast.self_test.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="float64 reference"):
            assert not fast.self_test()
    finally:
        fast.self_test.cache_clear()


def test_bound_is_reached_by_the_worst_input() -> None:
    g = torch.Generator().manual_seed(5)
    for transposed in (False, True):
        conv = _stage(g, 4, 3, 0, 255, transposed, "plain5").conv
        conv = replace(conv, weight=conv.weight.abs(), bias=torch.zeros_like(conv.bias))
        acc = network.convolve(torch.full((1, 4, 12, 12), 255.0, dtype=torch.float64), conv)
        assert int(acc.max()) == conv.accumulator_bound()


def _good() -> Stage:
    return _stage(torch.Generator().manual_seed(0), 3, 4, 0, 255, False, "gdn")


def _constant(channels: int, m: int, shift: int) -> Multiplier:
    return Multiplier(*(torch.full((channels,), v, dtype=torch.int32) for v in (m, shift)))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("conv", {"weight": torch.full((4, 3, 5, 5), 128, dtype=torch.int16)}, "128"),
        ("conv", {"weight": torch.zeros(4, 3, 4, 4, dtype=torch.int16)}, "odd"),
        ("conv", {"bias": torch.zeros(3, dtype=torch.int64)}, "bias"),
        ("conv", {"bias": torch.full((4,), 2**36)}, "2\\^36"),
        ("conv", {"stride": 3}, "stride"),
        ("conv", {"lo": 1}, "lo <= 0"),
        ("conv", {"bits": 1}, "bits"),
        ("epilogue", {"gamma": torch.full((4, 4), 256, dtype=torch.int16)}, "256"),
        ("epilogue", {"beta": torch.zeros(4, dtype=torch.int64)}, "norms"),
        ("epilogue", {"beta": torch.full((4,), 2**33)}, "norms"),
        ("epilogue", {"factor": _constant(4, 40_000, 31)}, "shift"),
        ("epilogue", {"widen": _constant(3, 0, 0)}, "widen"),
    ],
)  # fmt: skip
def test_each_broken_bound_is_named(part: str, fields: dict, message: str) -> None:
    stage = _good()
    stage.check()
    broken = replace(stage, **{part: replace(getattr(stage, part), **fields)})
    with pytest.raises(BadModel, match=message):
        broken.check()


def test_stages_must_fit_each_other() -> None:
    first = _good()
    second = _stage(torch.Generator().manual_seed(0), 4, 2, -100, 155, False, "plain3")
    with pytest.raises(BadModel, match="proven for"):
        IntegerNetwork((first, second)).check()
    with pytest.raises(BadModel, match="channels"):
        IntegerNetwork((first, first)).check()
