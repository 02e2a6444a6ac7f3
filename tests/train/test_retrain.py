from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codecs import build
from rdquant.entropy import scale_table
from rdquant.errors import BadModel, UsageError
from rdquant.files.float_models import load_float, save_float
from rdquant.files.images import read_image, write_image
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.latents.gains import latent_gains
from rdquant.latents.refine import EFFORTS
from rdquant.load import QuantizerMismatch, open_coder
from rdquant.priors import Part
from rdquant.train import TrainConfig, Trainer
from rdquant.train.loop import GAIN_PICTURES
from rdquant.train.quantized import QuantizedRateDistortion
from rdquant.train.retrain import RetrainConfig, judge, retrain
from rdquant.train.rounded import round_weights, rounded

#: of a latent of a plain hyperprior
WHOLE = [Part(slice(0, 6))]
QUICK = {"steps": 4, "batch": 2, "crop": 64, "compile": False, "bf16": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """A codec that has learned a little, trained for plain rounding."""
    folder = tmp_path_factory.mktemp("model")
    write_image(folder / "0.png", photo[:200, :200])
    write_image(folder / "1.png", photo[100:300, 100:300])
    small = {"N": 4, "M": 6, "batch": 2, "crop": 64, "compile": False, "bf16": False, "warmup": 5}
    config = TrainConfig(**small, lambda_=0.05, steps=200, lr=5e-3, optimizer="muon")  # type: ignore[arg-type]
    codec = Trainer(config, folder / "run", folder).run()
    save_float(codec, folder / "start.safetensors", {"lambda": 0.05}, half=False)
    return folder / "start.safetensors"


@pytest.mark.parametrize("quantizer", ["uniform", "rdoq", "tcq4", "tcq8"])
def test_loss_is_that_of_a_file(quantizer: str, model: Path, photo: np.ndarray) -> None:
    """Rate and error of the training loss are those of the coder, up to interpolation between tables."""
    codec, gains = load_float(model), np.full(6, 40.0)
    config = RetrainConfig(quantizer=quantizer, **QUICK)  # type: ignore[arg-type]
    rgb = np.ascontiguousarray(photo[:128, :128])
    found = judge(codec, gains, config, 0.05, [rgb])
    options = TrainConfig(
        lambda_=0.05, latent_mode="quantized", quantizer=quantizer, scope="decoder", compile=False,  # type: ignore[arg-type]
        coherence=config.latents.get("coherence"), quantizer_step=config.latents.get("step"),
    )  # fmt: skip
    loss = QuantizedRateDistortion(codec, options, gains, {})
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        _, bpp, mse = loss(x)
    assert float(bpp) == pytest.approx(found.bpp, rel=0.05)
    assert float(mse) == pytest.approx(found.mse, rel=0.1)  # of a picture that is clipped and rounded


@pytest.mark.parametrize(("architecture", "quantizer"), [("elic2022-official", "tcq8"), ("mbt2018", "rdoq")])
def test_loss_is_that_of_a_file_with_contexts(architecture: str, quantizer: str, photo: np.ndarray) -> None:
    """Part by part, as the coder goes."""
    codec, gains = small_codec(architecture), np.full(12, 40.0)
    config = RetrainConfig(quantizer=quantizer, **QUICK)  # type: ignore[arg-type]
    rgb = np.ascontiguousarray(photo[:128, :128])
    found = judge(codec, gains, config, 0.05, [rgb])
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    for levels in ("online", "stored"):
        options = dataclasses.replace(config.stage("decoder", 0.05, 0, codec), levels=levels)
        loss = QuantizedRateDistortion(codec, options, gains, codec.state_dict())
        with torch.no_grad():
            _, bpp, _ = loss(x)
        assert float(bpp) == pytest.approx(found.bpp, rel=0.05)
    _, bpp, _ = loss(x)
    bpp.backward()
    assert all(p.grad is not None for p in codec.h_s.parameters())


def test_what_a_prior_cannot_be_trained_on(training_folder: Path, tmp_path: Path) -> None:
    save_float(small_codec("mbt2018"), tmp_path / "m.safetensors", {"lambda": 0.05})
    with pytest.raises(UsageError, match="quantizer tcq8 is not for mbt2018: a level changes the context"):
        retrain(tmp_path / "m.safetensors", training_folder, tmp_path / "r", tmp_path / "o", RetrainConfig())
    with pytest.raises(UsageError, match="latent_mode switching is not for mbt2018"):
        Trainer(
            TrainConfig(architecture="mbt2018", N=4, M=6, latent_mode="switching", quantizer_step=0.5),
            tmp_path / "s",
            training_folder,
        )


def test_rounded_weights_are_what_is_captured() -> None:
    codec = round_weights(small_codec("mbt2018"), 4)
    stored = codec.context_prediction._parameters["weight"]
    weight = capture(codec).networks["context"]["context_prediction"].op.weight  # type: ignore[attr-defined]
    assert len(torch.unique(weight[0])) <= 15 < len(torch.unique(stored[0]))
    assert not bool(weight[:, :, 2, 2:].any()) and bool(stored[:, :, 2, 2:].any())
    assert torch.equal(codec.state_dict()["context_prediction.weight"], stored)


def test_slopes_are_those_of_the_rate(model: Path) -> None:
    """Larger scales for all: the loss's derivative agrees with its difference, levels held fixed."""
    codec = load_float(model)
    options = TrainConfig(
        lambda_=1e-9, latent_mode="quantized", quantizer="tcq8", scope="hyper", compile=False, coherence=1e9
    )
    loss = QuantizedRateDistortion(codec, options, np.full(6, 40.0), {})
    levels = torch.randint(-2, 3, (1, 6, 8, 8), dtype=torch.int32).numpy()
    position = torch.full((1, 6, 8, 8), 20.3)
    offset = torch.zeros_like(position)
    bits, slope, _ = loss._bits._found(loss.coding, levels, WHOLE, position, offset)
    further, _, _ = loss._bits._found(loss.coding, levels, WHOLE, position + 0.1, offset)
    assert torch.allclose(further - bits, 0.1 * slope, atol=1e-4)
    scale = torch.tensor(scale_table())[20]
    assert 0.1 < scale < 1.5 and float(slope[np.abs(levels) == 2].mean()) < 0 < float(
        slope[levels == 0].mean()
    )


def test_a_mean_is_pulled_to_what_it_predicts(model: Path) -> None:
    codec = load_float(model)
    options = TrainConfig(latent_mode="quantized", quantizer="tcq8", scope="hyper", compile=False)
    loss = QuantizedRateDistortion(codec, options, np.full(6, 40.0), {})
    torch.manual_seed(1)
    offset = torch.full((1, 6, 32, 32), 0.3)  # y lies above its mean, though its level is zero
    levels, position = np.zeros(offset.shape, np.int32), torch.full_like(offset, 12.0)
    _, _, along = loss._bits._found(loss.coding, levels, WHOLE, position, offset)
    assert float(along.mean()) > 0.1
    _, _, along = loss._bits._found(loss.coding, levels, WHOLE, position, -offset)
    assert float(along.mean()) < -0.1


@pytest.mark.parametrize("scope", ["decoder", "hyper", "all"])
def test_scopes_move_what_they_say(scope: str, model: Path, training_folder: Path, tmp_path: Path) -> None:
    config = RetrainConfig(**QUICK).stage(scope, 0.05, 0, load_float(model))  # type: ignore[arg-type]
    before = load_float(model).state_dict()
    after = Trainer(config, tmp_path / "run", training_folder, model).run().state_dict()
    moved = {n.split(".")[0] for n in before if not torch.allclose(before[n], after[n], atol=1e-6)}
    everything = {"g_a", "h_a", "h_s", "g_s", "entropy_bottleneck"}
    assert moved == {"decoder": {"g_s"}, "hyper": everything - {"g_a"}, "all": everything}[scope]


@pytest.mark.parametrize("levels", ["online", "stored"])
def test_a_resumed_phase_is_the_same(levels: str, model: Path, training_folder: Path, tmp_path: Path) -> None:
    config = RetrainConfig(**QUICK, levels=levels).stage("hyper", 0.05, 0, load_float(model))  # type: ignore[arg-type]
    whole = Trainer(config, tmp_path / "whole", training_folder, model).run()
    part = Trainer(config, tmp_path / "part", training_folder, model)
    part._one_step()
    part._one_step()
    part.save()
    resumed = Trainer(config, tmp_path / "part", training_folder, model).run()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    about = model_description(tmp_path / "part" / "model.safetensors")
    assert about["latents"] == {"quantizer": "tcq8", "step": 0.6, "coherence": 2.0}
    coder = open_coder(str(tmp_path / "part" / "model.safetensors"))
    assert coder.coding.quantizer.name == "TCQ8"  # what it was trained on is what it codes with


def test_retraining_lowers_j_and_says_what_for(model: Path, training_folder: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out.safetensors", tmp_path / "run"
    config = RetrainConfig(**{**QUICK, "steps": 60}, lr=3e-3)  # type: ignore[arg-type]
    rows = retrain(model, training_folder, run, out, config)
    assert [r["phase"] for r in rows] == ["start", "1-decoder", "1-hyper"]
    assert rows[0]["drift"] == 0 and min(r["J"] for r in rows if r["kept"]) < rows[0]["J"]
    assert json.loads((run / "guards.json").read_text())["rows"] == rows
    about = model_description(out)
    assert (
        about["latents"] == {"quantizer": "tcq8", "coherence": 2.0, "step": 0.6}
        and len(about["latent_gains"]) == 6
    )
    coder = open_coder(str(out))
    assert coder.coding.quantizer.name == "TCQ8" and coder.coding.coherence == 2.0  # type: ignore[attr-defined]
    assert coder.refinement is None
    assert open_coder(str(out), effort=1).describe()["refinement_rounds"] == EFFORTS[1]
    with pytest.warns(QuantizerMismatch, match="retrained for tcq8, and encodes with uniform"):
        assert open_coder(str(out), "uniform").refinement is None


@pytest.mark.parametrize(
    "lie", ["tcq8", {"quantizer": "tcq16"}, {"quantizer": "tcq8", "step": "wide"}, {"coherence": 2}, [1]]
)
def test_a_model_that_lies_about_its_quantizer(lie: object, model: Path, tmp_path: Path) -> None:
    about = {"lambda": 0.05, "latent_gains": [40.0] * 6, "latents": lie}
    save_float(load_float(model), tmp_path / "m.safetensors", about)
    with pytest.raises(BadModel, match="describes the quantizer of its latents as"):
        open_coder(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("gains", [[40.0] * 5, [40.0] * 5 + [-1], [40.0] * 5 + ["a"], "many"])
def test_a_model_that_lies_about_its_gains(gains: object, model: Path, tmp_path: Path) -> None:
    save_float(load_float(model), tmp_path / "m.safetensors", {"lambda": 0.05, "latent_gains": gains})
    with pytest.raises(BadModel, match="needs 6 latent gains"):
        open_coder(str(tmp_path / "m.safetensors"), "tcq8")


def test_rounded_weights_are_what_is_trained_on(
    model: Path, training_folder: Path, tmp_path: Path, photo: np.ndarray
) -> None:
    """They are what the guards judge, retraining lowers their J, and the stored weights are not rounded."""
    options = {**QUICK, "steps": 60, "batch": 4, "lr": 2e-3}
    config = RetrainConfig(quantizer="tcq8", phases=("decoder",), weight_bits=3, **options)  # type: ignore[arg-type]
    rows = retrain(model, training_folder, tmp_path / "run", tmp_path / "o.safetensors", config)
    plain = RetrainConfig(quantizer="tcq8", **QUICK)  # type: ignore[arg-type]
    val = [read_image(path) for path in split_files(training_folder, "val")]
    unrounded = judge(load_float(model), np.full(6, 40.0), plain, 0.05, val)
    first = round_weights(load_float(model), 3)
    pictures = [read_image(path) for path in split_files(training_folder, "train")[:GAIN_PICTURES]]
    assert rows[0]["J"] == pytest.approx(
        judge(first, latent_gains(capture(first), pictures), plain, 0.05, val).J, rel=1e-5
    )
    assert abs(rows[0]["J"] / unrounded.J - 1) > 0.01
    assert rows[1]["kept"] and rows[1]["J"] < rows[0]["J"]
    kernel = load_float(tmp_path / "o.safetensors").g_s[0].weight.detach()
    assert len(torch.unique(kernel[:, 0])) > 7
    assert len(torch.unique((rounded(kernel, 3, 1) / kernel.abs().amax((0, 2, 3), keepdim=True))[:, 0])) <= 7
    with pytest.raises(UsageError, match=r"weight_bits must be in 2..8, got 9"):
        TrainConfig(weight_bits=9)
    with pytest.raises(UsageError, match=r"weight_bits must be in 2..8, got 1"):
        RetrainConfig(weight_bits=1)


def test_a_phase_that_does_harm_is_undone(model: Path, training_folder: Path, tmp_path: Path) -> None:
    config = RetrainConfig(**QUICK, phases=("hyper",), lr=20.0)  # type: ignore[arg-type]
    rows = retrain(model, training_folder, tmp_path / "run", tmp_path / "out.safetensors", config)
    assert [r["kept"] for r in rows] == [True, False]
    for name, value in load_float(model).state_dict().items():
        assert torch.allclose(
            value, load_float(tmp_path / "out.safetensors").state_dict()[name], rtol=1e-3, atol=1e-3
        )


def test_bad_options_are_named(tmp_path: Path, training_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"phases must be of .*, got decoder, encoder"):
        RetrainConfig(phases=("decoder", "encoder"))
    with pytest.raises(UsageError, match=r"quantizer must be one of .*'tcq16'"):
        RetrainConfig(quantizer="tcq16")
    with pytest.raises(UsageError, match="levels must be one of online, stored, got 'fresh'"):
        RetrainConfig(levels="fresh")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="coherence must be positive, got -1"):
        RetrainConfig(coherence=-1)
    save_float(build("mbt2018-mean", 4, 6), tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="does not say its lambda"):
        retrain(
            tmp_path / "m.safetensors",
            training_folder,
            tmp_path / "r",
            tmp_path / "o",
            RetrainConfig(**QUICK),
        )  # type: ignore[arg-type]
    save_float(build("bmshj2018-factorized", 4, 6), tmp_path / "f.safetensors", {"lambda": 0.1})
    with pytest.raises(UsageError, match="needs a hyperprior"):
        retrain(
            tmp_path / "f.safetensors",
            training_folder,
            tmp_path / "r",
            tmp_path / "o",
            RetrainConfig(**QUICK),
        )  # type: ignore[arg-type]
