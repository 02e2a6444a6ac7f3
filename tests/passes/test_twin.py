from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.graph.capture import capture
from rdquant.latents.parts import quantized
from rdquant.passes import QuantizeConfig, prepare, to_integer
from rdquant.passes.formats import FORMATS
from rdquant.passes.twin import Twin
from rdquant.pixels import to_batch

VARIED = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "elic2022-official",
    "window-attention",
)


def _twin(architecture: str, crop: np.ndarray, **options: object) -> Twin:
    codec = small_codec(architecture)
    config = QuantizeConfig(**options)  # type: ignore[arg-type]
    captured, seen = prepare(capture(codec), [crop], config)
    return Twin(*to_integer(captured, seen, config), codec.entropy_bottleneck)


def _disturb(twin: Twin) -> None:
    """Move every parameter, as a calibration would."""
    torch.manual_seed(0)
    sizes = {"bias": 1.0, "weight": 0.3, "gamma": 0.3, "beta_log": 0.05}
    for name, parameter in twin.named_parameters():
        parameter.add_(sizes.get(name.split(".")[-1], 0.05) * torch.randn_like(parameter))


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("bits", [3, 8])
def test_twins_export_what_they_compute(number_format: str, bits: int, photo: np.ndarray) -> None:
    """Integers of the export against the disturbed twin: all but equal, network by network."""
    crop = photo[:128, 64:192]
    twin = _twin("mbt2018-mean", crop, weight_bits=bits, number_format=number_format)
    _disturb(twin)
    _agree(twin, crop)


@pytest.fixture(scope="module", params=VARIED)
def varied(request: pytest.FixtureRequest, photo: np.ndarray) -> Callable[[], Twin]:
    """Twins of one kind, quantized once."""
    codec, config = small_codec(request.param), QuantizeConfig()
    integer, unrounded = to_integer(*prepare(capture(codec), [photo[:128, 64:192]], config), config)
    return lambda: Twin(integer, unrounded, codec.entropy_bottleneck)


def test_twins_of_all_kinds_export_what_they_compute(varied: Callable[[], Twin], photo: np.ndarray) -> None:
    twin = varied()
    _disturb(twin)
    _agree(twin, photo[:128, 64:192])


def _tensor(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(to_batch(rgb))


def _agree(twin: Twin, crop: np.ndarray) -> None:
    integer = twin.export()
    coded = quantized(integer, to_batch(crop))
    with torch.no_grad():
        y = twin.run("analysis", _tensor(crop).float())
        # a float32 multiplication next to a tie, now and then, and what later layers make of it
        assert np.abs(y.numpy() - coded.y).mean() / coded.y.std() < 0.02
        y_hat = torch.from_numpy(coded.y_hat).float()
        x_hat = twin.run("synthesis", y_hat)
        # logits and softmax are not rounded in the twin
        close = 2.0 if twin.integer.architecture == "window-attention" else 0.5
        assert np.abs(x_hat.numpy() - integer.synthesis(coded.y_hat)).mean() < close
        if integer.prior.hyper:
            assert coded.z_hat is not None
            features = integer.prior.begin(twin.run, torch.from_numpy(coded.z_hat).float())
            _, means = integer.prior.all_parameters(twin.run, features, y_hat)
            error = np.abs(coded.means - (0 if means is None else means.numpy())).mean()
            assert error <= 0.02 * (1 + coded.means.std())


def test_without_rounding_the_twin_is_the_float_codec(varied: Callable[[], Twin], photo: np.ndarray) -> None:
    crop, twin = photo[:128, 64:192], varied()
    architecture = twin.integer.architecture
    twin.set_rounding(twin.names(), False, False)
    with torch.no_grad():
        y = twin.run("analysis", _tensor(crop).float()) / twin.unit
        expected = small_codec(architecture).analysis(_tensor(crop).float() / 255)
    # tables are interpolated
    assert float((y - expected).abs().max() / expected.std()) < (0.1 if "window" in architecture else 1e-3)


def test_every_group_of_parameters_gets_gradients(varied: Callable[[], Twin], photo: np.ndarray) -> None:
    twin = varied()
    twin.requires_grad_(True)
    twin(_tensor(photo[:128, 64:192]).float()).cost(0.01, 128 * 128).backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        if not name.startswith("logs"):
            assert float(parameter.grad.abs().sum()) > 0, name
