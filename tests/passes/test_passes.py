from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.graph.capture import capture
from rdquant.graph.operations import Convolution, Requantize
from rdquant.passes import QuantizeConfig, observe, prepare, quantize, to_integer
from rdquant.passes.calibration import Observed
from rdquant.passes.flow import noting
from rdquant.passes.formats import uniform
from rdquant.passes.ranges import ActivationFormat, activation_format, quantize_weight, tied, weight_scales
from rdquant.passes.rounding import columns, compensated_round, gram_matrices, phases, round_kernel
from rdquant.pixels import to_batch

#: of one codec for each kind of thing that networks are made of
VARIED = ("bmshj2018-factorized", "mbt2018-mean", "mbt2018", "cheng2020-anchor", "window-attention")


@pytest.mark.parametrize("architecture", VARIED)
def test_many_bits_approach_the_float_codec(architecture: str, photo: np.ndarray) -> None:
    """At 12 bits nothing but arithmetic errors would be left: latents and picture stay close."""
    codec, crop = small_codec(architecture), photo[128:256, 128:256]
    errors = []
    for bits in (12, 6):
        integer = quantize(codec, [crop], QuantizeConfig(weight_bits=bits, activation_bits=bits))
        with torch.no_grad():
            y = codec.analysis(torch.from_numpy(to_batch(crop)).float() / 255)
        y_integer = integer.analysis(to_batch(crop)) / 2.0**integer.fraction_bits
        # one and the same latent through both syntheses
        y_hat = torch.round(y)
        with torch.no_grad():
            x = codec.synthesis(y_hat).clamp(0, 1) * 255
        x_integer = integer.synthesis((y_hat * 2**integer.fraction_bits).numpy()).astype(np.float32)
        apart = np.abs(y.numpy() - y_integer).mean() / float(y.std())
        errors.append((apart, np.abs(x.numpy() - x_integer).mean()))
    assert errors[0][0] < 0.01 and errors[0][1] < 0.6  # rounding to 8-bit pixels alone is 0.25
    assert errors[1][0] > 4 * errors[0][0]


@pytest.mark.parametrize("architecture", ["mbt2018-mean", "mbt2018"])
def test_parameters_follow_the_float_codec(architecture: str, photo: np.ndarray) -> None:
    """Means of every part, from the same symbols."""
    from rdquant.latents.parts import quantized

    codec, crop = capture(small_codec(architecture)), photo[:128, :128]
    integer = to_integer(*prepare(codec, [crop], QuantizeConfig()), QuantizeConfig())[0]
    coded = quantized(integer, to_batch(crop))
    assert coded.z_symbols is not None
    unit = 2.0**integer.fraction_bits
    run, y_hat = noting(codec, None), torch.from_numpy(coded.y_hat).float() / unit
    features = codec.prior.begin(run, torch.from_numpy(codec.z_hat(coded.z_symbols)))
    expected = codec.prior.all_parameters(run, features, y_hat)[1]
    assert expected is not None
    error = np.abs(coded.means / unit - expected.numpy()).mean() / float(expected.std())
    assert error < 0.1


def _weights_of(integer: object, name: str) -> np.ndarray:
    node = next(n for g in integer.networks.values() for n in g.nodes if n.name == name)  # type: ignore[attr-defined]
    assert isinstance(node.op, Convolution)
    weight: np.ndarray = node.op.weight
    return weight


def test_masked_taps_stay_masked(photo: np.ndarray) -> None:
    codec = small_codec("mbt2018")
    for bits in (8, 4):
        integer = quantize(codec, [photo[:128, :128]], QuantizeConfig(weight_bits=bits))
        weight = _weights_of(integer, "context_prediction")
        assert not bool(weight[:, :, 2, 2:].any()) and not bool(weight[:, :, 3:].any())
        assert bool(weight[:, :, :2].any())


def test_groups_are_rounded_by_themselves() -> None:
    """A grouped kernel against its groups as kernels of their own."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 20, 20, generator=g)
    weight = torch.randn(4, 3, 3, 3, generator=g)
    op = Convolution(weight, torch.zeros(4), padding=1, groups=2)
    scales, unit, levels = torch.full((4,), 0.3).double(), torch.ones(6).double(), uniform(4)
    grams = gram_matrices(op, x, 1, torch.Generator())
    whole, _ = round_kernel(op, weight.double(), scales, unit, grams, levels)
    for k in range(2):
        own = Convolution(weight[2 * k : 2 * k + 2], torch.zeros(2), padding=1)
        gram = gram_matrices(own, x[:, 3 * k : 3 * k + 3], 1, torch.Generator())
        part, _ = round_kernel(own, own.weight.double(), scales[:2], unit[:3], gram, levels)
        assert torch.equal(part, whole[2 * k : 2 * k + 2])


def test_shared_scales_are_the_largest() -> None:
    found = ActivationFormat(torch.tensor([1.0, 3.0, 2.0, 0.5]).double(), -128, 127)
    assert tied(found, 2).scale.tolist() == [3, 3, 2, 2] and tied(found, 0).scale.tolist() == [3] * 4
    assert tied(found, 1) is found


def test_every_edge_of_products_has_few_bits_and_streams_have_sixteen(photo: np.ndarray) -> None:
    config = QuantizeConfig(wide_ends=False)
    integer = quantize(small_codec("cheng2020-anchor"), [photo[:128, :128]], config)
    graph = integer.networks["analysis"]
    ports = graph.ports()
    for node in graph.nodes:
        widths = [ports[edge].hi - ports[edge].lo for edge in node.inputs]
        if isinstance(node.op, Convolution):
            assert widths[0] <= 255 or node.name.endswith("~mixed"), node.name
        elif node.op.kind in ("sum", "product"):
            assert min(widths) >= 2**14, node.name


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_weight_rules_stay_in_their_bits(rule: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 300) * torch.tensor([1e-6, 1e-2, 1, 10, 1e3, 0]).reshape(-1, 1)
    scales = weight_scales(w, uniform(8), rule)  # type: ignore[arg-type]
    q = quantize_weight(w, scales, uniform(8))
    assert int(q.abs().max()) <= 127 and torch.isfinite(scales).all()
    error = (q * scales[:, None] - w)[:5].norm(dim=1) / w[:5].norm(dim=1)
    assert float(error.max()) < 0.03


def test_mse_beats_minmax_on_heavy_tails() -> None:
    torch.manual_seed(0)
    w = torch.distributions.StudentT(3.0).sample((8, 2000))
    errors = {}
    for rule in ("minmax", "mse"):
        s = weight_scales(w, uniform(4), rule)  # type: ignore[arg-type]
        errors[rule] = float(((quantize_weight(w, s, uniform(4)) * s[:, None] - w) ** 2).sum())
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_histograms_count_every_position_while_the_range_grows() -> None:
    torch.manual_seed(0)
    seen, parts = Observed(), [torch.randn(1, 3, 20, 20) * 4.0**k for k in range(4)]
    for part in parts:
        seen.add(part)
    assert seen.counts is not None and torch.equal(seen.counts.sum(1), torch.full((3,), 1600.0).double())
    x = torch.cat(parts).permute(1, 0, 2, 3).reshape(3, -1).double()
    scale = torch.tensor([0.5, 1.0, 3.0]).double()
    exact = (((x / scale[:, None]).round().clamp(-60, 50) * scale[:, None] - x) ** 2).sum(1)
    assert torch.allclose(seen.error(scale, -60, 50), exact, rtol=0.1)
    low, high = seen.quantiles(0.1)
    expected = torch.quantile(x, torch.tensor([0.1, 0.9]).double(), dim=1)
    assert torch.allclose(torch.stack([low, high]), expected, atol=0.6)


def test_one_outlier_does_not_decide_the_split_between_signs() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 60, 60)
    x[0, 0, 0, 0] = 12.0
    seen = Observed()
    seen.add(x)
    assert activation_format(seen, 8, "minmax", "channel").lo > -80
    assert -160 <= activation_format(seen, 8, "mse", "channel").lo <= -96


def test_latent_shift_spares_the_channels_that_matter(photo: np.ndarray) -> None:
    codec, crop = small_codec("mbt2018-mean"), photo[:128, :128]
    with torch.no_grad():
        codec.g_s[0].weight[3] *= 8  # read by large weights, but carries next to nothing
        codec.g_a[-1].weight[3] *= 0.01
    integer = quantize(codec, [crop], QuantizeConfig(mixing="none"))
    op = integer.networks["synthesis"]["latent_shift"].op
    assert isinstance(op, Requantize)
    shift = np.log2(op.factor.as_float())
    assert shift[3] == shift.max() >= np.median(shift) + 2


def test_activation_formats_cover_and_centre() -> None:
    seen = Observed()
    seen.add(torch.linspace(-1, 3, 400).reshape(1, 2, 20, 10))
    f = activation_format(seen, 8, "minmax", "tensor")
    assert f.hi - f.lo == 255 and f.lo == round(-255 / 4)
    assert float(f.scale[0] * f.hi) == pytest.approx(3, rel=0.01)
    per_channel = activation_format(seen, 8, "minmax", "channel")
    assert float(per_channel.scale[0]) < float(per_channel.scale[1])


def test_silent_activation_is_an_error() -> None:
    seen = Observed()
    seen.add(torch.zeros(1, 2, 4, 4))
    with pytest.raises(CalibrationError, match="always in"):
        activation_format(seen, 8, "minmax", "tensor")
    with pytest.raises(CalibrationError, match="no calibration pictures"):
        observe(capture(small_codec("bmshj2018-factorized")), [])


@pytest.mark.parametrize("transposed", [False, True])
def test_columns_times_taps_are_the_convolution(transposed: bool) -> None:
    x = torch.randn(1, 3, 6, 7)
    op = Convolution(torch.empty(0), torch.zeros(4), 2, 2, transposed)
    op = dataclasses.replace(op, weight=op.stored_as(torch.randn(4, 3, 5, 5)))
    reference = op.real(x)[0].reshape(4, -1)
    mine = torch.cat(
        [columns(op, x, p).flatten(1) @ op.by_output().flatten(2)[:, :, p].flatten(1).T for p in phases(op)]
    )
    # interior values must all be there; the borders of a transposed one also hold cropped positions
    distance = (reference.T[:, None] - mine[None]).abs().amax(2).amin(1)
    assert float(distance.max()) < 1e-5


def test_compensated_rounding_beats_nearest_on_correlated_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 10) @ torch.randn(10, 60) + 0.1 * torch.randn(4000, 60)
    w = torch.randn(16, 60)
    s = weight_scales(w, uniform(4), "minmax")
    nearest = quantize_weight(w, s, uniform(4))
    smart = compensated_round(w, s, x.T @ x, uniform(4))
    assert int(smart.abs().max()) <= 7
    error = [float((((q * s[:, None]).float() - w) @ x.T).square().mean()) for q in (nearest, smart)]
    assert error[1] < 0.3 * error[0]


def _gptq(w: torch.Tensor, h: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """The slow obvious form: after each entry, the best real values of all entries still to come."""
    o, k = w.shape
    metric = torch.kron(across, h)
    values, order = w.flatten().clone(), [r * k + c for c in range(k) for r in range(o)]
    q = torch.zeros_like(values)
    for n, i in enumerate(order):
        q[i] = torch.floor(values[i] + 0.5)
        rest = order[n + 1 :]
        if rest:
            inverse = torch.linalg.inv(metric[rest][:, rest])
            values[rest] -= inverse @ metric[rest, i] * (q[i] - values[i])
        values[i] = q[i]
    return q.reshape(o, k)


def test_two_sided_rounding_answers_each_error_with_all_entries_to_come() -> None:
    g = torch.Generator().manual_seed(0)
    o, k = 4, 6
    w = 5 * torch.randn(o, k, generator=g, dtype=torch.float64)
    h, s = (a @ a.T + 0.1 * torch.eye(len(a)) for a in (
        torch.randn(n, n, generator=g, dtype=torch.float64) for n in (k, o)
    ))  # fmt: skip
    # with falling diagonals columns and rows keep their order
    h, s = (m * torch.outer(d, d) for m, d in ((h, torch.logspace(0, -1, k)), (s, torch.logspace(0, -1, o))))
    rows, columns = s.diagonal().argsort(descending=True), h.diagonal().argsort(descending=True)
    h, s = h[columns][:, columns], s[rows][:, rows]
    mine = compensated_round(w, torch.ones(o), h, uniform(8), s).double()
    from rdquant.passes import rounding

    h = h + rounding.DAMPING * float(h.diagonal().mean()) * torch.eye(k)
    s = s + rounding.OUTPUT_DAMPING * float(s.diagonal().mean()) * torch.eye(o)
    assert torch.equal(mine, _gptq(w, h, s))


def test_two_sided_rounding_beats_one_sided() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 10, generator=g) @ torch.randn(10, 60, generator=g)
    x = (x + 0.1 * torch.randn(4000, 60, generator=g)).double()
    w = torch.randn(16, 60, generator=g, dtype=torch.float64)
    a = torch.randn(16, 4, generator=g, dtype=torch.float64)
    cost = a @ a.T + 0.01 * torch.eye(16)
    s, levels = weight_scales(w, uniform(4), "minmax"), uniform(4)
    found = []
    for sensitivity in (None, cost):
        q = compensated_round(w, s, x.T @ x, levels, sensitivity).double()
        error = (q * s[:, None] - w) @ x.T
        found.append(float((error * (cost @ error)).sum()))
    assert found[1] < 0.6 * found[0]


def test_descent_only_lowers_the_cost_and_stops_where_no_move_helps() -> None:
    from rdquant.passes.rounding import _Problem

    g = torch.Generator().manual_seed(0)
    w = torch.randn(5, 7, generator=g, dtype=torch.float64)
    x, a = (torch.randn(n, n, generator=g, dtype=torch.float64) for n in (7, 5))
    problem, levels = _Problem(w, x @ x.T, a @ a.T), uniform(3)
    scales = torch.full((5,), 0.4, dtype=torch.float64)
    nearest = quantize_weight(w, scales, levels)
    found = problem.descend(nearest, scales, levels)
    assert problem.cost(found, scales) < 0.7 * problem.cost(nearest, scales)
    for i in range(found.numel()):
        for step in (-1, 1):
            other = found.clone().flatten()
            other[i] += step
            if abs(int(other[i])) <= 3:
                assert problem.cost(other.reshape(5, 7), scales) >= problem.cost(found, scales) * (1 - 1e-9)


def test_config_round_trips_and_refuses() -> None:
    config = QuantizeConfig(weight_bits=6, activation_range="minmax")
    assert QuantizeConfig.from_json(config.to_json()) == config
    for bad in ({"weight_bits": 1}, {"activation_bits": 16}, {"weight_range": "max"}, {"granularity": "row"}):
        with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
            QuantizeConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="version"):
        QuantizeConfig.from_json({"version": 99})


def test_conversion_is_a_function_of_its_inputs(photo: np.ndarray) -> None:
    from rdquant.files.integer_models import integer_fingerprint

    codec, crop = small_codec("bmshj2018-hyperprior"), photo[:128, :128]
    fingerprints = {
        integer_fingerprint(
            to_integer(*prepare(capture(codec), [crop], QuantizeConfig()), QuantizeConfig())[0]
        )
        for _ in "ab"
    }
    assert len(fingerprints) == 1
