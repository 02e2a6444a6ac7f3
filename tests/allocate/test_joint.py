from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rdquant.allocate.joint import HyperCost, TransformsCost, joint
from rdquant.allocate.methods import METHODS, Problem
from rdquant.allocate.predict import TRANSFORMS, Projections, predict_table, project
from rdquant.allocate.table import SensitivityTable, WidthTwins
from rdquant.errors import UsageError
from rdquant.passes.flow import segment_of

LAMBDA, BITS, PARAMETERS = 0.013, (3, 5, 7), 441_000

Scene = tuple[Problem, Projections, SensitivityTable, dict[str, str]]


@pytest.fixture(scope="module")
def scene(trained: tuple[WidthTwins, torch.Tensor]) -> Scene:
    twins, x = trained
    problem = Problem(twins, x, LAMBDA, PARAMETERS)
    found = project(twins, problem.x, LAMBDA)
    segments = {n: segment_of(found.base.stages[n].network) for n in twins.layers}
    return problem, found, predict_table(twins, found, problem.sizes), segments


def transforms_of(scene: Scene) -> TransformsCost:
    _, found, _, segments = scene
    return TransformsCost(found, [n for n, s in segments.items() if s in TRANSFORMS], segments)


def test_the_quadratic_form_is_the_mean_square_of_sums(scene: Scene) -> None:
    _, found, table, segments = scene
    cost, random = transforms_of(scene), np.random.default_rng(0)
    for _ in range(5):
        bits = {n: int(random.choice(BITS)) for n in table.layers}
        slow = 0.0
        for transform in TRANSFORMS:
            rows = [found.rows[n][:, BITS.index(bits[n])] for n in cost.layers if segments[n] == transform]
            slow += float(torch.stack(rows).double().sum(0).square().mean())
        assert cost(bits) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("price", [1e-7, 1e-6])
def test_no_move_of_two_layers_is_better_than_where_the_descent_ends(scene: Scene, price: float) -> None:
    _, _, table, _ = scene
    cost = transforms_of(scene)

    def objective(bits: dict[str, int]) -> float:
        return cost(bits) + price * sum(table.sizes.weights[n][bits[n]] for n in cost.layers)

    start = dict.fromkeys(table.layers, 5)
    end = cost.descended(start, table, price)
    assert objective(end) < objective(start)
    for two in itertools.combinations(cost.layers, 2):
        for widths in itertools.product(BITS, BITS):
            assert objective({**end, **dict(zip(two, widths, strict=True))}) >= objective(end) - 1e-9


def test_the_hyper_coder_alone_takes_the_bits_that_it_takes_in_the_whole(scene: Scene) -> None:
    problem, found, table, segments = scene
    plan = {n: (3 if segments[n] not in TRANSFORMS else 7) for n in table.layers}
    hyper = HyperCost(
        problem.twins, found, [n for n in plan if segments[n] not in TRANSFORMS], plan, problem.x
    )
    with torch.no_grad():
        twin = problem.twins.mixed(plan, outputs=False)
        _, bits_y, bits_z = twin.latents(twin.run("analysis", problem.x))
    assert hyper(plan) == pytest.approx((float(bits_y + bits_z) - found.bits) / found.j_total, abs=1e-6)
    hyper(plan)
    assert hyper.evaluations == 1


def test_plans_fit_and_measure_no_worse_than_single_layers_predict(scene: Scene) -> None:
    problem, _, _, _ = scene
    sizes = problem.sizes
    for bits in (4, 5):
        low, high = (sizes.bytes(dict.fromkeys(problem.twins.layers, b)) for b in (3, 7))
        target = low + (high - low) * (bits - 3) // 4
        before = problem.judge.evaluations
        plan = METHODS["ours-quick"].run(problem, target)
        assert plan.size <= target and problem.judge.evaluations - before <= 2
        assert plan.increase == problem.judge(plan.bits)
        assert plan.increase <= problem.judge(METHODS["predicted"].run(problem, target).bits)


def test_an_impossible_target_is_refused(scene: Scene) -> None:
    problem, found, table, _ = scene
    twins: WidthTwins = problem.twins
    with pytest.raises(UsageError, match="1000 bytes is impossible"):
        joint(twins, found, table, problem.x, 1000)
