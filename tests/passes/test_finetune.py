from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.files.integer_models import integer_fingerprint
from rdquant.graph import Graph
from rdquant.latents.parts import quantized
from rdquant.load import coder_of
from rdquant.passes import QuantizeConfig
from rdquant.passes.coded_costs import CodedCosts, StoredLatents
from rdquant.passes.config import PROFILES, profile_options
from rdquant.passes.finetune import LEARN, FinetuneConfig, Finetuning, Learn, Measured
from rdquant.pixels import to_batch
from rdquant.quality import SPREAD

CONFIG = QuantizeConfig(**PROFILES["portable"])


@pytest.fixture
def crops(photo: np.ndarray) -> list[np.ndarray]:
    return [photo[64 * i : 64 * i + 64, 128:192] for i in range(6)]


PARENT = {"lambda": 0.013}
TCQ = {"quantizer": "tcq8", "step": 0.5, "coherence": 2.0}


def _run(
    crops: list[np.ndarray], folder: Path | None = None, minutes: float = 0.02, learn: Learn = "synthesis"
) -> Finetuning:
    config = FinetuneConfig(learn, minutes=minutes, lr=0.03, batch=2)
    codec = small_codec("mbt2018-mean")
    return Finetuning(codec, crops[:2], crops, CONFIG, config, folder, parent=PARENT)


def _same(a: Graph, b: Graph) -> bool:
    return all(
        np.array_equal(getattr(x.op, f), getattr(y.op, f))
        for x, y in zip(a.nodes, b.nodes, strict=True)
        for f in ("weight", "bias", "gamma", "beta")
        if hasattr(x.op, f)
    )


@pytest.mark.parametrize("learn", LEARN)
def test_what_learns_moves_and_j_falls(crops: list[np.ndarray], learn: Learn) -> None:
    run = _run(crops, minutes=0.08, learn=learn)
    found, report = run.run()
    assert report["J percent"] < 0 and report["steps"] > 0
    assert report == {**report, **run.change(run.measure(found))}
    for name, graph in run.integer.networks.items():
        assert _same(graph, found.networks[name]) == (learn == "synthesis" and name != "synthesis")
    assert (report["rate percent"] == 0) == (learn == "synthesis")
    # scales of activations as well
    factors = [
        (c.networks["synthesis"]["g_s.1~mixed.out"].op.factor.as_float()) for c in (run.integer, found)
    ]
    assert not np.array_equal(*factors)
    assert found.y_tables is run.integer.y_tables


def test_measures_are_those_of_files(crops: list[np.ndarray]) -> None:
    run = _run(crops[:2])
    coder = coder_of(run.integer)
    for i, rgb in enumerate(crops[:2]):
        data = coder.encode(rgb)
        error = np.mean((coder.decode(data).astype(float) - rgb) ** 2)
        assert run.start.errors[0][i] == pytest.approx(error)
        # headers, and what ends the streams
        assert len(data) - 48 < run.start.rates[0][i] * 64 * 64 / 8 < len(data)
    start = 0.013 * run.start.errors[0].mean() + run.start.rates[0].mean()
    assert run.cost(run.start) == pytest.approx(start)
    worse = Measured([run.start.errors[0] * [1.2, 1 / 1.2]], run.start.rates)
    assert run.cost(worse) == pytest.approx(start)  # as many decibels lost as gained
    assert run.change(worse) == {n: pytest.approx(0, abs=1e-9) for n in run.change(worse)}


@pytest.mark.parametrize("latents", [{}, {"latents": TCQ}])
def test_costs_are_those_of_the_models_own_quantizer(crops: list[np.ndarray], latents: dict) -> None:
    config, codec = FinetuneConfig("all", minutes=0.001), small_codec("mbt2018-mean")
    run = Finetuning(
        codec,
        crops[:2],
        crops,
        CONFIG,
        config,
        parent={**PARENT, **latents},
    )
    coder = coder_of(run.integer)
    assert coder.coding.quantizer.name == ("TCQ8" if latents else "UNIFORM")
    run.twin.leave_compensated()
    for rgb in crops:
        x = torch.from_numpy(to_batch(rgb)).float()
        torch.manual_seed(0)
        assert isinstance(run.costs, CodedCosts)
        with torch.no_grad():
            found_bits, errors = run.costs.of(x)
        pixels, bits = coder.forward(rgb)
        assert float(errors) == pytest.approx(np.mean((pixels.astype(float) - rgb) ** 2), rel=0.02)
        if latents:
            assert float(found_bits) == pytest.approx(bits, rel=0.1)
        else:  # the rate is that of a noise in the place of rounding
            torch.manual_seed(0)
            with torch.no_grad():
                expected = run.twin(x, noise=True)
            assert (found_bits, errors) == (expected.bits_y + expected.bits_z, expected.mse)


def test_stored_latents_are_those_of_the_models_own_quantizer(crops: list[np.ndarray]) -> None:
    config, codec = FinetuneConfig(minutes=0.001), small_codec("mbt2018-mean")
    parent = {**PARENT, "latents": TCQ}
    run = Finetuning(codec, crops[:2], crops, CONFIG, config, parent=parent)
    assert {name: run.integer.description[name] for name in parent} == parent
    coder = coder_of(run.integer)
    assert isinstance(run.costs, StoredLatents)
    for i, crop in enumerate(crops):
        expected = quantized(run.integer, to_batch(crop), coder.coding).y_hat
        assert np.array_equal(run.costs.y_hat[i : i + 1].numpy(), expected)
    plain = Finetuning(codec, crops[:2], crops, CONFIG, config, parent=PARENT)
    assert isinstance(plain.costs, StoredLatents) and not torch.equal(plain.costs.y_hat, run.costs.y_hat)


def test_every_network_gets_gradients_of_searched_levels(crops: list[np.ndarray]) -> None:
    parent = {**PARENT, "latents": TCQ}
    config = FinetuneConfig("all", minutes=0.001)
    run = Finetuning(small_codec("mbt2018-mean"), crops[:2], crops, CONFIG, config, parent=parent)
    run.twin.requires_grad_(True)
    assert isinstance(run.costs, CodedCosts)
    bits, errors = run.costs.of(torch.from_numpy(to_batch(crops[0])).float())
    (bits + errors.sum()).backward()
    for network in run.integer.networks:
        weights = [w for n in run.twin.of_network(network) for w in run.twin.parameters_of(n, "weight")]
        assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights), network


def test_a_model_of_many_rates_learns_for_all(photo: np.ndarray) -> None:
    crops = [photo[32 * i : 32 * i + 64, 64 * j : 64 * j + 64] for i in range(5) for j in range(5)]
    config = FinetuneConfig(minutes=0.1, lr=0.03, batch=2)
    codec = small_codec("unshuffle8")
    codec.gain.log_gain.data = torch.linspace(-1, 1, 8)[:, None].repeat(1, codec.M)
    codec.inverse_gain.log_gain.data = -codec.gain.log_gain.data
    parent = {"lambdas": [0.0018, 0.06]}
    run = Finetuning(codec, crops[:SPREAD], crops, QuantizeConfig(), config, parent=parent)
    assert np.allclose(run.lambdas, np.geomspace(0.0018, 0.06, SPREAD), rtol=1e-3)
    found, report = run.run()
    assert report["J percent"] < 0 and found is not run.integer
    assert found.gains == run.integer.gains  # at the quality where it was
    assert (run.cost(run.measure(found)) < run.cost(run.start)).sum() > SPREAD / 2
    with pytest.raises(CalibrationError, match="needs 8 pictures, got 3"):
        Finetuning(codec, crops[:SPREAD], crops[:3], QuantizeConfig(), config, parent=parent)
    with pytest.raises(CalibrationError, match="needs 8 pictures, got 3"):
        Finetuning(codec, crops[:3], crops, QuantizeConfig(), config, parent=parent)


def test_what_does_not_help_is_undone(crops: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(crops)
    monkeypatch.setattr(
        run, "measure", lambda codec: Measured([2 * e for e in run.start.errors], run.start.rates)
    )
    assert run.run()[0] is run.integer


def test_runs_resume(crops: list[np.ndarray], tmp_path: Path) -> None:
    first = _run(crops, tmp_path)
    found, report = first.run()
    again = _run(crops, tmp_path)
    assert (again.step, again.seconds) == (first.step, first.seconds) and again.step > 0
    resumed, after = again.run()
    assert after["steps"] == report["steps"]  # its minutes are over
    assert integer_fingerprint(resumed) == integer_fingerprint(found)
    with pytest.raises(CalibrationError, match="other options"):
        _run(crops, tmp_path, minutes=1)


def test_options_are_checked(crops: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        FinetuneConfig(minutes=0)
    with pytest.raises(UsageError, match="one of synthesis, all, got 'prior'"):
        FinetuneConfig("prior")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="profile must be one of exact, portable"):
        profile_options("nope")
    with pytest.raises(CalibrationError, match="no pictures"):
        Finetuning(small_codec("mbt2018-mean"), crops, [], CONFIG, FinetuneConfig())
    with pytest.raises(UsageError, match="pass --lambda"):
        Finetuning(small_codec("mbt2018-mean"), crops[:2], crops, CONFIG, FinetuneConfig())
