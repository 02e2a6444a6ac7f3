from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.files.integer_models import integer_fingerprint
from rdquant.graph import Graph
from rdquant.load import coder_of
from rdquant.passes import QuantizeConfig
from rdquant.passes.config import PROFILES, profile_options
from rdquant.passes.finetune import FinetuneConfig, Finetuning
from rdquant.pixels import to_batch
from rdquant.quality import SPREAD

CONFIG = QuantizeConfig(**PROFILES["portable"])


@pytest.fixture
def crops(photo: np.ndarray) -> list[np.ndarray]:
    return [photo[64 * i : 64 * i + 64, 128:192] for i in range(6)]


PARENT = {"lambda": 0.013}
TCQ = {"quantizer": "tcq8", "step": 0.5, "coherence": 2.0}


def _run(crops: list[np.ndarray], folder: Path | None = None, minutes: float = 0.02) -> Finetuning:
    config = FinetuneConfig(minutes=minutes, lr=0.03)
    codec = small_codec("mbt2018-mean")
    return Finetuning(codec, crops[:2], crops, CONFIG, config, folder, parent=PARENT)


def _same(a: Graph, b: Graph) -> bool:
    return all(
        np.array_equal(getattr(x.op, f), getattr(y.op, f))
        for x, y in zip(a.nodes, b.nodes, strict=True)
        for f in ("weight", "bias", "gamma", "beta")
        if hasattr(x.op, f)
    )


def test_all_networks_move_and_j_falls(crops: list[np.ndarray]) -> None:
    run = _run(crops, minutes=0.08)
    found, report = run.run()
    assert report["J percent"] < 0 and report["J after"] < report["J before"] and report["steps"] > 0
    assert report["J after"] == pytest.approx(run.measure(found)[0]) != run.start[0]
    assert not any(_same(graph, found.networks[name]) for name, graph in run.integer.networks.items())
    assert found.y_tables is run.integer.y_tables


def test_j_is_that_of_files(crops: list[np.ndarray]) -> None:
    run = _run(crops[:2])
    coder, bytes_ = coder_of(run.integer), 0
    errors = []
    for rgb in crops[:2]:
        data = coder.encode(rgb)
        bytes_ += len(data)
        errors.append(np.mean((coder.decode(data).astype(float) - rgb) ** 2))
    expected = 0.013 * np.mean(errors) + 8 * bytes_ / (2 * 64 * 64)
    overhead = 8 * 48 / (64 * 64)  # headers, and what ends the streams
    assert expected - overhead < run.start[0] < expected


@pytest.mark.parametrize("latents", [{}, {"latents": TCQ}])
def test_costs_are_those_of_the_models_own_quantizer(crops: list[np.ndarray], latents: dict) -> None:
    config, codec = FinetuneConfig(minutes=0.001), small_codec("mbt2018-mean")
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
        with torch.no_grad():
            found = run.costs(x)
        pixels, bits = coder.forward(rgb)
        assert float(found.mse) == pytest.approx(np.mean((pixels.astype(float) - rgb) ** 2), rel=0.02)
        if latents:
            assert float(found.bits_y + found.bits_z) == pytest.approx(bits, rel=0.1)
        else:  # the rate is that of a noise in the place of rounding
            torch.manual_seed(0)
            with torch.no_grad():
                assert found == run.twin(x, noise=True)


def test_every_network_gets_gradients_of_searched_levels(crops: list[np.ndarray]) -> None:
    parent = {**PARENT, "latents": TCQ}
    run = Finetuning(
        small_codec("mbt2018-mean"), crops[:2], crops, CONFIG, FinetuneConfig(minutes=0.001), parent=parent
    )
    run.twin.requires_grad_(True)
    run.costs(torch.from_numpy(to_batch(crops[0])).float()).cost(0.013, 64 * 64).backward()
    for network in run.integer.networks:
        weights = [w for n in run.twin.of_network(network) for w in run.twin.parameters_of(n, "weight")]
        assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights), network


def test_a_model_of_many_rates_learns_for_all(photo: np.ndarray) -> None:
    crops = [photo[32 * i : 32 * i + 64, 64 * j : 64 * j + 64] for i in range(5) for j in range(5)]
    config = FinetuneConfig(minutes=0.1, lr=0.03)
    codec = small_codec("unshuffle8")
    codec.gain.log_gain.data = torch.linspace(-1, 1, 8)[:, None].repeat(1, codec.M)
    codec.inverse_gain.log_gain.data = -codec.gain.log_gain.data
    parent = {"lambdas": [0.0018, 0.06]}
    run = Finetuning(codec, crops[:SPREAD], crops, QuantizeConfig(), config, parent=parent)
    assert np.allclose(run.lambdas, np.geomspace(0.0018, 0.06, SPREAD), rtol=1e-3)
    found, report = run.run()
    assert report["J percent"] < 0 and found is not run.integer
    assert found.gains == run.integer.gains  # at the quality where it was
    assert (run.measure(found) < run.start).sum() > SPREAD / 2
    with pytest.raises(CalibrationError, match="needs 8 pictures, got 3"):
        Finetuning(codec, crops[:3], crops, QuantizeConfig(), config, parent=parent)


def test_what_does_not_help_is_undone(crops: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(crops)
    monkeypatch.setattr(run, "measure", lambda codec: 2 * run.start)
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
    with pytest.raises(UsageError, match="profile must be one of exact, portable"):
        profile_options("nope")
    with pytest.raises(CalibrationError, match="no pictures"):
        Finetuning(small_codec("mbt2018-mean"), crops, [], CONFIG, FinetuneConfig())
    with pytest.raises(UsageError, match="pass --lambda"):
        Finetuning(small_codec("mbt2018-mean"), crops[:2], crops, CONFIG, FinetuneConfig())
