"""Every search of bit-widths by name, on one `Problem`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..errors import CalibrationError, UsageError
from .annealing import annealing
from .baselines import evolutionary, greedy, hessian_table
from .joint import joint
from .judge import Judge
from .plan import Plan
from .predict import Projections, predict_table, project
from .refine import Neighbourhood, best_of, refine
from .search import fmpq, knapsack, uniform
from .sizes import LayerSizes
from .table import SensitivityTable, WidthTwins, cost_of, measure_table

Progress = Callable[[int, int, str], None]

#: of measuring around a plan
ROUNDS = 3


class Problem:
    """One codec at several widths, pictures ``x: (B, 3, H, W)`` of 0..255 to judge by, and what was found
    out.

    ``store``: a sensitivity table kept there is completed, or used as it is. Evaluations are counted of whole
    plans (``judge``) and of the table apart.
    """

    def __init__(
        self,
        twins: WidthTwins,
        x: Tensor,
        lambda_: float,
        parameters: int,
        store: Path | None = None,
        budget: int = 1000,
        progress: Progress | None = None,
    ) -> None:
        self.twins, self.x, self.lambda_, self.parameters = twins, x, lambda_, parameters
        self.store, self.budget, self.progress = store, budget, progress
        self.sizes = self._first = LayerSizes.of(twins.codecs, parameters)
        self._archives: dict[str, Neighbourhood] = {}

    @cached_property
    def measured(self) -> SensitivityTable:
        """The table, measured width by width."""
        table = measure_table(self.twins, self.x, self.lambda_, self.parameters, self.store, self.progress)
        return dataclasses.replace(table, sizes=self.sizes)

    @cached_property
    def predicted(self) -> SensitivityTable:
        """The table, predicted from one gradient; no more is known of it where nothing was measured."""
        return predict_table(self.twins, self.projections, self.sizes)

    @cached_property
    def projections(self) -> Projections:
        """One gradient's knowledge of all widths."""
        return project(self.twins, self.x, self.lambda_)

    def target(self, text: str) -> int:
        """Bytes that a text means (`LayerSizes.target`), whatever was learned of sizes since."""
        return self._first.target(text)

    def sized(self, table: SensitivityTable) -> SensitivityTable:
        """The table with what is known of sizes by now."""
        return dataclasses.replace(table, sizes=self.sizes)

    @cached_property
    def judge(self) -> Judge:
        """Of whole plans, relative to the float codec's J; activations clipped, not rounded, as in tables."""
        j_float = self.twins.cost(None, self.x, self.lambda_)  # of whole pictures; predictions are of tiles
        return Judge(self.twins, self.x, self.lambda_, j_float, outputs=False)

    def when_made(self, plan: Plan, target: int) -> float:
        """Increase of J of a plan, its file filled up to ``target`` bytes; infinite where it cannot be."""
        try:
            twin = self.twins.filled(plan.bits, target)
        except CalibrationError:
            return math.inf
        twin.set_rounding(twin.names(), True, False)
        return cost_of(twin, self.x, self.lambda_) / self.judge.j_float - 1

    def near(self, table: SensitivityTable, name: str) -> Neighbourhood:
        """Whole plans that were measured for a method so far, of all targets."""
        if name not in self._archives:
            self._archives[name] = Neighbourhood(self.judge, self.sized(table))
        found = self._archives[name]
        found.table = self.sized(table)
        found.archive = [dataclasses.replace(p, size=self.sizes.bytes(p.bits)) for p in found.archive]
        return found


@dataclass(frozen=True)
class Search:
    """``run(problem, target bytes)`` -> a plan, whose size is what `LayerSizes` predicts."""

    about: str
    source: str
    run: Callable[[Problem, int], Plan]
    uses: str | None = None
    """The table whose making counts as this search's cost: measured, predicted, or none."""
    whole: bool = False  #: its plan's increase of J was measured as a whole
    rivalled: bool = False
    """Whether its plan's file is compared with one of the widest uniform plan, filled up likewise: where
    widths are so small that errors are large, that may be better whatever the plans as such cost."""


def _uniform(table: SensitivityTable, target: int) -> Plan:
    fitting = [p for p in (uniform(table, b) for b in table.bits) if p.size <= target]
    return fitting[-1] if fitting else uniform(table, min(table.bits))


def _refined(problem: Problem, target: int) -> Plan:
    near = problem.near(problem.measured, "ours")
    near.measured(_uniform(near.table, target))  # where nothing is what single layers say, it is hard to beat
    refine(near, target, ROUNDS)
    return dataclasses.replace(best_of(near.archive, target), method="ours")


def _quick(problem: Problem, target: int) -> Plan:
    """The best of `joint`, the predicted table's optimum and the widest uniform plan, all measured."""
    near = problem.near(problem.predicted, "ours-quick")
    near.measured(joint(problem.twins, problem.projections, near.table, problem.x, target))
    near.measured(knapsack(near.table, target))
    near.measured(_uniform(near.table, target))
    return dataclasses.replace(best_of(near.archive, target), method="ours-quick")


def _by_hessian(problem: Problem, target: int) -> Plan:
    table = problem.sized(problem.predicted)
    found = hessian_table(table, problem.twins, problem.x, problem.lambda_)
    return dataclasses.replace(knapsack(found, target), method="hessian")


METHODS: Mapping[str, Search] = {
    "ours": Search(
        "the measured table's optimum, then rounds of measuring each layer around the plan",
        "docs/mixed-precision.md", _refined, "measured", True, True,
    ),
    "ours-quick": Search(
        "layers weighed together: the transforms' from one gradient, the hyper-coder's by its measured rate",
        "docs/mixed-precision.md", _quick, "predicted", True, True,
    ),
    "fmpq": Search(
        "the lowest widths whose relative increase of J, one layer at a time, is below a tolerance",
        "Hossain, Duan and Zhu 2024, arXiv 2506.01221, algorithm 1",
        lambda p, target: fmpq(p.sized(p.measured), target), "measured",
    ),
    "knapsack": Search(
        "integer programming: the least sum of the measured table",
        "scipy's milp (HiGHS)", lambda p, target: knapsack(p.sized(p.measured), target), "measured",
    ),
    "predicted": Search(
        "integer programming: the least sum of a table predicted from one gradient",
        "docs/mixed-precision.md",
        lambda p, target: dataclasses.replace(knapsack(p.sized(p.predicted), target), method="predicted"),
        "predicted",
    ),
    "hessian": Search(
        "integer programming: mean Hessian trace times squared error of a layer's weights",
        "HAWQ-V2, Dong et al. 2020, arXiv 1911.03852", _by_hessian,
    ),
    "greedy": Search(
        "from the widest plan on, narrow the layer that costs least J a byte, all measured",
        "-",
        lambda p, target: greedy(p.sized(p.predicted), p.judge, target, p.progress), whole=True,
    ),
    "evolutionary": Search(
        "a genetic search with a budget of measured plans",
        "-",
        lambda p, target: evolutionary(
            p.sized(p.predicted), p.judge, target, p.budget, progress=p.progress
        ), whole=True,
    ),
    "annealing": Search(
        "simulated annealing with a budget of measured plans",
        "Kirkpatrick, Gelatt and Vecchi 1983",
        lambda p, target: annealing(
            p.sized(p.predicted), p.judge, target, p.budget, progress=p.progress
        ), whole=True,
    ),
    "uniform": Search(
        "the widest width of all layers that fits", "-",
        lambda p, target: _uniform(p.sized(p.predicted), target),
    ),
}  # fmt: skip


def search_of(name: str) -> Search:
    """Raises `UsageError` for a name that is none."""
    if name not in METHODS:
        raise UsageError(f"the method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


#: a plan is taken whose measured file has at most the target's bytes, and at least this share of them
CLOSE, ATTEMPTS = 0.97, 4


def plan_for(problem: Problem, name: str, target: int) -> Plan:
    """A method's plan whose file, measured, has at most ``target`` bytes.

    Predicted sizes miss by what layers share (tables of coded weights, compressed names): the plan's file is
    measured, and what the prediction missed corrects it for the next attempt. Raises `UsageError` for an
    impossible target.
    """
    search, found = search_of(name), None
    for _ in range(ATTEMPTS):
        plan = search.run(problem, target)
        size = problem.twins.file_bytes(plan.bits)
        missed = size - problem.sizes.bytes(plan.bits)
        if size <= target and (found is None or size > found.size):
            found = dataclasses.replace(plan, size=size, target=target)
        widest = all(b == max(problem.twins.twins) for b in plan.bits.values())
        if not missed or (size <= target and (widest or size >= CLOSE * target)):
            break
        problem.sizes = dataclasses.replace(problem.sizes, fixed=problem.sizes.fixed + missed)
    if found is None:
        raise UsageError(f"no plan of {name} has a file of at most {target} bytes; the last had {size}")
    return _or_uniform(problem, found, target) if search.rivalled else found


def _or_uniform(problem: Problem, plan: Plan, target: int) -> Plan:
    """The plan, or the widest uniform one if its file is better."""
    try:
        rival = plan_for(problem, "uniform", target)
    except UsageError:
        return plan
    if rival.bits == plan.bits or problem.when_made(plan, target) <= problem.when_made(rival, target):
        return plan
    return dataclasses.replace(rival, method=plan.method, increase=problem.judge(rival.bits))
