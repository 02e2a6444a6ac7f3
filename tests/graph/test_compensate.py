"""Rounding with errors passed on: reference, kernel and plain Python integers agree to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.graph import Port
from rdquant.graph.arithmetic import ERROR_BITS, ERROR_LIMIT, FEEDBACK_BITS, V_LIMIT, Multiplier, compensate
from rdquant.graph.operations import Compensate

ACCUMULATORS = 2**35


def _epilogue(seed: int, channels: int, largest: int = 900) -> Compensate:
    g = np.random.default_rng(seed)
    feedback = np.triu(g.integers(-largest, largest + 1, (channels, channels)), 1)
    offset = g.integers(-120, 121, channels).astype(np.int32)
    factor = Multiplier.from_float(g.random(channels) * 3)
    return Compensate(factor, -128, 127, offset, feedback.astype(np.int16))


def _in_python(v: list[int], e: Compensate) -> list[int]:
    u = [max(-V_LIMIT, min(V_LIMIT, x)) << FEEDBACK_BITS for x in v]
    out = []
    for i in range(len(u)):
        shift = ERROR_BITS + FEEDBACK_BITS
        q = (u[i] + (1 << (shift - 1))) >> shift
        q = max(e.lo + int(e.offset[i]), min(e.hi + int(e.offset[i]), q))
        error = ((u[i] + (1 << (FEEDBACK_BITS - 1))) >> FEEDBACK_BITS) - (q << ERROR_BITS)
        error = max(-ERROR_LIMIT, min(ERROR_LIMIT, error))
        out.append(q)
        for j in range(i + 1, len(u)):
            u[j] += error * int(e.feedback[i, j])
    return out


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7, 24, 70]), st.sampled_from([300, 40_000, 2**24]))
@settings(max_examples=40, deadline=None)
def test_reference_and_kernel_equal_python_integers(seed: int, channels: int, reach: int) -> None:
    g = np.random.default_rng(seed)
    e = _epilogue(seed, channels)
    e.check("s", Port(channels, -ACCUMULATORS, ACCUMULATORS))
    v = g.integers(-reach, reach + 1, (1, channels, 2, 3))
    expected = [_in_python(v[0, :, i, j].tolist(), e) for i in range(2) for j in range(3)]
    reference = compensate(v.astype(np.float64), e.lo, e.hi, e.offset, e.feedback)
    assert reference[0].reshape(channels, -1).T.tolist() == expected
    assert np.array_equal(e.fast(v.clip(-V_LIMIT, V_LIMIT).astype(np.float32)), reference)


def test_an_error_is_answered_where_it_matters() -> None:
    """Two channels whose sum is what counts: the second makes up for what the first lost."""
    feedback = np.array([[0, 2**FEEDBACK_BITS], [0, 0]], np.int16)
    v = np.random.default_rng(0).integers(-20_000, 20_000, (1, 2, 30, 30)).astype(np.float64)
    offset = np.zeros(2, np.int32)

    def error(passed_on: np.ndarray) -> float:
        q = compensate(v, -128, 127, offset, passed_on)
        return float(((q.sum(1) - v.sum(1) * 2.0**-ERROR_BITS) ** 2).mean())

    assert error(feedback) == pytest.approx(1 / 12, rel=0.1)  # of one rounding, not of two
    assert error(np.zeros_like(feedback)) == pytest.approx(2 / 12, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": np.full(6, 200, np.int32)}, "without 0"),
        ({"offset": np.zeros(5, np.int32)}, "offset"),
        ({"feedback": np.eye(6, dtype=np.int16)}, "diagonal"),
        ({"feedback": np.zeros((6, 5), np.int16)}, "feedback"),
        ({"lo": 1}, "lo <= 0"),
    ],
)
def test_each_broken_bound_is_named(fields: dict, message: str) -> None:
    port = Port(6, -ACCUMULATORS, ACCUMULATORS)
    e = _epilogue(1, 6)
    assert e.check("s", port) == Port(6, -128 + int(e.offset.min()), 127 + int(e.offset.max()))
    with pytest.raises(BadModel, match=message):
        replace(e, **fields).check("s", port)
    with pytest.raises(BadModel, match="2\\^36"):
        e.check("s", Port(6, -(2**36), 0))


def test_feedback_that_could_overflow_is_refused() -> None:
    channels = 2**14
    e = Compensate(
        Multiplier.from_float(np.ones(channels)), -128, 127, np.zeros(channels, np.int32),
        np.triu(np.full((channels, channels), 2**15 - 1, np.int16), 1),
    )  # fmt: skip
    with pytest.raises(BadModel, match="2\\^40"):
        e.check("s", Port(channels, -255, 255))
