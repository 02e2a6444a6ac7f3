from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.allocate.baselines import Judge, evolutionary, greedy, hessian_table
from rdquant.allocate.run import allocate
from rdquant.allocate.table import SensitivityTable, WidthTwins, measure_table
from rdquant.errors import UsageError
from rdquant.files.models import save_integer
from rdquant.weights import QuantizeConfig, prepare, quantize
from rdquant.weights.crops import probe

LAMBDA = 0.001
BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def scene(photo: np.ndarray) -> tuple[WidthTwins, torch.Tensor, SensitivityTable]:
    codec = small_codec("mbt2018-mean")
    pictures = [photo[:128, :128]]
    codec, seen = prepare(codec, pictures, QuantizeConfig())
    twins = WidthTwins(codec, seen, QuantizeConfig(), BITS)
    x = probe(pictures, 128)
    return twins, x, measure_table(twins, x, LAMBDA, sum(p.numel() for p in codec.parameters()))


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


def test_predicted_size_is_the_files(photo: np.ndarray, tmp_path) -> None:  # type: ignore[no-untyped-def]
    codec, pictures = small_codec("mbt2018-mean"), [photo[:128, :128]]
    plans, table = allocate(codec, pictures, QuantizeConfig(), LAMBDA, ["6bits", "4bits"])
    for plan in plans.values():
        config = QuantizeConfig(layer_bits=plan.bits)
        save_integer(quantize(codec, pictures, config), tmp_path / "q")
        assert (tmp_path / "q").stat().st_size == pytest.approx(plan.size, abs=700)
    assert all(plan.size <= table.sizes.target(text) for text, plan in plans.items())
    with pytest.raises(UsageError, match="magic"):
        allocate(codec, pictures, QuantizeConfig(), LAMBDA, ["6bits"], "magic")


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
    full = WidthTwins.__new__(WidthTwins)
    full.twins, full.widest = {b: twins.twins[b] for b in BITS}, twins.widest
    steps = SensitivityTable(
        {n: {b: z for b, z in r.items()} for n, r in table.zeta.items()}, 1.0, table.sizes
    )
    target = table.sizes.bytes(dict.fromkeys(table.layers, 4))

    class Nearest(Judge):
        """Widths between those that were made count as the wider one."""

        def __call__(self, bits):  # type: ignore[no-untyped-def]
            return super().__call__({n: min(b for b in BITS if b >= v) for n, v in bits.items()})

    for search, options in ((greedy, {}), (evolutionary, {"budget": 15, "population": 6})):
        judge = Nearest(full, x, LAMBDA, table.j_float)
        plan = search(steps, judge, target, **options)
        assert plan.size <= target and judge.evaluations > 10


def test_hessian_costs_fall_with_bits(scene) -> None:  # type: ignore[no-untyped-def]
    twins, x, table = scene
    found = hessian_table(table, twins, x[:, :, :64, :64], LAMBDA, probes=2)
    for row in found.zeta.values():
        assert row[2] > row[4] > row[8] >= 0
