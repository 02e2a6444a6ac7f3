from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.files.weight_streams import (
    CLASSES,
    CodedWeights,
    classes,
    decode_weights,
    encode_weights,
    fit_spreads,
)


def _kernel(rng: np.random.Generator, shape: tuple[int, int, int] = (40, 30, 9)) -> np.ndarray:
    """Integers whose spread differs eightfold along each axis."""
    spread = 1.0
    for axis, n in enumerate(shape):
        along = np.exp2(rng.uniform(0, 3, n))
        spread = spread * np.expand_dims(along, tuple({0, 1, 2} - {axis}))
    return np.rint(np.clip(rng.normal(0, 1, shape) * spread / 8, -127, 127)).astype(np.int16)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 4, 25]), st.integers(0, 127)),
        min_size=1,
    ),
    st.integers(0, 2**32 - 1),
)
def test_any_integers_round_trip(shapes: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = {
        n: rng.integers(-top, top + 1, (o, i, t)).astype(np.int16) for n, (o, i, t, top) in shapes.items()
    }
    tables, coded = encode_weights(layers)
    tables.validate()
    for name, weights in layers.items():
        assert np.array_equal(decode_weights(coded[name], tables), weights)


def test_spreads_are_found_and_worth_it(rng: np.random.Generator) -> None:
    weights = _kernel(rng)
    rows, columns, taps = fit_spreads(weights)
    variance = np.exp2(rows[:, None, None].astype(float) + columns[None, :, None] + taps)
    ratio = (weights.astype(float) ** 2 + 0.05) / variance
    assert 0.8 < ratio.mean() < 1.25 and ratio.mean((1, 2)).max() < 2
    _, coded = encode_weights({"a": weights})
    _, counts = np.unique(weights, return_counts=True)
    p = counts / counts.sum()
    plain = weights.size * float(-(p * np.log2(p)).sum()) / 8  # one table for the layer, at its entropy
    assert coded["a"].size < 0.9 * plain


def test_classes_stay_in_the_tables() -> None:
    ends = tuple(np.array([-128, 0, 127], np.int8) for _ in range(3))
    found = classes(ends)  # type: ignore[arg-type]
    assert found.shape == (3, 3, 3) and found.min() == 0 and found.max() == CLASSES - 1


def test_damaged_streams_are_bad_models_or_weights(rng: np.random.Generator) -> None:
    tables, coded = encode_weights({"a": _kernel(rng, (4, 3, 9))})
    whole = coded["a"]
    for at in range(len(whole.stream)):
        for stream in (whole.stream[:at], whole.stream[:at] + b"\xa5" + whole.stream[at + 1 :]):
            with contextlib.suppress(BadModel):
                found = decode_weights(dataclasses.replace(whole, stream=stream), tables)
                assert found.shape == (4, 3, 9)
    few = dataclasses.replace(tables, starts=tables.starts[:3], offsets=tables.offsets[:2])
    with pytest.raises(BadModel, match="20 tables, got 2"):
        decode_weights(CodedWeights(whole.stream, whole.spreads), few)
