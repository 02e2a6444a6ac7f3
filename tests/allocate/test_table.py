from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.allocate import knapsack
from rdquant.allocate.annealing import annealing
from rdquant.allocate.baselines import evolutionary, greedy, hessian_table
from rdquant.allocate.judge import Judge
from rdquant.allocate.refine import Neighbourhood, best_of, refine
from rdquant.allocate.run import allocate
from rdquant.allocate.table import SensitivityTable, WidthTwins, measure_table
from rdquant.codec import Codec
from rdquant.errors import UsageError
from rdquant.files.integer_models import file_bytes, save_integer
from rdquant.graph.capture import capture
from rdquant.passes import QuantizeConfig, prepare
from rdquant.passes.crops import probe
from rdquant.passes.methods import Job, options_for, quantize_by
from rdquant.passes.rdo import Trace
from rdquant.passes.sized import quantize_to_size

LAMBDA = 0.001
BITS = (2, 4, 8)
CONFIG = QuantizeConfig(number_format="coded")


@pytest.fixture(scope="module")
def scene(photo: np.ndarray) -> tuple[WidthTwins, torch.Tensor, SensitivityTable]:
    trained = small_codec("mbt2018-mean")
    pictures = [photo[:128, :128]]
    codec, seen = prepare(capture(trained), pictures, CONFIG)
    twins = WidthTwins(codec, seen, CONFIG, trained.entropy_bottleneck, BITS)
    x = probe(pictures, 128)
    return twins, x, measure_table(twins, x, LAMBDA, sum(p.numel() for p in trained.parameters()))


def test_cells_are_what_a_whole_evaluation_gives(scene) -> None:  # type: ignore[no-untyped-def]
    """The cached suffixes against the slow way: the whole twin with one layer rounded."""
    twins, x, table = scene
    for bits in BITS:
        twin = twins.twins[bits]
        for name in table.layers:
            twin.set_rounding(twin.names(), False, False)
            twin.set_rounding([name], True, False)
            with torch.no_grad():
                j = float(twin(x).cost(LAMBDA, x.shape[0] * x.shape[2] * x.shape[3]))
            assert (j - table.j_float) / table.j_float == pytest.approx(table.zeta[name][bits], abs=2e-4)


def test_interrupted_tables_go_on(scene, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    store = tmp_path / "t.json"

    def stop(done: int, total: int, name: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_table(twins, x, LAMBDA, 1, store, stop)
    assert len(SensitivityTable.load(store).zeta) == 3
    again = measure_table(twins, x, LAMBDA, 1, store)
    assert again.evaluations == 1 + len(BITS) * (len(table.zeta) - 3)
    assert again.zeta == table.zeta


def test_files_have_the_size_that_was_asked_for(photo: np.ndarray, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Allocated on some pictures, quantized on others, gradients and all: at or below it, by at most 1 %."""
    codec, pictures = small_codec("mbt2018-mean"), [photo[i : i + 128, :128] for i in range(0, 320, 64)]
    plans, sizes = allocate(codec, pictures, CONFIG, LAMBDA, ["3bits", "5bits"])
    assert all(p.interval and p.interval[0] < p.increase < p.interval[1] for p in plans.values())
    noise = 0.005  # half of the intervals; a uniform plan's file may be better than its plan
    assert plans["5bits"].increase <= plans["3bits"].increase + noise
    few = {"lambda_": LAMBDA, "batch": 1, "crop": 64, "compile": False}
    others, about = [photo[200:328, 200:328]], {"parent": "a name " * 20}
    for text, steps in (("3bits", 6), ("5bits", 0)):
        target, plan = sizes.target(text), plans[text]
        assert plan.size <= target == plan.target
        quantize, rdo = options_for(
            "ours", {"number_format": "coded", "layer_bits": plan.bits}, {**few, "steps": steps, "lr": 0.1}
        )
        prepared = prepare(capture(codec), others, quantize)

        def make(config: QuantizeConfig, rdo=rdo, prepared=prepared) -> tuple[Codec, Trace]:  # type: ignore[no-untyped-def]
            return quantize_by("ours", Job(codec, others, config, rdo, prepared=prepared), about)

        integer, _ = quantize_to_size(make, prepared, quantize, target, about)
        save_integer(integer, tmp_path / "q")
        assert 0.99 * target <= (tmp_path / "q").stat().st_size <= target
    with pytest.raises(UsageError, match="magic"):
        allocate(codec, pictures, CONFIG, LAMBDA, ["5bits"], "magic")


def test_a_mixed_twin_takes_each_layer_from_its_width(scene) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    names = table.layers
    for bits in BITS:
        twin = twins.twins[bits]
        twin.set_rounding(twin.names(), True, True)
        with torch.no_grad():
            whole = float(twin(x).cost(LAMBDA, x.shape[0] * x.shape[2] * x.shape[3]))
        assert twins.cost(dict.fromkeys(names, bits), x, LAMBDA) == pytest.approx(whole, rel=1e-5)


def test_searches_that_measure_meet_the_target(scene) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    target = table.sizes.bytes(dict.fromkeys(table.layers, 4))
    searches = ((greedy, {}), (evolutionary, {"budget": 15, "population": 6}), (annealing, {"budget": 15}))
    for search, options in searches:
        judge = Judge(twins, x, LAMBDA, table.j_float)
        plan = search(table, judge, target, **options)
        assert plan.size <= target and judge.evaluations > 10
        if search is not greedy:  # they start there
            assert plan.increase <= judge(dict.fromkeys(table.layers, 4))


def test_hessian_costs_fall_with_bits(scene) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    found = hessian_table(table, twins, x[:, :, :64, :64], LAMBDA, probes=2)
    for row in found.zeta.values():
        assert row[2] > row[4] > row[8] >= 0


def test_refined_plans_fit_and_are_no_worse(scene) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    near = Neighbourhood(Judge(twins, x, LAMBDA, table.j_float, outputs=False), table)
    for share in (0.3, 0.6):
        sizes = [table.sizes.bytes(dict.fromkeys(table.layers, b)) for b in (2, 8)]
        target = int(sizes[0] + share * (sizes[1] - sizes[0]))
        start = near.measured(knapsack(table, target))
        found = refine(near, target, 3)
        assert found.size <= target and found.increase <= start.increase
        whole = twins.cost(found.bits, x, LAMBDA, outputs=False) / table.j_float - 1
        assert found.increase == pytest.approx(whole)
        local = near.around(found.bits)
        for name, row in local.zeta.items():  # against whole evaluations
            costs = {b: twins.cost({**found.bits, name: b}, x, LAMBDA, outputs=False) for b in row}
            expected = {b: (j - costs[max(costs)]) / table.j_float for b, j in costs.items()}
            assert row == pytest.approx(expected, abs=2e-4)
    assert best_of(near.archive, 10**9).increase == min(p.increase for p in near.archive)


@pytest.mark.parametrize("architecture", ["cheng2020-anchor", "window-attention"])
def test_twins_are_what_plans_give(architecture: str, photo: np.ndarray) -> None:
    """Of codecs whose ends have more bits where no plan says otherwise, too."""
    trained, config = small_codec(architecture), QuantizeConfig(number_format="coded", mixing_steps=5)
    codec, seen = prepare(capture(trained), [photo[:128, :128]], config)
    twins = WidthTwins(codec, seen, config, trained.entropy_bottleneck, (4,))
    planned = twins.file_bytes(dict.fromkeys(twins.layers, 4))
    assert planned == pytest.approx(file_bytes(twins.codecs[4]), abs=8)  # a file says its layers in an order
