from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import small_codec
from rdquant.codecs import build
from rdquant.errors import TrainingError, UsageError
from rdquant.files.float_models import load_float
from rdquant.files.split import split_files
from rdquant.train import TrainConfig, Trainer
from rdquant.train.data import CropSource
from rdquant.train.loop import schedule, start_from
from rdquant.train.muon import orthogonalize

SMALL = {"N": 4, "M": 6, "steps": 6, "batch": 2, "crop": 64, "compile": False, "bf16": False, "warmup": 2}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_changes_nothing(optimizer: str, tmp_path: Path, training_folder: Path) -> None:
    config = TrainConfig(**SMALL, optimizer=optimizer)  # type: ignore[arg-type]
    whole = Trainer(config, tmp_path / "whole", training_folder).run(every=2)
    part = Trainer(config, tmp_path / "part", training_folder)
    for _ in range(3):
        part._one_step()
    part.save()
    again = Trainer(config, tmp_path / "part", training_folder)
    assert again.step == 3
    resumed = again.run(every=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    stored = load_float(tmp_path / "part" / "model.safetensors")
    assert stored.N == 4
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and lines[0]["psnr"] > 0


def test_training_lowers_the_loss(tmp_path: Path, training_folder: Path) -> None:
    config = TrainConfig(**{**SMALL, "steps": 150, "warmup": 5, "lr": 5e-3}, optimizer="muon", lambda_=0.05)  # type: ignore[arg-type]
    losses = []
    Trainer(config, tmp_path / "run", training_folder).run(
        lambda _, line: losses.append(line["loss"]), every=50
    )
    assert losses[-1] < 0.6 * losses[0]


def test_training_for_a_trellis(tmp_path: Path, training_folder: Path) -> None:
    options = {**SMALL, "steps": 60, "warmup": 5, "lr": 5e-3, "latent_mode": "switching"}
    losses = []
    config = TrainConfig(**options, quantizer_step=0.5, optimizer="muon", lambda_=0.05)  # type: ignore[arg-type]
    Trainer(config, tmp_path / "run", training_folder).run(
        lambda _, line: losses.append(line["loss"]), every=20
    )
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(UsageError, match="positive quantizer_step, got None"):
        TrainConfig(**options)  # type: ignore[arg-type]
    factorized = TrainConfig(**options, quantizer_step=0.5, architecture="bmshj2018-factorized")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bmshj2018-factorized has none"):
        Trainer(factorized, tmp_path / "f", training_folder)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mbt2018", {}),
        ("elic2022-official", {"groups": [2, 4]}),
        ("window-attention", {"heads": 2, "window": 4}),
    ],
)
def test_training_with_contexts_and_attention(
    architecture: str, options: dict, tmp_path: Path, training_folder: Path
) -> None:
    fields = {**SMALL, "architecture": architecture, "options": options, "steps": 12, "warmup": 1, "lr": 5e-3}
    config = TrainConfig(**fields, lambda_=0.05)  # type: ignore[arg-type]
    losses = []
    Trainer(config, tmp_path / "run", training_folder).run(
        lambda _, line: losses.append(line["loss"]), every=4
    )
    assert losses[-1] < losses[0]
    stored = load_float(tmp_path / "run" / "model.safetensors")
    assert stored.architecture == architecture and stored.options().items() >= options.items()
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_other_options_do_not_resume(tmp_path: Path, training_folder: Path) -> None:
    Trainer(TrainConfig(**SMALL), tmp_path / "run", training_folder).save()  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="other options"):
        Trainer(TrainConfig(**{**SMALL, "steps": 7}), tmp_path / "run", training_folder)  # type: ignore[arg-type]


def test_init_must_fit(tmp_path: Path, training_folder: Path) -> None:
    Trainer(TrainConfig(**SMALL), tmp_path / "a", training_folder).run()  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="'N': 5"):
        Trainer(
            TrainConfig(**{**SMALL, "N": 5}),
            tmp_path / "b",
            training_folder,
            tmp_path / "a" / "model.safetensors",
        )  # type: ignore[arg-type]


def test_config_round_trips_and_refuses() -> None:
    config = TrainConfig(lambda_=0.05, optimizer="muon")
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for bad, message in (({"crop": 100}, "100"), ({"lambda_": -1}, "-1"), ({"ema": 1.0}, "1.0")):
        with pytest.raises(UsageError, match=message):
            TrainConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="colour"):
        TrainConfig.from_json({"version": 1, "colour": 3})


def test_schedule_warms_up_and_decays() -> None:
    config = TrainConfig(steps=1000, warmup=10)
    values = [schedule(s, config) for s in range(1000)]
    assert (
        values[0] == 0.1
        and max(values) == 1.0
        and values[-1] == pytest.approx(config.lr_final / config.lr, rel=0.05)
    )
    assert schedule(900, TrainConfig(steps=1000, decay="step")) == 0.1


def test_orthogonalize_flattens_singular_values() -> None:
    torch.manual_seed(0)
    s = torch.linalg.svdvals(orthogonalize(torch.randn(8, 40) @ torch.diag(torch.logspace(-2, 1, 40))))
    assert float(s.min()) > 0.3 and float(s.max()) < 1.4


def test_crops_depend_on_the_step_alone(training_folder: Path) -> None:
    files = split_files(training_folder, "train")
    a, b = CropSource(files, seed=1), CropSource(files, seed=1)
    a.batch(0, 2, 64)
    assert torch.equal(a.batch(7, 3, 64), b.batch(7, 3, 64))
    assert not torch.equal(a.batch(7, 3, 64), b.batch(8, 3, 64))
    assert a.batch(1, 1, 128).shape == (1, 3, 128, 128)  # larger than the pictures: mirrored


def test_splits(training_folder: Path, tmp_path: Path) -> None:
    assert [p.name for p in split_files(training_folder, "val")] == ["2.png"]
    assert len(split_files(training_folder, None)) == 4
    (training_folder / "list.csv").unlink()
    assert [p.name for p in split_files(training_folder, "val")] == ["0.png"]
    with pytest.raises(UsageError, match="no such folder"):
        split_files(tmp_path / "none", "train")


def test_what_fits_of_another_architecture_is_taken() -> None:
    source, codec = small_codec("mbt2018-mean"), small_codec("mbt2018")
    with torch.no_grad():
        source.g_a[0].weight.add_(1)
    context = codec.context_prediction.weight.detach().clone()
    start_from(codec, source, Path("m.safetensors"))
    assert torch.equal(codec.g_a[0].weight, source.g_a[0].weight)
    assert torch.equal(codec.context_prediction.weight, context)
    with pytest.raises(TrainingError, match="cannot start mbt2018-mean"):
        start_from(build("mbt2018-mean", N=4, M=6), source, Path("m.safetensors"))
