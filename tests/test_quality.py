"""One model for many rates: qualities, and files of a wanted size."""

from __future__ import annotations

import dataclasses
from decimal import Decimal, getcontext

import numpy as np
import pytest

from golden.make import HERE, PICTURES, picture
from rdquant.coder import ImageCoder
from rdquant.errors import BadModel, Corrupt, UsageError
from rdquant.files import container
from rdquant.files.container import read, write
from rdquant.graph.operations import Requantize
from rdquant.graph.operations.gain import POSITIONS, powers
from rdquant.load import open_coder
from rdquant.quality import described_at, for_size, gain_power, position

MODEL = str(HERE / "unshuffle-w8.rdqm")


@pytest.fixture(scope="module")
def coder() -> ImageCoder:
    return open_coder(MODEL)


def test_the_powers_are_rounded_right_everywhere() -> None:
    getcontext().prec = 40
    step, found = Decimal(2) ** (Decimal(1) / 4096), powers()
    value = Decimal(2) ** 15
    for m in found.tolist():
        assert abs(value - m) < Decimal("0.4999"), "too near to a tie for a float64 library to be trusted"
        value *= step


def test_positions_span_the_levels() -> None:
    last = 7 * POSITIONS
    assert position(100, last) == 0 and position(10_000, last) == last
    found = [position(q, last) for q in range(100, 10_001)]
    assert found == sorted(found)


def test_the_header_says_the_quality_and_the_decoder_follows(coder: ImageCoder) -> None:
    rgb = picture("70x45")
    for quality in (1, 12.34, 50, 100):
        data = coder.at(quality).encode(rgb, pixel_checksum=True)
        header, _ = read(data)
        assert header.quality == round(100 * quality)
        coder.decode(data)  # the pixel checksum is of the encoder's reconstruction at that quality


def test_more_quality_takes_more_bytes(coder: ImageCoder) -> None:
    # steps that are wide enough for a net that was not trained
    sizes = [len(coder.at(q).encode(picture("96x128"))) for q in (1, 34, 67, 100)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.1 * sizes[0]


def test_gains_move_lambda_and_what_errors_cost(coder: ImageCoder) -> None:
    codec = coder.codec
    assert float(gain_power(codec, 5000).max()) == 1.0
    assert bool((gain_power(codec, 9000) < 0.9).all())
    said = described_at(codec, {"lambdas": [0.01, 0.04]}, 5050)
    assert said["lambda"] == pytest.approx(0.02)
    with pytest.raises(BadModel, match="lambdas"):
        described_at(codec, {"lambdas": [0.01, -1]}, 5000)


def test_a_wanted_size_is_met_from_below(coder: ImageCoder) -> None:
    rgb = picture("96x128")
    low, high = (len(coder.at(q).encode(rgb)) for q in (1, 100))
    for most in (low, (low + high) // 2, high - 1, 10 * high):
        data = coder.encode_to_size(rgb, most)
        assert len(data) <= most
        assert len(data) >= min(0.98 * most, high)
    with pytest.raises(UsageError, match="too few"):
        coder.encode_to_size(rgb, low - 1)


@pytest.mark.parametrize("power", [0.8, 1.0, 3.0])
def test_the_search_takes_few_encodings(power: float) -> None:
    tried: list[int] = []

    def encode(quality: int) -> bytes:
        tried.append(quality)
        return bytes(2000 + round(200_000 * (max(0, quality - 100) / 9900) ** power))

    for most in (20_000, 50_000, 150_000):
        tried.clear()
        data = for_size(encode, most)
        assert 0.995 * most <= len(data) <= most
        assert len(tried) <= 12


@pytest.mark.parametrize("quality", [0, 0.5, 100.01, -3, float("nan")])
def test_a_quality_outside_is_refused(coder: ImageCoder, quality: float) -> None:
    with pytest.raises(UsageError, match=r"1\.\.100"):
        coder.at(quality)


def test_models_of_one_rate_have_no_quality() -> None:
    plain = open_coder(str(HERE / "mean-w8.rdqm"))
    assert not plain.codec.gains
    with pytest.raises(UsageError, match="one rate"):
        plain.at(50)
    with pytest.raises(UsageError, match="one rate"):
        open_coder(str(HERE / "mean-w8.rdqm"), quality=50)


def test_a_name_can_say_the_quality() -> None:
    assert open_coder(f"{MODEL}@70").describe()["quality"] == 70
    with pytest.raises(UsageError, match="what follows @"):
        open_coder(f"{MODEL}@much")


def lie(data: bytes, coder: ImageCoder, quality: int | None) -> bytes:
    h, streams = read(data)
    return write(h.fingerprint, h.profile, h.quantizer, h.width, h.height, streams, None, h.step, quality)


def test_a_quality_that_is_missing_or_too_many_is_corrupt(coder: ImageCoder) -> None:
    data = coder.encode(picture("70x45"))
    with pytest.raises(Corrupt, match="quality"):
        coder.decode(lie(data, coder, None))
    plain = open_coder(str(HERE / "mean-w8.rdqm"))
    with pytest.raises(Corrupt, match="quality"):
        plain.decode(lie(plain.encode(picture("70x45")), plain, 5000))


def test_another_quality_in_the_header_is_another_picture(coder: ImageCoder) -> None:
    data = coder.encode(picture("96x128"))
    try:
        other = coder.decode(lie(data, coder, 100))
    except Corrupt:  # its tables fit other symbols
        return
    assert other.shape == (*PICTURES["96x128"][2:], 3)
    assert not np.array_equal(other, coder.decode(data))


def test_gains_are_where_the_contract_wants_them(coder: ImageCoder) -> None:
    codec = coder.codec
    node, gain = codec.gains["analysis"]
    plain = Requantize(gain.factor(), None, gain.lo, gain.hi)
    fewer = dataclasses.replace(gain, log2=gain.log2[:4], position=0)
    for op in (plain, fewer):
        networks = {**codec.networks, "analysis": codec.networks["analysis"].replaced({node: op})}
        with pytest.raises(BadModel, match="gains must be one in analysis"):
            dataclasses.replace(codec, networks=networks).check()


@pytest.mark.parametrize("quality", [0, 99, 10_001, 2**28])
def test_a_quality_that_cannot_be_is_corrupt(coder: ImageCoder, quality: int) -> None:
    data = coder.encode(picture("1x1"))
    header, streams = read(data)
    with pytest.raises(UsageError, match="quality"):
        lie(data, coder, quality)
    with pytest.MonkeyPatch.context() as patch:  # what a liar would write
        patch.setattr(container, "LEAST_QUALITY", -1)
        patch.setattr(container, "MOST_QUALITY", 2**30)
        false = lie(data, coder, quality)
    with pytest.raises(Corrupt, match="quality"):
        read(false)
    assert header.quality == 5000 and len(streams) == 2


def test_coders_of_other_qualities_are_kept(coder: ImageCoder) -> None:
    assert coder.at(33) is coder.at(33) is coder.at(70).at(33)
