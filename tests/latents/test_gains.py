from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.graph.capture import capture
from rdquant.latents.gains import latent_gains
from rdquant.latents.rdoq import Rdoq
from rdquant.pixels import to_batch
from tiny import KINDS, make_codec


def test_gains_are_what_a_small_error_does(photo: np.ndarray) -> None:
    """Against the definition: disturb one element of one channel and look at the picture."""
    codec, crop = capture(small_codec("bmshj2018-factorized")), photo[100:164, 100:164]
    synthesis = codec.networks["synthesis"]
    gains = latent_gains(codec, [crop], probes=200)
    with torch.no_grad():
        y = torch.from_numpy(codec.analysis(to_batch(crop)))
        y_hat, base = torch.round(y), synthesis.real(torch.round(y)) * 255
        measured = np.zeros(codec.M)
        for c in range(codec.M):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    moved = y_hat.clone()
                    moved[0, c, i, j] += 1e-2
                    change = (synthesis.real(moved) * 255 - base) / 1e-2
                    measured[c] += float(change.square().sum()) / (y.shape[2] * y.shape[3])
    assert np.allclose(gains, measured, rtol=0.2)


def test_refusals() -> None:
    with pytest.raises(CalibrationError, match="no pictures"):
        latent_gains(make_codec(KINDS["factorized"], integer=False), [])
    with pytest.raises(UsageError, match="gains"):
        Rdoq(np.array([np.nan]), 0.01)
    with pytest.raises(UsageError, match="-1"):
        Rdoq(np.ones(3), -1)
