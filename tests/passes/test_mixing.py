from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.graph.arithmetic import compensate
from rdquant.graph.capture import capture
from rdquant.graph.operations import Compensate
from rdquant.load import coder_of
from rdquant.passes import QuantizeConfig, prepare, quantize
from rdquant.passes.config import PROFILES, Mix
from rdquant.passes.flow import through
from rdquant.passes.mixed import is_mixing, mixing_name
from rdquant.passes.mixing import LATENT, Mixing, Samples, learn_matrix, rounding_cost
from rdquant.pixels import to_batch


@pytest.mark.parametrize("architecture", ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018"])
@pytest.mark.parametrize(("mixing", "doubled"), [("plain", 0), ("plain", 0.3), ("compensated", 0)])
def test_a_mixed_codec_is_the_same_function(
    architecture: str, mixing: Mix, doubled: float, photo: np.ndarray
) -> None:
    codec, crop = capture(small_codec(architecture)), photo[:128, :128]
    mixed, seen = prepare(codec, [crop], QuantizeConfig(mixing=mixing, doubled=doubled))
    x = torch.from_numpy(to_batch(crop)).float() / 255
    with torch.no_grad():
        a, b = through(codec, x), through(mixed, x)
        y_hat = a.y_hat.numpy()
        assert torch.allclose(a.y, b.y, rtol=1e-3, atol=1e-3 * float(a.y.abs().max()))
        assert np.allclose(codec.run("synthesis", y_hat), mixed.run("synthesis", y_hat), atol=2e-3)
    assert {mixing_name("g_a.1"), mixing_name("g_s.1")} <= set(seen.tensors)
    assert (mixing_name(LATENT) in seen.tensors) == (mixing == "compensated")


def _heavy(channels: int = 16, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated channels with heavy tails, and a sensitivity that differs a lot between directions."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0]
    spread = torch.logspace(0, -2, channels)
    tails = torch.randn(1, count, generator=g).abs() ** 2
    f = basis @ (spread[:, None] * torch.randn(channels, count, generator=g)) * tails
    other = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0].double()
    return f, other @ torch.diag(torch.logspace(0, -3, channels, dtype=torch.float64)) @ other.T


def _cost(f: torch.Tensor, sensitivity: torch.Tensor, matrix: torch.Tensor, passes_on: bool) -> float:
    """What 6-bit rounding of ``matrix @ f`` costs, measured."""
    top = 31
    largest = f.abs().amax(1).double()
    step = largest / 2**14
    mixing = Mixing.of(matrix, step, 2**15, 16, sensitivity if passes_on else None)
    t = mixing.matrix() @ f.double()
    scale = t.abs().amax(1) / top
    feedback = torch.round(mixing.feedback(scale) * 256).to(torch.int16)
    v = torch.round(t / scale[:, None] * 256)[None, :, None, :]
    offset = np.zeros(len(f), np.int32)
    rounded = compensate(v.numpy(), -32, top, offset, feedback.numpy())
    q = torch.from_numpy(rounded)[0, :, 0] * scale[:, None]
    error = torch.linalg.inv(mixing.matrix()) @ q - f
    return float((error * (sensitivity @ error)).sum(0).mean())


def test_mixing_and_passing_on_each_lower_what_rounding_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdquant.passes.mixing.STEPS", 80)
    f, sensitivity = _heavy()
    first = torch.arange(1000)
    plain = learn_matrix([Samples(f, first, sensitivity)], None)
    both = learn_matrix([Samples(f, first, sensitivity)], 0.0)
    nothing = _cost(f, sensitivity, torch.eye(len(f)), False)
    assert _cost(f, sensitivity, plain, False) < 0.6 * nothing
    assert _cost(f, sensitivity, both, True) < 0.6 * _cost(f, sensitivity, plain, False)


@pytest.mark.parametrize("doubled", [4, 16])
def test_doubled_channels_are_rounded_to_half_levels(doubled: int) -> None:
    f, _ = _heavy()
    mixing = Mixing.of(torch.eye(len(f)), f.abs().amax(1).double() / 2**14, 2**15, 16, None, doubled)
    rows, shift = mixing.rows(), mixing.shift()[:, None]
    t = mixing.matrix() @ f.double()
    scale = t.abs().amax(1)[:, None] / 31
    q = torch.floor(t[rows] / scale[rows] + shift + 0.5)
    steps = torch.where(torch.arange(len(f)) < doubled, 0.5, 1.0)[:, None].double()
    expected = torch.round(t / scale / steps) * steps * scale
    assert torch.allclose(mixing.matrix() @ mixing.inverse() @ (q * scale[rows]), expected, atol=1e-9)


def test_channels_that_will_be_doubled_take_more_of_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of 16 channels doubled, levels are as fine as for 16 + 3 * 8."""
    monkeypatch.setattr("rdquant.passes.mixing.STEPS", 80)
    f, sensitivity = _heavy()
    samples = [Samples(f, torch.arange(1000), sensitivity)]
    plain, own = learn_matrix(samples, None), learn_matrix(samples, None, doubled=8)

    def cost(matrix: torch.Tensor, doubled: int) -> float:
        return float(rounding_cost(matrix.float(), f, sensitivity, None, doubled))

    assert cost(own, 8) < 0.6 * cost(plain, 0) < cost(own, 0)
    assert cost(own, 8) < 0.9 * cost(plain, 8)


def test_a_doubled_codec_loses_less(photo: np.ndarray) -> None:
    """Activations of 5 bits, and weights of 12: next to all that is lost is by activations."""
    crop, small, losses = photo[:128, :128], small_codec("bmshj2018-factorized"), []
    for doubled in (0.0, 1.0):
        config = QuantizeConfig(12, 5, mixing="plain", doubled=doubled, wide_ends=False, mixing_steps=60)
        integer = quantize(small, [crop], config)
        y_hat = coder_of(integer).symbols(crop).y_hat
        real = capture(small).run("synthesis", y_hat.astype(np.float32) / 2**integer.fraction_bits)
        losses.append(float(np.square(255 * real.clip(0, 1) - integer.synthesis(y_hat)).mean()))
    assert losses[1] < 0.4 * losses[0], losses


def test_other_mixings_double_nothing_and_another_store_is_refused(photo: np.ndarray, tmp_path: Path) -> None:
    codec, crop = capture(small_codec("bmshj2018-factorized")), photo[:64, :64]
    portable = {**PROFILES["portable"], "mixing_steps": 4}
    _, seen = prepare(codec, [crop], QuantizeConfig(**{**portable, "mixing": "compensated"}))
    assert not any(mixing.doubled for mixing in seen.mixings.values())
    store = tmp_path / "mixings.pt"
    _, seen = prepare(codec, [crop], QuantizeConfig(**portable), store=store)
    assert all(mixing.doubled == round(len(mixing.levels) / 2) for mixing in seen.mixings.values())
    with pytest.raises(CalibrationError, match="doubled other channels"):
        prepare(codec, [crop], QuantizeConfig(**{**portable, "doubled": 0.0}), store=store)


def test_the_estimate_ranks_as_the_measured_cost_does() -> None:
    f, sensitivity = _heavy()
    eye = torch.eye(len(f))
    assert rounding_cost(eye, f, sensitivity, 0.0) < rounding_cost(eye, f, sensitivity, None)
    assert _cost(f, sensitivity, eye, True) < _cost(f, sensitivity, eye, False)


def test_stored_matrices_are_inverted_exactly() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 8, generator=g, dtype=torch.float64)
    mixing = Mixing.of(matrix, torch.rand(8, generator=g, dtype=torch.float64) + 0.1, 4095, 7)
    assert int(mixing.levels.abs().max()) == 63
    assert float((mixing.matrix() - matrix).abs().max()) < 0.2
    assert float(mixing.feedback(torch.ones(8)).abs().max()) == 0


def test_only_networks_in_scope_are_mixed(photo: np.ndarray) -> None:
    config = QuantizeConfig(scope=("synthesis",))
    integer = quantize(small_codec("mbt2018-mean"), [photo[:128, :128]], config)
    names = [n.name for g in integer.networks.values() for n in g.nodes if is_mixing(n.name)]
    assert names == [mixing_name(edge) for edge in (LATENT, "g_s.1", "g_s.3", "g_s.5")]
    assert integer.networks["synthesis"].names(Compensate)
    with pytest.raises(UsageError, match="g_s; the codec's networks are analysis"):
        quantize(small_codec("mbt2018-mean"), [photo[:128, :128]], QuantizeConfig(scope=("g_s",)))


def test_resumed_runs_find_their_mixings(photo: np.ndarray, tmp_path: Path) -> None:
    codec, crop, store = (
        capture(small_codec("bmshj2018-factorized")),
        photo[:128, :128],
        tmp_path / "mixings.pt",
    )
    first, seen = prepare(codec, [crop], QuantizeConfig(), store=store)
    stored = store.stat().st_mtime_ns
    again, found = prepare(codec, [crop], QuantizeConfig(), store=store)
    assert store.stat().st_mtime_ns == stored
    for name, graph in first.networks.items():
        for a, b in zip(graph.nodes, again.networks[name].nodes, strict=True):
            if hasattr(a.op, "weight"):
                assert np.array_equal(a.op.weight, b.op.weight), a.name
    assert torch.equal(seen.sensitivities["g_s.0"], found.sensitivities["g_s.0"])


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match=r"0\.\.1, got 1\.5"):
        QuantizeConfig(mixing="plain", doubled=1.5)
    with pytest.raises(UsageError, match="'some'"):
        QuantizeConfig(mixing="some")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="no calibration pictures"):
        prepare(capture(small_codec("bmshj2018-factorized")), [], QuantizeConfig())
