"""Rounding with errors passed on: reference, kernel and plain Python integers agree to the last bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.graph import Port
from rdquant.graph.arithmetic import ERROR_BITS, ERROR_LIMIT, FEEDBACK_BITS, V_LIMIT, Multiplier, compensate
from rdquant.graph.operations import Compensate

ACCUMULATORS = 2**35


def _epilogue(seed: int, channels: int, largest: int = 900) -> Compensate:
    g = torch.Generator().manual_seed(seed)
    feedback = torch.randint(-largest, largest + 1, (channels, channels), generator=g).triu(1)
    offset = torch.randint(-120, 121, (channels,), generator=g).to(torch.int32)
    factor = Multiplier.from_float(torch.rand(channels, generator=g, dtype=torch.float64) * 3)
    return Compensate(factor, -128, 127, offset, feedback.to(torch.int16))


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
    g = torch.Generator().manual_seed(seed)
    e = _epilogue(seed, channels)
    e.check("s", Port(channels, -ACCUMULATORS, ACCUMULATORS))
    v = torch.randint(-reach, reach + 1, (1, channels, 2, 3), generator=g)
    expected = torch.tensor([_in_python(v[0, :, i, j].tolist(), e) for i in range(2) for j in range(3)])
    reference = compensate(v.double(), e.lo, e.hi, e.offset, e.feedback)
    assert torch.equal(reference[0].flatten(1).T.long(), expected)
    assert torch.equal(e.fast(v.clamp(-V_LIMIT, V_LIMIT).float()).double(), reference)


def test_an_error_is_answered_where_it_matters() -> None:
    """Two channels whose sum is what counts: the second makes up for what the first lost."""
    feedback = torch.tensor([[0, 2**FEEDBACK_BITS], [0, 0]], dtype=torch.int16)
    v = torch.randint(-20_000, 20_000, (1, 2, 30, 30), generator=torch.Generator().manual_seed(0)).double()
    offset = torch.zeros(2, dtype=torch.int32)

    def error(passed_on: torch.Tensor) -> float:
        q = compensate(v, -128, 127, offset, passed_on)
        return float((q.sum(1) - v.sum(1) * 2.0**-ERROR_BITS).square().mean())

    assert error(feedback) == pytest.approx(1 / 12, rel=0.1)  # of one rounding, not of two
    assert error(torch.zeros_like(feedback)) == pytest.approx(2 / 12, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": torch.full((6,), 200, dtype=torch.int32)}, "without 0"),
        ({"offset": torch.zeros(5, dtype=torch.int32)}, "offset"),
        ({"feedback": torch.eye(6, dtype=torch.int16)}, "diagonal"),
        ({"feedback": torch.zeros(6, 5, dtype=torch.int16)}, "feedback"),
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
        Multiplier.from_float(torch.ones(channels)), -128, 127, torch.zeros(channels, dtype=torch.int32),
        torch.full((channels, 1), 2**15 - 1, dtype=torch.int16).expand(channels, channels).triu(1),
    )  # fmt: skip
    with pytest.raises(BadModel, match="2\\^40"):
        e.check("s", Port(channels, -255, 255))
