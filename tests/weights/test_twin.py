from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.pixels import to_tensor
from rdquant.weights import QuantizeConfig, prepare, to_integer
from rdquant.weights.formats import FORMATS
from rdquant.weights.twin import Twin


def _twin(architecture: str, crop: np.ndarray, **options: object) -> Twin:
    codec = small_codec(architecture)
    config = QuantizeConfig(**options)  # type: ignore[arg-type]
    codec, seen = prepare(codec, [crop], config)
    integer, unrounded = to_integer(codec, seen, config)
    return Twin(integer, unrounded, codec)


def _disturb(twin: Twin) -> None:
    """Move every parameter, as a calibration would."""
    torch.manual_seed(0)
    for name in twin.names():
        s = twin.stage(name)
        moved = {"unit_log": 0.05, "bias": 1.0, "weight": 0.3, "gamma": 0.3, "beta_log": 0.05}
        if name not in twin.ends():
            moved["out_log"] = 0.05
        for parameter, size in moved.items():
            if hasattr(s, parameter):
                getattr(s, parameter).add_(size * torch.randn_like(getattr(s, parameter)))
    if twin.hyper_log is not None:
        twin.hyper_log.add_(0.05 * torch.randn_like(twin.hyper_log))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("bits", [3, 8])
def test_exact_twin_equals_the_exported_integers(
    architecture: str, number_format: str, bits: int, photo: np.ndarray
) -> None:
    crop = photo[:128, 64:192]
    twin = _twin(architecture, crop, weight_bits=bits, number_format=number_format)
    _disturb(twin)
    integer = twin.export()
    twin.double()
    with torch.no_grad():
        y = twin.run("g_a", to_tensor(crop).double(), exact=True)
        y_hat, _, _ = twin.latents(y, exact=True)
        pixels = twin.run("g_s", y_hat, exact=True)
    y_int = integer.networks["g_a"].run(to_tensor(crop), "reference")
    assert torch.equal(y, y_int)
    if integer.has_hyperprior:
        _, means = integer.entropy_parameters(integer.hyper_analysis(y_int))
    else:
        means = integer.factorized_means(y_int.shape)
    y_hat_int = integer.quantizer.dequantize(integer.quantizer.quantize(y_int, means), means)
    assert torch.equal(y_hat, y_hat_int.double())
    assert torch.equal(pixels, integer.synthesis(y_hat_int).double())


def test_without_rounding_the_twin_is_the_float_codec(photo: np.ndarray) -> None:
    codec, crop = small_codec("mbt2018-mean"), photo[:128, 64:192]
    config = QuantizeConfig(weight_bits=4)
    codec, seen = prepare(codec, [crop], config)
    integer, unrounded = to_integer(codec, seen, config)
    twin = Twin(integer, unrounded, codec)
    twin.set_rounding(twin.names(), False, False)
    with torch.no_grad():
        y = twin.run("g_a", to_tensor(crop).float()) / twin.unit
        expected = codec.g_a(to_tensor(crop).float() / 255)
    assert float((y - expected).abs().max() / expected.std()) < 1e-3


def test_every_group_of_parameters_gets_gradients(photo: np.ndarray) -> None:
    twin = _twin("mbt2018-mean", photo[:128, :128])
    twin.requires_grad_(True)
    twin(to_tensor(photo[:128, :128]).float()).cost(0.01, 128 * 128).backward()
    for name in twin.names():
        for parameter in ("weight", "bias", "unit_log", "gamma", "beta_log"):
            if hasattr(twin.stage(name), parameter):
                gradient = getattr(twin.stage(name), parameter).grad
                assert gradient is not None and float(gradient.abs().sum()) > 0, (name, parameter)
