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
from rdquant.passes import QuantizeConfig, prepare, quantize
from rdquant.passes.flow import through
from rdquant.passes.mixed import is_mixing, mixing_name
from rdquant.passes.mixing import LATENT, Mixing, Samples, learn_matrix, rounding_cost
from rdquant.pixels import to_batch


@pytest.mark.parametrize("architecture", ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018"])
@pytest.mark.parametrize("mixing", ["plain", "compensated"])
def test_a_mixed_codec_is_the_same_function(architecture: str, mixing: str, photo: np.ndarray) -> None:
    codec, crop = capture(small_codec(architecture)), photo[:128, :128]
    mixed, seen = prepare(codec, [crop], QuantizeConfig(mixing=mixing))
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
    with pytest.raises(UsageError, match="'some'"):
        QuantizeConfig(mixing="some")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="no calibration pictures"):
        prepare(capture(small_codec("bmshj2018-factorized")), [], QuantizeConfig())
