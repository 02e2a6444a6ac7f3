from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.integer import IntegerCodec
from rdquant.integer import strips as module
from rdquant.integer.strips import halo, in_strips
from rdquant.weights import quantize


@pytest.fixture(scope="module")
def codec(photo: np.ndarray) -> IntegerCodec:
    return quantize(small_codec("mbt2018-mean"), [photo[:128, :128]])


@pytest.mark.parametrize("part", ["g_a", "g_s", "h_a", "h_s"])
@pytest.mark.parametrize("positions", [1, 250])
def test_strips_join_to_the_whole(codec: IntegerCodec, part: str, positions: int) -> None:
    network = codec.networks[part]
    first = network.stages[0].conv
    height, width = {"g_a": (320, 32), "g_s": (19, 3), "h_a": (64, 8), "h_s": (13, 2)}[part]
    generator = torch.Generator().manual_seed(0)
    low, high = max(first.lo, -500), min(first.hi, 500)
    q = torch.randint(low, high + 1, (1, first.in_channels, height, width), generator=generator)
    calls = 0

    def run(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return network.run(x, "fast")

    assert torch.equal(in_strips(network.stages, q, run, positions), network.run(q, "fast"))
    assert calls > 1


def test_a_shorter_halo_would_show(codec: IntegerCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = codec.networks["g_s"].stages
    q = torch.randint(-300, 300, (1, codec.M, 19, 3), generator=torch.Generator().manual_seed(0))
    whole = codec.networks["g_s"].run(q, "fast")
    needed = halo(stages)
    monkeypatch.setattr(module, "halo", lambda stages: needed - 1)
    cut = in_strips(stages, q, lambda x: codec.networks["g_s"].run(x, "fast"), 1)
    assert not torch.equal(cut, whole)


def test_large_pictures_go_in_strips(
    codec: IntegerCodec, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.from_numpy(photo[None].transpose(0, 3, 1, 2).copy())
    whole = codec.analysis(pixels)
    monkeypatch.setattr(module.in_strips, "__defaults__", (2**14,))
    assert torch.equal(codec.analysis(pixels), whole)
