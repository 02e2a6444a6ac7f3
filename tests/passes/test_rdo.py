from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.errors import CalibrationError, UsageError
from rdquant.files.integer_models import integer_fingerprint
from rdquant.passes import QuantizeConfig
from rdquant.passes.bias import correct_biases
from rdquant.passes.grid import activation_grid, weight_grid
from rdquant.passes.held_out import HeldOut, split
from rdquant.passes.methods import Job, quantize_by
from rdquant.passes.mixed import is_mixing
from rdquant.passes.rdo import RdoCalibration, units
from rdquant.passes.rdo_config import STRATEGIES, RdoConfig

QUICK = {"lambda_": 0.01, "batch": 1, "crop": 64, "bf16": False, "compile": False}
FOUR = QuantizeConfig(weight_bits=4, rounding="nearest")
PLAIN = dataclasses.replace(FOUR, mixing="none")


def _run(
    photo: np.ndarray, folder: Path | None = None, config: QuantizeConfig = FOUR, **options: object
) -> RdoCalibration:
    rdo = RdoConfig(**{**QUICK, **options})  # type: ignore[arg-type]
    return RdoCalibration(small_codec("mbt2018-mean"), [photo[:128, :128]], config, rdo, folder)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_lower_j(strategy: str, photo: np.ndarray) -> None:
    run = _run(photo, strategy=strategy, steps=60, objective="J", lr=0.03)
    run.run()
    costs = {e["unit"]: e["J"] for e in run.trace.entries if "J" in e}
    assert costs["end"] < costs["start"]


def test_reconstruction_comes_closer_to_the_float_codec(photo: np.ndarray) -> None:
    run = _run(photo, steps=200)
    run.run()
    first, *_, last = [e["loss"] for e in run.trace.entries if "loss" in e]
    assert last < 0.8 * first


def test_scales_move_first_and_weights_are_rounded_for_them(photo: np.ndarray) -> None:
    run = _run(photo, config=PLAIN, steps=20, learn=("scales", "rounding"), scale_share=0.5)
    costs = iter(range(0, -100, -1))
    run.held.cost = lambda _: next(costs)  # type: ignore[method-assign]  # all moves are welcome
    run.run()
    assert [e["unit"] for e in run.trace.entries] == ["float", "start", "scales", "scales", "weights", "end"]
    factors = run.stretch["g_s.1"]
    assert factors.shape == (8,) and 0 < float((factors - 1).abs().max()) < 0.2
    only = _run(photo, steps=6, learn=("scales",))
    only.run()
    assert only.done == 6 and "weights" not in [e["unit"] for e in only.trace.entries]


def test_grids_lower_j_of_the_stages_they_search(photo: np.ndarray) -> None:
    """With float stages behind and before it, each choice is no worse than none."""
    config = dataclasses.replace(PLAIN, number_format="uniform")
    run = _run(photo, config=config, steps=0, grid=False)
    twin, last = run.twin, run.twin.of_network("synthesis")[-2]

    def j() -> float:
        twin.set_rounding(twin.names(), False, False)
        twin.set_rounding([last], False, True)
        with torch.no_grad():
            return float(twin(run.probe).cost(0.01, run.probe[:, 0].numel()))

    before = j()
    assert set(activation_grid(twin, [last], run.probe, 0.01)) == {"g_s.5"}
    assert j() <= before * (1 + 1e-6)
    others = {f: run._convert({f"{last}.weight": f}) for f in (0.5, 0.8)}
    twin = run._convert()
    first = float(np.abs(np.asarray(twin.layer(last).op.weight)).mean())
    assert set(weight_grid(twin, others, [last], run.probe, 0.01)) == {f"{last}.weight"}
    assert float(np.abs(np.asarray(twin.ops[last].weight)).mean()) >= first  # finer steps or the same


def test_grids_factors_reach_the_conversion(photo: np.ndarray) -> None:
    run = _run(photo, config=PLAIN, steps=0, grid=True)
    run.j = float("inf")  # whatever they are
    run._adopt({"g_a.1": 0.1, "g_a.2.weight": -0.1})
    assert float(run.stretch["g_a.1"]) == pytest.approx(np.exp(0.1))
    plain = _run(photo, config=PLAIN, steps=0, grid=False).run()
    assert integer_fingerprint(run.twin.export()) != integer_fingerprint(plain)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_moves_stay_where_held_out_pictures_like_them(share: float, photo: np.ndarray) -> None:
    """A move that is good up to some share of it, and a move that is bad from the first step."""
    twin = _run(photo, steps=0).twin
    held = HeldOut(twin, [photo[:128, :128]], 0.01)
    moved = [torch.ones(3)]
    held.cost = lambda _: abs(float(moved[0][0]) - share)  # type: ignore[method-assign]
    assert held.settle(lambda: twin, moved, [torch.zeros(3)], share) == (share, 0.0 if share else share)
    assert moved[0].tolist() == [share] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 8, "lr": 5.0},  # far too fast
        {"steps": 8, "learn": ("scales",), "lr": 5.0, "objective": "J"},
        {"steps": 0, "grid": True},
        {
            "steps": 14,
            "strategy": "layer",
            "objective": "difference",
            "learn": ("scales", "rounding", "bias"),
        },
        {"steps": 0, "bias_correction": "empirical"},
    ],
)
def test_no_search_ends_worse_than_its_start(options: dict, photo: np.ndarray) -> None:
    """By J of pictures that it did not learn from."""
    pictures = [photo[i : i + 64, i : i + 64] for i in (0, 128, 256, 400)]
    rdo = RdoConfig(**{**QUICK, **options})  # type: ignore[arg-type]
    config = dataclasses.replace(PLAIN, weight_bits=4, number_format="uniform")
    run = RdoCalibration(small_codec("mbt2018-mean"), pictures, config, rdo)
    start = run.held.cost(run.twin)
    run.run()
    end = run.held.cost(run.twin)
    assert end <= start * (1 + 1e-6) and end == pytest.approx(run.j, rel=1e-5)


def test_pictures_that_judge_are_not_learned_from(photo: np.ndarray) -> None:
    pictures = [photo[:64, i : i + 64] for i in range(0, 320, 10)]
    learned, judging = split(pictures)
    assert len(judging) == 8 and len(learned) == 24
    assert not {p.tobytes() for p in learned} & {p.tobytes() for p in judging}
    assert split(pictures[:1]) == (pictures[:1], pictures[:1])
    assert [len(part) for part in split(pictures[:3])] == [2, 1]


def test_resumes_to_the_same_integers(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdquant.passes.rdo.SAVE_EVERY", 5)
    whole = _run(photo, steps=15).run()
    interrupted = _run(photo, tmp_path / "run", steps=15)
    monkeypatch.setattr(interrupted.crops, "batch", _failing(interrupted.crops.batch, 12))
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = _run(photo, tmp_path / "run", steps=15)
    assert resumed.done == 10
    assert integer_fingerprint(resumed.run()) == integer_fingerprint(whole)
    with pytest.raises(CalibrationError, match="other options"):
        _run(photo, tmp_path / "run", steps=16)


def test_resumes_behind_the_scales(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the scales were just adopted: they must not be lost, nor adopted twice."""
    monkeypatch.setattr("rdquant.passes.rdo.SAVE_EVERY", 5)
    options = {"steps": 10, "learn": ("scales", "rounding"), "scale_share": 0.5}
    whole = _run(photo, **options).run()
    interrupted = _run(photo, tmp_path / "run", **options)
    monkeypatch.setattr(interrupted.crops, "batch", _failing(interrupted.crops.batch, 7))
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = _run(photo, tmp_path / "run", **options)
    assert resumed.done == 5
    assert integer_fingerprint(resumed.run()) == integer_fingerprint(whole)


def _failing(batch, at: int):  # type: ignore[no-untyped-def]
    def wrapped(step: int, count: int) -> torch.Tensor:
        if step == at:
            raise KeyboardInterrupt
        return batch(step, count)

    return wrapped


def test_units_cover_the_scope(photo: np.ndarray) -> None:
    twin = _run(photo, steps=0).twin

    def names(*networks: str) -> list[str]:
        return [n for network in networks for n in twin.of_network(network) if not is_mixing(n)]

    scope = {"scope": ("synthesis",)}
    assert units(twin, "joint", QuantizeConfig(**scope)) == [names("synthesis")]  # type: ignore[arg-type]
    hyper = ("hyper_analysis", "hyper_synthesis")
    layers = [name for unit in units(twin, "layer", QuantizeConfig(scope=hyper)) for name in unit]
    assert layers == names(*hyper)
    assert len(units(twin, "block", QuantizeConfig())) == 4


@pytest.mark.parametrize("how", ["empirical", "analytic"])
def test_bias_correction_recentres_accumulators(how: str, photo: np.ndarray) -> None:
    run = _run(photo, steps=0)
    twin, x = run.twin, run.probe
    first = twin.of_network("analysis")[0]
    layer = twin.layer(first)

    def shift() -> torch.Tensor:
        level, real = layer.relaxed(None, True), layer.relaxed(None, False)
        real = dataclasses.replace(real, bias=layer.bias0)  # of the float layer, in its units
        return ((level.real(x) - real.real(x)).mean((0, 2, 3)) / layer.bias_unit).abs().mean()

    with torch.no_grad():
        before = float(shift())
        correct_biases(twin, [first], x, how)  # type: ignore[arg-type]
        assert float(shift()) < 0.2 * before


def test_description_says_how(photo: np.ndarray) -> None:
    codec = small_codec("bmshj2018-factorized")
    rdo = RdoConfig(**QUICK, steps=2)  # type: ignore[arg-type]
    job = Job(codec, [photo[:64, :64]], QuantizeConfig(), rdo)
    integer, trace = quantize_by("ours", job, {"parent": "p"})
    assert integer.description["rdo"]["steps"] == 2 and integer.description["parent"] == "p"
    assert [e["unit"] for e in trace.entries] == ["float", "start", "weights", "end"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "global"}, "global"),
        ({"learn": ("everything",)}, "everything"),
        ({"crop": 100}, "100"),
        ({"lambda_": 0.0}, "0.0"),
        ({"bias_correction": "magic"}, "magic"),
        ({"lr": -1.0}, "-1.0"),
        ({"steps": -1}, "-1"),
        ({"rate": "guessed"}, "guessed"),
        ({"objective": "beauty"}, "beauty"),
    ],
)
def test_bad_options_are_quoted(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RdoConfig(**{**QUICK, **options})
