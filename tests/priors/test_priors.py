"""Every prior by its contract, with networks of small integers, so that equal means equal."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rdquant.errors import BadModel
from rdquant.priors import (
    PRIORS,
    ChannelGroups,
    Factorized,
    FourPart,
    Hyperprior,
    Part,
    Prior,
    Serial,
    prior_from_json,
)

M, N = 8, 3
ALL: list[Prior] = [
    Hyperprior(), Hyperprior(means=False), Serial(), Serial(means=False), FourPart(), FourPart(means=False),
    ChannelGroups((M,)), ChannelGroups((1, 2, 5)), ChannelGroups((2, 2, 4), means=False),
    ChannelGroups((3, 5), checkerboard=False), ChannelGroups((M,), checkerboard=False),
]  # fmt: skip
IDS = [f"{p.kind}-{i}" for i, p in enumerate(ALL)]
SIDES = st.integers(1, 4).map(lambda v: 2 * v)


class Networks:
    """``run`` of a prior: one convolution each, masked where the prior says so."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.calls = prior, 0

    def arrays(
        self, name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None
    ) -> np.ndarray:
        out: np.ndarray = self(name, *map(torch.from_numpy, inputs), valid=valid).numpy()
        return out if part is None else part.pick(out)

    def __call__(self, name: str, *inputs: Tensor, valid: bool = False) -> Tensor:
        self.calls += 1
        x = torch.cat([t.double() for t in inputs], 1)
        outputs = self.prior.outputs(M).get(name)
        out = 5 if outputs is None else outputs * (2 if getattr(self.prior, "means", False) else 1)
        size = 1 if name in self.prior.pointwise or name == "hyper_synthesis" else 5
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        weight = torch.randint(-3, 4, (out, x.shape[1], size, size), generator=generator).double()
        if name == "context":
            weight[:, :, 2, 2:] = 0
            weight[:, :, 3:] = 0
        if name == "spatial_context":
            weight[:, :, ::2, ::2] = weight[:, :, 1::2, 1::2] = 0
        return F.conv2d(x, weight, torch.arange(out).double(), padding=0 if valid else size // 2)


def _latent(height: int, width: int, batch: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    shapes = (batch, 2 * M, height, width), (batch, M, height, width)
    features, target = (g.integers(-9, 10, shape).astype(np.float64) for shape in shapes)
    return features, target


def _by_parts(prior: Prior, features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and means (zeros without) of `walk`, put where they belong, on the way to ``target``."""
    y_hat, means = np.zeros_like(target), np.zeros_like(target)
    scales = np.full_like(target, np.nan)
    for part, s, m in prior.walk(Networks(prior).arrays, features, y_hat):
        assert s.shape == part.take(target).shape
        part.put(s, scales)
        if m is not None:
            part.put(m, means)
        part.put(part.take(target), y_hat)
    assert np.array_equal(y_hat, target)
    return scales, means


@pytest.mark.parametrize("prior", [*ALL, Factorized()], ids=[*IDS, "factorized"])
@settings(max_examples=20)
@given(height=SIDES, width=SIDES)
def test_parts_are_the_whole_latent_once(prior: Prior, height: int, width: int) -> None:
    count = np.zeros((1, M, height, width))
    for part in prior.parts(M, height, width):
        part.put(part.take(count) + 1, count)
        if part.positions is not None:
            assert (np.diff(part.positions) > 0).all()
    assert (count == 1).all()


@pytest.mark.parametrize("prior", ALL, ids=IDS)
@settings(max_examples=10)
@given(height=SIDES, width=SIDES)
def test_part_by_part_is_all_at_once(prior: Prior, height: int, width: int) -> None:
    features, target = _latent(height, width, batch=2)
    if prior.kind == "hyperprior" and not prior.means:  # type: ignore[attr-defined]
        features = features[:, :M]
    scales, means = prior.all_parameters(Networks(prior), *map(torch.from_numpy, (features, target)))
    found = _by_parts(prior, features, target)
    assert np.array_equal(found[0], scales.numpy())
    assert np.array_equal(found[1], np.zeros_like(target) if means is None else means.numpy())


@pytest.mark.parametrize("prior", ALL, ids=IDS)
def test_later_parts_change_nothing_earlier(prior: Prior) -> None:
    """A change of part k is seen by no part up to k."""
    features, target = _latent(6, 4)
    features = features[:, :M] if not prior.means else features  # type: ignore[attr-defined]
    parts = prior.parts(M, 6, 4)
    before = _by_parts(prior, features, target)
    for k in {0, len(parts) // 2, len(parts) - 1}:
        changed = target.copy()
        for part in parts[k:]:
            part.put(part.take(changed) + 100, changed)
        after = _by_parts(prior, features, changed)
        for part in parts[: k + 1]:
            for a, b in zip(before, after, strict=True):
                assert np.array_equal(part.take(a), part.take(b))


@pytest.mark.parametrize("prior", [p for p in ALL if p.kind != "hyperprior"], ids=str)
def test_earlier_parts_are_seen(prior: Prior) -> None:
    features, target = _latent(6, 4)
    parts = prior.parts(M, 6, 4)
    if len(parts) == 1:
        return
    changed = target.copy()
    parts[0].put(parts[0].take(changed) + 100, changed)
    before, after = _by_parts(prior, features, target)[0], _by_parts(prior, features, changed)[0]
    assert not np.array_equal(before, after)
    assert np.array_equal(parts[0].take(before), parts[0].take(after))


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_wavefront_waits_for_all_that_it_sees(height: int, width: int) -> None:
    """And has as few steps as its slope allows."""
    parts = Serial().parts(1, height, width)
    step = np.empty(height * width, np.int64)
    for k, part in enumerate(parts):
        assert part.positions is not None
        step[part.positions[0]] = k
    at = step.reshape(height, width)
    for r in range(height):
        for c in range(width):
            seen = at[max(0, r - 2) : r, max(0, c - 2) : c + 3].flatten().tolist()
            seen += at[r, max(0, c - 2) : c].tolist()
            assert max(seen, default=-1) < at[r, c]
    assert len(parts) <= width + 3 * (height - 1)


def test_checkerboards_begin_with_the_corner() -> None:
    """As CompressAI's anchors of parity "even": rows 0, 2 ... at even columns, the others at odd ones."""
    first, second = ChannelGroups((M,)).parts(M, 2, 4)
    assert first.positions is not None and first.positions.tolist() == [[0, 2, 5, 7]]
    assert second.positions is not None and second.positions.tolist() == [[1, 3, 4, 6]]


def test_context_of_groups_is_computed_once() -> None:
    prior, (features, target) = ChannelGroups((2, 2, 4)), _latent(4, 4)
    networks, y_hat = Networks(prior), np.zeros_like(target)
    for part, _, _ in prior.walk(networks.arrays, features, y_hat):
        part.put(part.take(target), y_hat)
    assert networks.calls == 2 + 3 * 4  # channel contexts; two of a position or a picture, two of parameters


@pytest.mark.parametrize("prior", [*ALL, Factorized()], ids=str)
def test_json_round_trip(prior: Prior) -> None:
    assert prior_from_json(json.loads(json.dumps(prior.to_json()))) == prior


@pytest.mark.parametrize(
    "lie",
    [
        {}, {"kind": "psychic"}, {"kind": None}, {"kind": ["serial"]}, {"kind": "serial", "wings": True},
        {"kind": "channel_groups"}, {"kind": "channel_groups", "groups": []},
        {"kind": "channel_groups", "groups": [0, 3]}, {"kind": "channel_groups", "groups": "abc"},
    ],
    ids=str,
)  # fmt: skip
def test_lies_are_bad_models(lie: dict[str, Any]) -> None:
    with pytest.raises(BadModel):
        prior_from_json(lie)


def test_all_kinds_are_known() -> None:
    assert set(PRIORS) == {p.kind for p in [*ALL, Factorized()]}
