"""One picture to one file and back, with small codecs of every prior (`tiny`)."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from rdquant.coder import ImageCoder
from rdquant.errors import Corrupt, DecodeError, ImageError, ModelMismatch, UnsupportedVersion, UsageError
from rdquant.files.container import Profile, Quantizer, read, write
from rdquant.latents.coding import ScalarCoding, TrellisCoding
from rdquant.latents.rdoq import Rdoq
from rdquant.latents.refine import Refinement
from tiny import CONTEXTS, GAINS, KINDS, LAMBDA, TRELLISES, make_coder, with_coding

SIZES = [(1, 1), (1, 60), (33, 41), (64, 32)]


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("kind", KINDS)
def test_decode_of_encode_is_the_forward_pass(kind: str, profile: Profile, photo: np.ndarray) -> None:
    coder = make_coder(kind, profile)
    for h, w in SIZES:
        rgb = photo[:h, 100 : 100 + w]
        data = coder.encode(rgb)
        decoded = coder.decode(data)
        forward, bits = coder.forward(rgb)
        assert decoded.shape == rgb.shape and np.array_equal(decoded, forward)
        assert abs(len(data) - bits / 8) <= 0.01 * bits / 8 + 40 + 8


@pytest.mark.parametrize("quantizer", ["rdoq", "tcq4", "tcq8"])
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("kind", KINDS)
def test_any_choice_of_levels_decodes_to_the_forward_pass(
    kind: str, profile: Profile, quantizer: str, photo: np.ndarray
) -> None:
    if quantizer.startswith("tcq") and kind not in TRELLISES:
        return
    plain = make_coder(kind, profile)
    coder = with_coding(plain, quantizer)
    for rgb in (photo[:31, :33], photo[:1, :9]):
        data = coder.encode(rgb)
        forward, bits = coder.forward(rgb)
        assert np.array_equal(plain.decode(data), forward)  # the file says how, not the coder
        assert abs(len(data) - bits / 8) <= 0.01 * bits / 8 + 40 + 8


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(TRELLISES)))
def test_priors_that_no_trellis_can_code_say_so(kind: str, photo: np.ndarray) -> None:
    coder = make_coder(kind)
    reason = str(coder.codec.prior.no_trellis)
    streams = (b"", bytes(8)) if kind == "factorized" else (bytes(8), bytes(8))
    data = write(coder.fingerprint, coder.profile, Quantizer.TCQ8, 16, 16, streams, None, 100)
    with pytest.raises(UnsupportedVersion, match=f"TCQ8.*{reason}"):
        coder.decode(data)
    with pytest.raises(UsageError, match=f"TCQ8.*{reason}"):
        with_coding(coder, "tcq8").encode(photo[:16, :16])


@pytest.mark.parametrize("quantizer", ["uniform", "rdoq", "tcq8"])
@pytest.mark.parametrize("kind", KINDS)
def test_effort_lowers_the_cost_or_leaves_it(kind: str, quantizer: str, photo: np.ndarray) -> None:
    if quantizer == "tcq8" and kind not in TRELLISES:
        return
    coder, rgb = with_coding(make_coder(kind), quantizer), photo[60:100, 100:148]
    search = coder.coding if quantizer != "uniform" else ScalarCoding(Rdoq(GAINS, LAMBDA))

    def cost() -> float:
        pixels, bits = coder.forward(rgb)
        return LAMBDA / 3 * float(((pixels.astype(float) - rgb) ** 2).sum()) + bits

    plain = cost()
    coder.refinement = Refinement(search, GAINS, LAMBDA, 4)
    data = coder.encode(rgb)
    assert cost() < plain * (1.0 if kind in CONTEXTS else 0.999)
    assert np.array_equal(coder.decode(data), coder.forward(rgb)[0])


def test_finer_steps_cost_more_and_lose_less(photo: np.ndarray) -> None:
    plain = make_coder("mean")
    found = []
    for step in (60, 120, 240):
        coding = TrellisCoding(Quantizer.TCQ8, step, GAINS, LAMBDA)
        coder = ImageCoder(plain.codec, plain.fingerprint, plain.profile, coding)
        coded = coder.symbols(photo[:128, :128])
        error = coded.y_hat.astype(np.float64) - coded.y
        found.append((coder.forward(photo[:128, :128])[1], float((error**2).mean())))
    assert found[0][0] > found[1][0] > found[2][0] and found[0][1] < found[1][1] < found[2][1]


@pytest.mark.parametrize("kind", KINDS)
def test_engines_and_threads_give_the_same_symbols(
    kind: str, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = make_coder(kind)
    rgb = photo[:32, :48]
    data = coder.encode(rgb)
    pixels = coder.decode(data)
    for engine in ("fast", "reference"):
        for count in (1, 2, 5):
            monkeypatch.setenv("OMP_NUM_THREADS", str(count))
            coder.codec.__dict__["engine"] = engine
            assert coder.encode(rgb) == data
            assert np.array_equal(coder.decode(data), pixels)


def test_damage_is_a_decode_error(photo: np.ndarray, rng: np.random.Generator) -> None:
    coder = make_coder("mean")
    data = coder.encode(photo[:64, :64])
    for n in range(0, len(data), 7):
        with pytest.raises(DecodeError):
            coder.decode(data[:n])
    for at in rng.integers(0, len(data) * 8, 200):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << (at % 8)
        with pytest.raises(DecodeError):
            coder.decode(bytes(bad))


@pytest.mark.parametrize("kind", KINDS)
def test_valid_checksums_around_nonsense_are_survived(
    kind: str, photo: np.ndarray, rng: np.random.Generator
) -> None:
    """Checksums keep no attacker out: any stream must give a picture or a `DecodeError`."""
    coder = make_coder(kind)
    z, good = read(coder.encode(photo[:32, :48]))[1]
    pictures = 0
    for i in range(40):
        y = bytearray(good if i % 2 else rng.bytes(4 * int(rng.integers(0, 40))))
        for at in rng.integers(0, max(1, len(y)), 3 if i % 2 else 0):
            y[at] ^= 1 << int(rng.integers(8))
        first = z if i % 4 or kind == "factorized" else rng.bytes(4 * int(rng.integers(0, 9)))
        kinds = [Quantizer.UNIFORM, *([Quantizer.TCQ8] if kind in TRELLISES else [])]
        quantizer = kinds[i % len(kinds)]
        step = 65_535 if quantizer.has_step else None
        data = write(coder.fingerprint, coder.profile, quantizer, 48, 32, (first, bytes(y)), None, step)
        with contextlib.suppress(DecodeError):
            assert coder.decode(data).shape == (32, 48, 3)
            pictures += 1
    assert pictures < 40


def test_a_stream_that_is_not_used_up_is_corrupt(photo: np.ndarray) -> None:
    coder = make_coder("serial")
    _, (z, y) = read(coder.encode(photo[:32, :48]))
    for longer in (y + bytes(4), y[:8] + bytes(4) + y[8:]):
        data = write(coder.fingerprint, coder.profile, Quantizer.UNIFORM, 48, 32, (z, longer))
        with pytest.raises((Corrupt, DecodeError)):
            coder.decode(data)


def test_wrong_model_and_profile(photo: np.ndarray) -> None:
    coder = make_coder("factorized")
    data = coder.encode(photo[:16, :16])
    other = ImageCoder(coder.codec, b"otherone", coder.profile)
    with pytest.raises(ModelMismatch, match=coder.fingerprint.hex()):
        other.decode(data)
    with pytest.raises(UnsupportedVersion, match="INTEGER"):
        ImageCoder(coder.codec, coder.fingerprint, Profile.FLOAT).decode(data)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3))]
)
def test_only_8_bit_rgb(bad: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8"):
        make_coder("factorized").encode(bad)
