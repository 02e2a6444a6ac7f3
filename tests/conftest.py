"""Shared fixtures: a photograph, and small codecs that are quick to quantize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from rdquant.allocate.table import WidthTwins
from rdquant.codecs import ARCHITECTURES, FloatCodec, build
from rdquant.files.float_models import load_float
from rdquant.files.images import write_image
from rdquant.graph.capture import capture
from rdquant.passes import QuantizeConfig, prepare
from rdquant.passes.crops import probe
from rdquant.train.loop import initialise
from rdquant.zoo import find

# a busy machine is no failure
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photograph, (512, 512, 3) uint8; synthetic when scikit-image is missing."""
    try:
        from skimage.data import astronaut

        return astronaut()
    except ImportError:
        y, x = np.mgrid[:512, :512]
        waves = [127 + 60 * np.sin(x / (9 + 7 * c)) + 60 * np.cos(y / (23 - 5 * c)) for c in range(3)]
        return np.stack(waves, 2).clip(0, 255).astype(np.uint8)


@pytest.fixture(autouse=True, scope="session")
def quick_mixings() -> Iterator[None]:
    """Mixing matrices that are learned less well, in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdquant.passes.mixing.STEPS", 4)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def small_codec(architecture: str, N: int = 8, M: int = 12) -> FloatCodec:
    """An untrained codec whose latents are lively enough to code."""
    torch.manual_seed(1)
    options = {"N": N, "M": M, "groups": [M // 6, M // 3, M - M // 6 - M // 3], "heads": 2, "window": 4}
    options |= {"hyper": N, "width": N, "encoder": 1, "decoder": 1}
    codec = build(architecture, **{name: options[name] for name in ARCHITECTURES[architecture].OPTIONS})
    initialise(codec)
    with torch.no_grad():
        _convolutions(codec.g_a)[-1].weight.mul_(20)
        _convolutions(codec.g_s)[0].weight.mul_(0.05)
        for name in codec.prior.outputs(codec.M):
            parts = {"hyper_synthesis": "h_s", "parameters": "entropy_parameters"}
            if (module := getattr(codec, parts.get(name, name))) in codec.modules():  # not of a function
                _convolutions(module)[-1].bias.add_(1.0)
        picture = torch.rand(1, 3, 64, 64)
        while (y := codec.analysis(picture)).std() < 1.5:
            _scale(codec.g_a, 1.2)
        while codec.synthesis(y).abs().max() > 6:
            _scale(codec.g_s, 0.8)
    codec.entropy_bottleneck.solve_quantiles()
    return codec.eval()


def _convolutions(module: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def _scale(module: nn.Module, factor: float) -> None:
    for convolution in _convolutions(module):
        convolution.weight.mul_(factor)


@pytest.fixture
def training_folder(tmp_path: Path, photo: np.ndarray) -> Path:
    out = tmp_path / "pictures"
    out.mkdir()
    for i in range(4):
        write_image(out / f"{i}.png", photo[i * 64 : i * 64 + 100, i * 64 : i * 64 + 90])
    (out / "list.csv").write_text("file,split\n0.png,train\n1.png,train\n2.png,val\n")
    return out


@pytest.fixture(scope="module")
def trained(photo: np.ndarray) -> tuple[WidthTwins, torch.Tensor]:
    """A trained codec at 3, 5 and 7 bits, for only there is J at a minimum; small pictures to judge by."""
    config = QuantizeConfig(number_format="coded", rounding="nearest", mixing="none")
    path = find("mean-scale-s-0130")
    assert path is not None
    parent = load_float(path)
    codec, seen = prepare(capture(parent), [photo[:256, :256]], config)
    tiles = [photo[i : i + 128, j : j + 128] for i in range(0, 512, 128) for j in range(0, 512, 128)]
    return WidthTwins(codec, seen, config, parent.entropy_bottleneck, (3, 5, 7)), probe(
        tiles, 128, len(tiles)
    )
