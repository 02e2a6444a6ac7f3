from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from rdquant.train.rates import lambda_at, level_of, random_levels

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
    assert losses[-1] < 0.9 * losses[0]
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
    kernels = torch.randn(3, 8, 40) @ torch.diag(torch.logspace(-2, 1, 40))
    s = torch.linalg.svdvals(orthogonalize(kernels).float())
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


#: of a run
QUICK: dict[str, Any] = {"steps": 4, "batch": 2, "crop": 64, "compile": False, "bf16": False}


def many_rates(folder: Path, run: Path, **options: Any) -> Trainer:
    fields = {**QUICK, "architecture": "unshuffle8", "N": 8, "M": 48, "lr": 1e-3, "optimizer": "muon"}
    fields["options"] = {"hyper": 16, "width": 32, "encoder": 1, "decoder": 1}
    return Trainer(TrainConfig(**{**fields, **options}), run, folder)


def test_components_are_a_codec_by_themselves(training_folder: Path, tmp_path: Path) -> None:
    """Kernels that are set, not trained: as close to a picture as that many components can come."""
    trainer = many_rates(training_folder, tmp_path / "run", start="components", edge_lr=0.0, steps=1)
    x = trainer.source.batch(0, 4, 64)
    codec = trainer.codec.eval()
    with torch.no_grad():
        found = codec.g_s(codec.g_a(x))
        blocks = torch.nn.functional.pixel_unshuffle(x, 16).permute(0, 2, 3, 1).reshape(-1, 768)
        s = torch.linalg.svdvals(blocks - blocks.mean(0))
    best = float((s[48:] ** 2).sum() / x.numel())
    assert best < float(((found - x) ** 2).mean()) < 10 * best + 1e-3
    edges = [codec.g_a[0][1].weight.clone(), codec.g_s[-1][0].weight.clone()]
    trainer.run()
    assert torch.equal(edges[0], codec.g_a[0][1].weight) and torch.equal(edges[1], codec.g_s[-1][0].weight)
    with pytest.raises(UsageError, match="components is for unshuffle8, not for mbt2018-mean"):
        Trainer(TrainConfig(start="components"), tmp_path / "other", training_folder)


def test_each_picture_has_its_own_rate(training_folder: Path, tmp_path: Path) -> None:
    """Levels are stratified over the range; the pass of a level is that of the captured codec there."""
    trainer = many_rates(training_folder, tmp_path / "run")
    codec, levels = trainer.codec.eval(), random_levels(8, 8)
    assert sorted((levels / (7 / 8)).long().tolist()) == list(range(8))
    x = trainer.source.batch(0, 2, 64)
    with torch.no_grad():
        codec.at(torch.tensor([0.0, 7.0]))
        both = codec(x, "round")
        codec.at(torch.tensor([7.0]))
        last = codec(x[1:], "round")
        codec.at(None)
        middle = codec(x[1:], "round")
    assert torch.allclose(both.x_hat[1:], last.x_hat, atol=1e-4)
    assert (
        both.bits()[1] == pytest.approx(float(last.bits()), rel=1e-3) != pytest.approx(float(middle.bits()))
    )
    low, high = (lambda_at(codec, torch.tensor(v)) for v in (0.0, 7.0))
    assert (float(low), float(high)) == pytest.approx(codec.lambdas)
    assert level_of(codec, float(lambda_at(codec, torch.tensor(2.5)))) == pytest.approx(2.5)


def test_contexts_of_rounded_latents(training_folder: Path, tmp_path: Path) -> None:
    """In training every pass sees what a decoder would: parameters are those of the true rounding."""
    codec = small_codec("unshuffle8")
    y, z_hat = 3 * torch.randn(1, 12, 8, 8), torch.zeros(1, 8, 2, 2)
    with torch.no_grad():
        features = codec.prior.begin(codec.run, z_hat)
        scales, means, _ = codec.coded(y, features)
        found = codec.prior.parameters_of_rounded(codec.run, features, y)
    assert torch.allclose(found[0], scales, rtol=1e-4) and torch.allclose(found[1], means, atol=1e-4)


def test_quantized_latents_of_many_rates(training_folder: Path, tmp_path: Path) -> None:
    trainer = many_rates(
        training_folder, tmp_path / "run", latent_mode="quantized", quantizer="tcq8", scope="decoder", steps=2
    )
    bits = []
    x = trainer.source.batch(0, 2, 64)
    for level in (0.2, 6.9):
        bits.append(float(trainer.objective(x, torch.tensor([level, 3.0]))[1].detach()))
    assert 0 < bits[0] < bits[1]
    trainer.run()


def test_an_exploded_run_goes_back(training_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    trainer = many_rates(
        training_folder, tmp_path / "run", steps=6, validate_every=3, val_pictures=1, final_crop=64
    )
    real, lost = Trainer._one_step, []

    def one_step(self: Trainer) -> dict:
        record = real(self)
        if self.step == 5 and not lost:
            lost.append(self.step)
            record["loss"] = torch.tensor(float("nan"))
        return record

    monkeypatch.setattr(Trainer, "_one_step", one_step)
    trainer.run(every=1, save_every=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rolled_back" in line] == [5]
    assert trainer.step == 6 and trainer.rollbacks == 1
    assert [line["step"] for line in lines if "val" in line] == [3, 6]
    assert all(set(v) == {"lambda", "J", "bpp", "mse", "psnr"} for line in lines for v in line.get("val", ()))
