from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.files.integer_models import integer_fingerprint
from rdquant.latents.parts import quantized
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


def _run(crops: list[np.ndarray], folder: Path | None = None, minutes: float = 0.02) -> Finetuning:
    config = FinetuneConfig(minutes=minutes, batch=2, lr=0.03)
    return Finetuning(small_codec("mbt2018-mean"), crops[:2], crops, CONFIG, config, folder)


def test_the_synthesis_alone_moves_and_gets_better(crops: list[np.ndarray]) -> None:
    run = _run(crops, minutes=0.05)
    found, report = run.run()
    assert report["MSE after"] < report["MSE before"] and report["steps"] > 0
    assert report["MSE after"] == pytest.approx(run.errors(found)[0]) != run.errors(run.integer)[0]
    for name, graph in run.integer.networks.items():
        same = all(
            np.array_equal(getattr(a.op, f), getattr(b.op, f))
            for a, b in zip(graph.nodes, found.networks[name].nodes, strict=True)
            for f in ("weight", "bias", "gamma", "beta")
            if hasattr(a.op, f)
        )
        assert same == (name != "synthesis")
    assert len(found.prior.networks) == 2 and found.y_tables is run.integer.y_tables


def test_the_synthesis_learns_from_what_the_models_own_quantizer_makes(crops: list[np.ndarray]) -> None:
    config = FinetuneConfig(minutes=0.001, batch=2)
    parent = {"lambda": 0.013, "latents": {"quantizer": "tcq8", "step": 0.5, "coherence": 2.0}}
    codec = small_codec("mbt2018-mean")
    run = Finetuning(codec, crops[:2], crops, CONFIG, config, parent=parent)
    assert {name: run.integer.description[name] for name in parent} == parent
    coder = coder_of(run.integer)
    assert coder.coding.quantizer.name == "TCQ8"
    for i, crop in enumerate(crops):
        expected = quantized(run.integer, to_batch(crop), coder.coding).y_hat
        assert np.array_equal(run.latents.y_hat[i : i + 1].numpy(), expected)
    plain = Finetuning(codec, crops[:2], crops, CONFIG, config)
    assert not torch.equal(plain.latents.y_hat, run.latents.y_hat)


def test_every_quality_gets_better(photo: np.ndarray) -> None:
    crops = [photo[32 * i : 32 * i + 64, 64 * j : 64 * j + 64] for i in range(5) for j in range(5)]
    config = FinetuneConfig(minutes=0.1, batch=2, lr=0.03)
    codec = small_codec("unshuffle8")
    codec.gain.log_gain.data = torch.linspace(-1, 1, 8)[:, None].repeat(1, codec.M)
    codec.inverse_gain.log_gain.data = -codec.gain.log_gain.data
    run = Finetuning(codec, crops[:SPREAD], crops, QuantizeConfig(), config)
    found, report = run.run()
    assert report["MSE after"] < report["MSE before"] and found is not run.integer
    assert found.gains == run.integer.gains  # at the quality where it was
    assert (run.errors(found) < run.errors(run.integer)).sum() > SPREAD / 2
    with pytest.raises(CalibrationError, match="needs 8 pictures, got 3"):
        Finetuning(codec, crops[:SPREAD], crops[:3], QuantizeConfig(), config)


def test_what_does_not_help_is_undone(crops: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(crops)
    monkeypatch.setattr(run, "errors", lambda codec: np.ones(1) * (2.0 if codec is not run.integer else 1.0))
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
