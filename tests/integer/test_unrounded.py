from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.integer.unrounded import UnroundedNetwork
from rdquant.weights import QuantizeConfig, prepare
from rdquant.weights.convert import to_integer
from rdquant.weights.twin import Twin


@pytest.mark.parametrize("mixing", ["none", "compensated"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_the_twin_with_float_activations(architecture: str, mixing: str, photo: np.ndarray) -> None:
    config = QuantizeConfig(mixing=mixing)  # type: ignore[arg-type]
    codec, seen = prepare(small_codec(architecture), [photo[:128, :128]], config)
    integer, unrounded = to_integer(codec, seen, config)
    twin = Twin(integer, unrounded, codec)
    twin.set_rounding(twin.names(), weights=True, outputs=False)
    y = integer.analysis(torch.from_numpy(photo[None, :128, :128].transpose(0, 3, 1, 2).copy()))
    y_hat = integer.quantizer.dequantize(integer.quantizer.quantize(y, 0 * y), 0 * y)
    with torch.no_grad():
        expected = torch.floor(twin.run("g_s", y_hat.float()) + 0.5).clamp(0, 255)
    shifted = y_hat * torch.exp2(integer.latent_shift.double()).reshape(1, -1, 1, 1)
    network = UnroundedNetwork(integer.networks["g_s"])
    found = network.run(shifted)
    # two floats next to a tie, and outliers that the twin does not clip
    assert float((found - expected).abs().gt(1).float().mean()) < 0.02
    assert float((found != expected).float().mean()) < 0.03
    assert len(network.layers) == sum(not s.name.endswith("m") for s in network.stages)
    assert torch.equal(integer.synthesis(y_hat, exact=False), found.to(torch.uint8))
