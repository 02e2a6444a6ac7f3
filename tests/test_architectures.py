"""Every architecture from quantization to files: decoders make what the encoder's forward pass makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.files.integer_models import save_integer
from rdquant.load import open_coder
from rdquant.passes import QuantizeConfig, quantize

SIZES = ((1, 1), (1, 300), (63, 65), (517, 389))


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "elic2022-chandelier"])
def test_decoding_is_the_forward_pass(architecture: str, photo: np.ndarray, tmp_path: Path) -> None:
    config = QuantizeConfig(rounding="nearest")  # quicker, and no matter here
    save_integer(quantize(small_codec(architecture), [photo[:128, :128]], config), tmp_path / "q.rdqm")
    coder = open_coder(str(tmp_path / "q.rdqm"))
    tall = np.concatenate([photo, photo[:40]])
    for height, width in SIZES:
        rgb = np.ascontiguousarray(tall[:height, :width])
        assert np.array_equal(coder.decode(coder.encode(rgb)), coder.forward(rgb)[0]), (height, width)


def test_networks_that_explode_saturate(photo: np.ndarray) -> None:
    """Nothing but clipping is left of such a codec, and it is still exact."""
    codec = small_codec("cheng2020-anchor")
    with torch.no_grad():
        for parameter in codec.g_s.parameters():
            parameter.mul_(3)
    integer = quantize(codec, [photo[:128, :128]], QuantizeConfig())
    y_hat = integer.blank(1, 4, 4) + 300
    assert np.array_equal(integer.synthesis(y_hat), integer.networks["synthesis"].exact(y_hat))
