from __future__ import annotations

import numpy as np
import pytest
import torch

from rdquant.allocate.table import WidthTwins
from rdquant.files.float_models import load_float
from rdquant.graph.capture import capture
from rdquant.passes import QuantizeConfig, prepare
from rdquant.passes.crops import probe
from rdquant.zoo import find

CONFIG = QuantizeConfig(number_format="coded", rounding="nearest", mixing="none")


@pytest.fixture(scope="module")
def trained(photo: np.ndarray) -> tuple[WidthTwins, torch.Tensor]:
    """A trained codec at 3, 5 and 7 bits, for only there is J at a minimum; small pictures to judge by."""
    path = find("mean-scale-s-0130")
    assert path is not None
    parent = load_float(path)
    codec, seen = prepare(capture(parent), [photo[:256, :256]], CONFIG)
    tiles = [photo[i : i + 128, j : j + 128] for i in range(0, 512, 128) for j in range(0, 512, 128)]
    return WidthTwins(codec, seen, CONFIG, parent.entropy_bottleneck, (3, 5, 7)), probe(
        tiles, 128, len(tiles)
    )
