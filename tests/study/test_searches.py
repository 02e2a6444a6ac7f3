from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from conftest import small_codec
from rdquant.allocate.methods import METHODS, Problem
from rdquant.allocate.table import WidthTwins
from rdquant.graph.capture import capture
from rdquant.passes import QuantizeConfig, prepare
from rdquant.passes.crops import probe
from rdquant.study.searches import compare


def test_every_search_meets_the_size_and_is_judged_alike(photo: np.ndarray) -> None:
    config = QuantizeConfig(number_format="coded")
    trained = small_codec("mbt2018-mean")
    codec, seen = prepare(capture(trained), [photo[:128, :128]], config)
    twins = WidthTwins(codec, seen, config, trained.entropy_bottleneck, (2, 4, 8))
    x = probe([photo[128:256, :128], photo[:128, 128:256]], 128)
    problem = Problem(twins, x, 0.001, 20_000, budget=20)
    found, table = compare(problem, "2.5bits"), problem.measured
    assert set(found) == set(METHODS)
    for name, outcome in found.items():
        assert outcome.plan.size <= table.sizes.target("2.5bits"), name
        j = twins.cost(outcome.plan.bits, x, 0.001, outputs=False)
        assert outcome.increase == pytest.approx(j / table.j_float - 1), name
        assert outcome.interval and outcome.interval[0] < outcome.increase < outcome.interval[1], name
    assert found["ours"].increase <= found["knapsack"].increase
    for name in ("ours", "ours-quick", "evolutionary", "annealing"):
        assert found[name].increase <= found["uniform"].increase + 1e-9, name
    assert found["knapsack"].evaluations == table.evaluations
    assert found["ours"].evaluations > table.evaluations
    assert found["predicted"].evaluations == 1
    for name in ("greedy", "evolutionary", "annealing"):
        for other, (asked, seconds) in found[name].reached.items():
            assert found[name].increase <= found[other].increase, other
            assert 0 < asked <= found[name].evaluations and 0 < seconds <= found[name].seconds
    assert "uniform" in found["evolutionary"].reached
    assert found["greedy"].evaluations > 2 * len(table.layers)
    assert dataclasses.asdict(found["uniform"].plan)["bits"] == dict.fromkeys(table.layers, 2)
