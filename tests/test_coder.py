from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.coder import ImageCoder
from rdquant.errors import DecodeError, ImageError, ModelMismatch, UnsupportedVersion
from rdquant.files.container import Profile, Quantizer, write
from rdquant.files.float_models import float_fingerprint
from rdquant.files.integer_models import integer_fingerprint
from rdquant.floatcodec import CodingFloatCodec
from rdquant.latents.coding import TrellisCoding
from rdquant.pixels import to_tensor
from rdquant.weights import quantize

SIZES = [(1, 1), (1, 300), (63, 65), (389, 517), (128, 64)]


def make_coder(architecture: str, photo: np.ndarray, profile: Profile = Profile.INTEGER) -> ImageCoder:
    codec = small_codec(architecture)
    if profile == Profile.FLOAT:
        return ImageCoder(CodingFloatCodec(codec), float_fingerprint(codec), profile)
    integer = quantize(codec, [photo[:128, :128], photo[128:256, 128:256]])
    return ImageCoder(integer, integer_fingerprint(integer), profile)


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decode_of_encode_is_the_forward_pass(architecture: str, profile: Profile, photo: np.ndarray) -> None:
    coder = make_coder(architecture, photo, profile)
    for h, w in SIZES:
        rgb = photo[:h, :w] if (h, w) != (389, 517) else np.pad(photo[:389], ((0, 0), (0, 5), (0, 0)), "wrap")
        data = coder.encode(rgb)
        decoded = coder.decode(data)
        forward, bits = coder.forward(rgb)
        assert decoded.shape == rgb.shape and np.array_equal(decoded, forward)
        assert abs(len(data) - bits / 8) <= 0.01 * bits / 8 + 40 + 8


@pytest.mark.parametrize("kind", [Quantizer.TCQ4, Quantizer.TCQ8])
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_trellis_coded_files_decode_to_the_forward_pass(
    architecture: str, profile: Profile, kind: Quantizer, photo: np.ndarray
) -> None:
    plain = make_coder(architecture, photo, profile)
    gains = np.full(plain.codec.M, 3000.0)
    for step in (40, 170):
        coding = TrellisCoding(kind, step, gains, 0.01)
        coder = ImageCoder(plain.codec, plain.fingerprint, profile, coding)
        for rgb in (photo[:63, :65], photo[:128, :64]):
            data = coder.encode(rgb)
            forward, bits = coder.forward(rgb)
            assert np.array_equal(plain.decode(data), forward)  # the file says how, not the coder
            assert abs(len(data) - bits / 8) <= 0.01 * bits / 8 + 40 + 8


def test_trellis_needs_a_hyperprior(photo: np.ndarray) -> None:
    coder = make_coder("bmshj2018-factorized", photo)
    data = write(coder.fingerprint, coder.profile, Quantizer.TCQ8, 16, 16, (b"", bytes(8)), None, 100)
    with pytest.raises(UnsupportedVersion, match="TCQ8"):
        coder.decode(data)


def test_finer_steps_cost_more_and_lose_less(photo: np.ndarray) -> None:
    plain = make_coder("mbt2018-mean", photo)
    found = []
    for step in (60, 120, 240):
        coding = TrellisCoding(Quantizer.TCQ8, step, np.full(plain.codec.M, 3000.0), 0.01)
        coder = ImageCoder(plain.codec, plain.fingerprint, plain.profile, coding)
        coded = coder.symbols(photo[:128, :128])
        y = plain.codec.analysis(to_tensor(photo[:128, :128]))
        error = coding.dequantize(plain.codec, coded.y, coded.means).double() - y
        found.append((coder.forward(photo[:128, :128])[1], float(error.square().mean())))
    assert found[0][0] > found[1][0] > found[2][0] and found[0][1] < found[1][1] < found[2][1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_engines_threads_and_batches_give_the_same_symbols(architecture: str, photo: np.ndarray) -> None:
    coder = make_coder(architecture, photo)
    rgb = photo[:192, :128]
    data, threads = coder.encode(rgb), torch.get_num_threads()
    pixels = coder.decode(data)
    try:
        for engine in ("fast", "reference"):
            for count in (1, 2):
                torch.set_num_threads(count)
                coder.codec.__dict__["engine"] = engine
                assert coder.encode(rgb) == data
                assert np.array_equal(coder.decode(data), pixels)
    finally:
        torch.set_num_threads(threads)


def test_damage_is_a_decode_error(photo: np.ndarray, rng: np.random.Generator) -> None:
    coder = make_coder("mbt2018-mean", photo)
    data = coder.encode(photo[:64, :64])
    for n in range(0, len(data), 7):
        with pytest.raises(DecodeError):
            coder.decode(data[:n])
    for at in rng.integers(0, len(data) * 8, 200):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << (at % 8)
        with pytest.raises(DecodeError):
            coder.decode(bytes(bad))


def test_valid_checksums_around_nonsense_are_survived(photo: np.ndarray, rng: np.random.Generator) -> None:
    """Checksums keep no attacker out: any stream must give a picture or a `DecodeError`."""
    coder = make_coder("mbt2018-mean", photo)
    for _ in range(60):
        streams = tuple(rng.bytes(4 * int(rng.integers(0, 40))) for _ in range(2))
        data = write(coder.fingerprint, coder.profile, Quantizer.UNIFORM, 64, 64, streams)  # type: ignore[arg-type]
        with contextlib.suppress(DecodeError):
            assert coder.decode(data).shape == (64, 64, 3)


def test_wrong_model_and_profile(photo: np.ndarray) -> None:
    coder = make_coder("bmshj2018-factorized", photo)
    data = coder.encode(photo[:16, :16])
    other = ImageCoder(coder.codec, b"otherone", coder.profile)
    with pytest.raises(ModelMismatch, match=coder.fingerprint.hex()):
        other.decode(data)
    with pytest.raises(UnsupportedVersion, match="INTEGER"):
        ImageCoder(coder.codec, coder.fingerprint, Profile.FLOAT).decode(data)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3))]
)
def test_only_8_bit_rgb(bad: np.ndarray, photo: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8"):
        make_coder("bmshj2018-factorized", photo).encode(bad)
