"""From a float codec and wanted sizes to plans: the whole of `rdquant allocate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..codecs.protocol import TrainedCodec
from ..errors import UsageError
from ..graph.capture import capture
from ..passes.config import QuantizeConfig
from ..passes.crops import probe
from ..passes.prepare import prepare
from .methods import Problem, plan_for, search_of
from .plan import Plan
from .sizes import LayerSizes
from .table import WidthTwins

Progress = Callable[[int, int, str], None]

#: one of so many pictures judges, and the others calibrate: no plan is judged by what it was fitted to
JUDGES = 4


def parameter_count(codec: TrainedCodec) -> int:
    """Of the float codec; of what is captured of it, if it is no module."""
    if isinstance(codec, nn.Module):
        return sum(p.numel() for p in codec.parameters())
    nodes = [n for graph in capture(codec).networks.values() for n in graph.nodes]
    return sum(t.numel() for n in nodes for t in vars(n.op).values() if isinstance(t, Tensor))


def judged_twins(
    codec: TrainedCodec, pictures: list[np.ndarray], config: QuantizeConfig, progress: Progress | None = None
) -> tuple[WidthTwins, Tensor]:
    """Twins calibrated on some of the pictures, and a batch of others to judge by, ``(B, 3, 256, 256)``."""
    judges = pictures[::JUDGES]
    fitted = [p for i, p in enumerate(pictures) if i % JUDGES] or pictures
    mixed, seen = prepare(capture(codec), fitted, config, progress)
    return WidthTwins(mixed, seen, config, codec.entropy_bottleneck), probe(judges, most=len(judges))


def allocate(
    codec: TrainedCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    lambda_: float,
    targets: list[str],
    method: str = "ours",
    store: Path | None = None,
    budget: int = 1000,
    progress: Progress | None = None,
) -> tuple[dict[str, Plan], LayerSizes]:
    """A plan per target (see `LayerSizes.target`), with the interval of its increase if it was measured, and
    the sizes of layers as they were predicted at first.

    ``method``: a name of `rdquant.allocate.methods`; ``store``: a sensitivity table kept there, completed or
    used as it is; ``budget``: measurements of searches that have one. Raises `UsageError` for a bad target or
    method, before and after anything is measured.
    """
    search = search_of(method)
    if budget < 1:
        raise UsageError(f"budget must be 1 or more, got {budget}")
    twins, x = judged_twins(codec, pictures, config, progress)
    problem = Problem(twins, x, lambda_, parameter_count(codec), store, budget, progress)
    sizes = problem.sizes
    plans = {t: plan_for(problem, method, problem.target(t)) for t in targets}
    if search.whole:
        judge = problem.judge
        plans = {t: dataclasses.replace(p, interval=judge.interval(p.bits)) for t, p in plans.items()}
    return plans, sizes
