from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rdquant.allocate import knapsack, predict
from rdquant.allocate.judge import Judge
from rdquant.allocate.methods import Problem, plan_for
from rdquant.allocate.plan import Plan
from rdquant.allocate.predict import predict_table, project, weight_error
from rdquant.allocate.sizes import LayerSizes
from rdquant.allocate.table import SensitivityTable, WidthTwins, measure_table
from rdquant.errors import CalibrationError
from rdquant.files.integer_models import file_bytes

LAMBDA, BITS = 0.013, (3, 5, 7)


def predicted_table(twins: WidthTwins, x: torch.Tensor, sizes: LayerSizes, seed: int = 0) -> SensitivityTable:
    return predict_table(twins, project(twins, x, LAMBDA, seed), sizes)


Scene = tuple[WidthTwins, torch.Tensor, SensitivityTable, SensitivityTable]


@pytest.fixture(scope="module")
def scene(trained: tuple[WidthTwins, torch.Tensor]) -> Scene:
    """Its table measured and predicted."""
    twins, x = trained
    measured = measure_table(twins, x, LAMBDA, 441_000)
    return twins, x, measured, predicted_table(twins, x, measured.sizes)


def test_predictions_are_the_error_of_the_picture(scene: Scene) -> None:
    """The inner products against what they stand for: the synthesis run with one layer's rounded weights."""
    twins, x, measured, _ = scene
    tables = [predicted_table(twins, x, measured.sizes, seed) for seed in range(4)]
    base = twins.twins[max(BITS)]
    base.set_rounding(base.names(), False, False)
    with torch.no_grad():
        y_hat, bits_y, bits_z = base.latents(base.run("analysis", x))
        plain = base.run("synthesis", y_hat)
        total = float(LAMBDA / 3 * (plain - x).square().sum() + bits_y + bits_z)
        mixed = twins.mixed(dict.fromkeys(twins.layers, max(BITS)), outputs=False)
        mixed.set_rounding(mixed.names(), False, False)
        for name in base.of_network("synthesis"):
            with twins.swapped(mixed, name, 5):
                error = LAMBDA / 3 * float((mixed.run("synthesis", y_hat) - plain).square().sum()) / total
            assert 0.4 * error < np.mean([t.zeta[name][5] for t in tables]) < 2.5 * error, name


def test_predictions_are_near_what_is_measured(scene: Scene) -> None:
    """Where a measurement can be told from noise and errors are still small."""
    _, _, measured, predicted = scene
    pairs = [
        (predicted.zeta[n][b], z)
        for n, row in measured.zeta.items()
        for b, z in row.items()
        if 0.004 < z < 0.1
    ]
    ratios = np.log([p / z for p, z in pairs])
    assert len(pairs) > 5 and abs(float(np.mean(ratios))) < 0.7 and float(np.std(ratios)) < 1


def test_plans_from_predictions_are_as_good(scene: Scene) -> None:
    twins, x, measured, predicted = scene
    judge = Judge(twins, x, LAMBDA, measured.j_float, outputs=False)
    uniform = dict.fromkeys(measured.layers, 5)
    size = measured.sizes.bytes(uniform)
    by_prediction, by_measurement = (judge(knapsack(t, size).bits) for t in (predicted, measured))
    assert by_prediction < 0.7 * judge(uniform) and by_prediction < 1.3 * by_measurement


def test_plans_are_judged_on_whole_pictures_with_their_interval(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins, x, measured, _ = scene
    plan = dict.fromkeys(measured.layers, 5)
    monkeypatch.setattr(predict, "TILE", 64)  # whose J is another than that of whole pictures
    judge, same, one = (
        Problem(twins, y, LAMBDA, 441_000).judge for y in (x, x[:1].repeat(6, 1, 1, 1), x[:1])
    )
    assert judge(plan) == pytest.approx(Judge(twins, x, LAMBDA, measured.j_float, False)(plan), abs=1e-5)
    low, high = judge.interval(plan) or (0.0, 0.0)
    assert low < judge(plan) < high and judge.evaluations == 1
    assert same.interval(plan) == pytest.approx((same(plan), same(plan)), abs=1e-5)
    assert one.interval(plan) is None


def test_plans_are_judged_as_their_files_are_made(scene: Scene) -> None:
    twins, x, measured, _ = scene
    problem, bits = Problem(twins, x, LAMBDA, 441_000), dict.fromkeys(measured.layers, 3)
    plain = twins.file_bytes(bits)
    target = plain * 5 // 4
    assert 0.99 * target <= file_bytes(twins.filled(bits, target).integer) <= target
    plan = Plan(bits, plain, 0.0, "uniform")
    assert problem.when_made(plan, target) < 0.7 * problem.judge(bits)
    assert problem.when_made(plan, plain // 4) == float("inf")


@pytest.mark.parametrize("better", ["uniform", "mixed"])
def test_of_a_plan_and_the_uniform_one_the_better_file_is_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    twins, x, measured, _ = scene

    def when_made(self: Problem, plan: Plan, target: int) -> float:
        return float((len(set(plan.bits.values())) == 1) != (better == "uniform"))

    monkeypatch.setattr(Problem, "when_made", when_made)
    target = twins.file_bytes(dict.fromkeys(measured.layers, 5)) + 100
    found = plan_for(Problem(twins, x, LAMBDA, 441_000), "ours-quick", target)
    assert (len(set(found.bits.values())) == 1) == (better == "uniform")
    assert found.method == "ours-quick" and found.size <= target == found.target


def test_more_tiles_change_nothing_but_noise(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    twins, x, measured, predicted = scene
    monkeypatch.setattr(predict, "TILE", 64)
    finer = predicted_table(twins, x, measured.sizes, seed=1)
    ratios = [np.log(finer.zeta[n][5] / predicted.zeta[n][5]) for n in measured.layers if n[0] == "g"]
    assert float(np.std(ratios)) < 0.8
    assert predicted_table(twins, x, measured.sizes, seed=1).zeta == finer.zeta


def test_weight_errors_shrink_with_bits(scene: Scene) -> None:
    twins, _, measured, _ = scene
    for name in measured.layers:
        squares = [float(weight_error(twins, name, b).square().sum()) for b in BITS]
        assert squares[0] > 4 * squares[1] > 16 * squares[2] > 0


def test_the_twins_are_left_as_they_were(scene: Scene) -> None:
    twins, x, measured, _ = scene
    plan = dict.fromkeys(measured.layers, 5)
    before = twins.cost(plan, x, LAMBDA)
    predicted_table(twins, x, measured.sizes)
    assert twins.cost(plan, x, LAMBDA) == before
    assert not any(b.requires_grad for b in twins.twins[max(BITS)].buffers())


def test_what_prediction_needs(scene: Scene) -> None:
    twins, x, *_ = scene
    bare = copy.copy(twins)
    bare.gains = None
    with pytest.raises(CalibrationError, match="synthesis gain"):
        project(bare, x, LAMBDA)
