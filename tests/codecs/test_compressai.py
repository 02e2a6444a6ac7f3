"""Every architecture that CompressAI has computes what CompressAI computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressai_models import MODELS, compressai_model
from rdquant.codecs import ARCHITECTURES
from rdquant.codecs.base import FloatCodec
from rdquant.codecs.bottleneck import gaussian_likelihood
from rdquant.codecs.checkpoint import import_checkpoint
from rdquant.priors import Serial

CLOSE = {"rtol": 0, "atol": 1e-4}


def imported(architecture: str, folder: Path) -> tuple[FloatCodec, torch.nn.Module]:
    model = compressai_model(architecture)
    torch.save({"state_dict": model.state_dict()}, folder / "c.pth.tar")
    return import_checkpoint(folder / "c.pth.tar"), model


@pytest.mark.parametrize("architecture", MODELS)
@torch.no_grad()
def test_forward_is_compressais(architecture: str, tmp_path: Path) -> None:
    codec, model = imported(architecture, tmp_path)
    assert codec.architecture == architecture
    assert (32, 32 if architecture.startswith("cheng") else 48) == (codec.N, codec.M)
    x = torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    assert float(codec.analysis(x).abs().max()) > 2
    if isinstance(codec.prior, Serial):  # its forward rounds y around 0, as its decoder does not
        y = codec.analysis(x)
        centre = codec.entropy_bottleneck.medians()
        z_hat = torch.round(codec.hyper_analysis(y) - centre) + centre
        scales, means = codec.prior.all_parameters(codec.run, codec.hyper_synthesis(z_hat), torch.round(y))
        assert means is not None
        found = {
            "y": gaussian_likelihood(torch.round(y - means), scales),
            "z": codec.entropy_bottleneck.likelihood(z_hat),
        }
        x_hat = codec.synthesis(torch.round(y))
    else:
        out = codec(x, "round")
        x_hat, found = out.x_hat, out.likelihoods
    torch.testing.assert_close(x_hat, expected["x_hat"], **CLOSE)
    assert set(found) == set(expected["likelihoods"])
    for name, p in found.items():
        torch.testing.assert_close(p, expected["likelihoods"][name], **CLOSE)


@pytest.mark.parametrize("architecture", ["mbt2018", "elic2022-chandelier"])
@torch.no_grad()
def test_true_rounding_is_that_of_compressais_files(architecture: str, tmp_path: Path) -> None:
    """Part by part, contexts of what is decoded: the same y_hat as CompressAI's own coder."""
    codec, model = imported(architecture, tmp_path)
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    decoded = model.decompress(**{k: v for k, v in model.compress(x).items() if k in ("strings", "shape")})
    found = codec(x, "round").x_hat.clamp(0, 1)
    # a symbol that ties in one sum order and not in the other changes all that depends on it
    assert float((found - decoded["x_hat"]).abs().mean()) < 0.005 < float(found.std())


def test_nothing_of_compressai_is_missed() -> None:
    assert set(ARCHITECTURES) - set(MODELS) == {"window-attention", "unshuffle8"}
