"""The loop over parts, with tiny codecs of every prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdquant.latents.parts import quantized, requantized
from rdquant.pixels import pad_to, to_batch
from tiny import CONTEXTS, KINDS, STRIDE, TRELLISES, make_coder, with_coding


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_decided_by_what_decoders_made_of_the_earlier_ones(kind: str, photo: np.ndarray) -> None:
    """The means and tables of all parts are those that the finished y_hat gives."""
    coder = with_coding(make_coder(kind), "rdoq")
    c, coded = coder.codec, coder.symbols(photo[:56, :40])
    assert np.array_equal(coded.y_hat, coder.coding.dequantize(c, coded.levels, coded.means))
    if coded.features is None:
        return

    def run(name: str, *inputs: torch.Tensor, valid: bool = False) -> torch.Tensor:
        out = c.run(name, *(t.numpy() for t in inputs), valid=valid)
        return torch.from_numpy(out.astype(np.float32))

    scales, means = c.prior.all_parameters(run, *map(torch.from_numpy, (coded.features, coded.y_hat)))
    assert np.array_equal(c.table_indexes(scales.numpy()), coded.indexes)
    assert np.array_equal(np.zeros_like(coded.means) if means is None else means.numpy(), coded.means)


@pytest.mark.parametrize("quantizer", ["uniform", "rdoq", "tcq8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_pictures(kind: str, quantizer: str, photo: np.ndarray) -> None:
    if quantizer == "tcq8" and kind not in TRELLISES:
        return
    coder = with_coding(make_coder(kind), quantizer)
    pixels = np.concatenate([to_batch(np.ascontiguousarray(photo[i : i + 16, :24])) for i in (0, 200, 300)])
    together = quantized(coder.codec, pixels, coder.coding)
    for i in range(3):
        alone = quantized(coder.codec, pixels[i : i + 1], coder.coding)
        for name in ("y", "levels", "indexes", "means", "y_hat"):
            assert np.array_equal(getattr(together, name)[i : i + 1], getattr(alone, name)), name


def test_levels_can_be_decided_for_another_latent(photo: np.ndarray) -> None:
    coder = make_coder("serial")
    first = quantized(coder.codec, to_batch(pad_to(photo[:32, :32], 8)))
    again = requantized(coder.codec, first, first.y, coder.coding)
    assert np.array_equal(again.levels, first.levels)
    far = requantized(coder.codec, first, first.y_hat + 1024, coder.coding)
    assert float(np.abs(far.y_hat - first.y_hat - 1024).max()) <= 128


@pytest.mark.parametrize("kind", CONTEXTS)
def test_wild_levels_stay_bounded(kind: str) -> None:
    """Levels of 32 bits in one part do not leave the contract in the next."""
    coder = make_coder(kind)
    c, coding = coder.codec, coder.coding
    y_hat = c.blank(1, 4, 6)
    coded = quantized(c, np.zeros((1, 3, 4 * STRIDE, 6 * STRIDE), np.uint8))
    for i, (part, indexes, means) in enumerate(c.conditions(coded.features, y_hat)):
        assert 0 <= int(indexes.min()) <= int(indexes.max()) < len(c.y_tables)
        assert -(2**15) <= int(means.min()) <= int(means.max()) < 2**15
        wild = np.full(indexes.shape, 2**31 - 1 if i % 2 else -(2**31), np.int32)
        part.put(coding.dequantize(c, wild, means), y_hat)
    assert int(y_hat.min()) >= -(2**15) and int(y_hat.max()) < 2**15
