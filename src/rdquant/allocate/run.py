"""From a float codec and wanted sizes to plans: the whole of `rdquant allocate`."""

from __future__ import annotations

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
from .judge import Judge
from .plan import Plan
from .predict import predict_table
from .refine import Neighbourhood, best_of, refine
from .search import fmpq, knapsack
from .sizes import LayerSizes
from .table import SensitivityTable, WidthTwins, measure_table

Progress = Callable[[int, int, str], None]

METHODS = {"fmpq": fmpq, "knapsack": knapsack}
#: a table measured width by width, or predicted from one gradient (`rdquant.allocate.predict`)
SENSITIVITIES = ("measured", "predicted")
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
    method: str = "knapsack",
    rounds: int = 3,
    store: Path | None = None,
    sensitivity: str = "measured",
    progress: Progress | None = None,
) -> tuple[dict[str, Plan], SensitivityTable]:
    """A plan per target (see `LayerSizes.target`), and the table they come from.

    ``rounds``: of measuring around each plan (`refine`); 0: what ``method`` makes of the table alone.
    ``store``: a table there that is complete is used as it is, an incomplete one is completed.
    ``sensitivity``: how a table is made (`SENSITIVITIES`). Raises `UsageError` for a bad target, method or
    sensitivity, before and after anything is measured.
    """
    if sensitivity not in SENSITIVITIES:
        raise UsageError(f"sensitivity must be one of {', '.join(SENSITIVITIES)}, got {sensitivity!r}")
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if rounds < 0:
        raise UsageError(f"rounds must be 0 or more, got {rounds}")
    table = SensitivityTable.load(store) if store is not None and store.exists() else None
    complete = table is not None and set(table.layers) == set(table.sizes.counts)
    if rounds or not complete or table is None:
        parameters = parameter_count(codec)
        twins, x = judged_twins(codec, pictures, config, progress)
        if (not complete or table is None) and sensitivity == "predicted":
            table = predict_table(twins, x, lambda_, LayerSizes.of(twins.codecs, parameters))
            if store is not None:
                table.save(store)
        elif not complete or table is None:
            table = measure_table(twins, x, lambda_, parameters, store, progress)
    sizes = {t: table.sizes.target(t) for t in targets}
    if not rounds:
        return {t: METHODS[method](table, size) for t, size in sizes.items()}, table
    near = Neighbourhood(Judge(twins, x, lambda_, table.j_float, outputs=False), table)
    for i, (text, size) in enumerate(sizes.items()):
        if progress:
            progress(i, len(sizes), f"around {text}")
        refine(near, size, rounds)
    return {t: best_of(near.archive, size) for t, size in sizes.items()}, table
