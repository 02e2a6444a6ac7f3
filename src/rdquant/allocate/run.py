"""From a float codec and wanted sizes to plans: the whole of `rdquant allocate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..codecs import FloatCodec
from ..errors import UsageError
from ..weights.config import QuantizeConfig
from ..weights.crops import probe
from ..weights.prepare import prepare
from .plan import Plan
from .search import fmpq, knapsack
from .table import SensitivityTable, WidthTwins, measure_table

METHODS = {"fmpq": fmpq, "knapsack": knapsack}


def allocate(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    lambda_: float,
    targets: list[str],
    method: str = "knapsack",
    store: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Plan], SensitivityTable]:
    """A plan per target (see `LayerSizes.target`), and the table they come from.

    ``store``: a table there that is complete is used as it is, an incomplete one is completed. Raises
    `UsageError` for a bad target or method, before and after anything is measured.
    """
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    table = SensitivityTable.load(store) if store is not None and store.exists() else None
    if table is None or set(table.layers) != set(table.sizes.counts):
        parameters = sum(p.numel() for p in codec.parameters())
        codec, seen = prepare(codec, pictures, config, progress)
        x = probe(pictures, most=len(pictures))
        twins = WidthTwins(codec, seen, config)
        table = measure_table(twins, x, lambda_, parameters, store, progress)
    return {t: METHODS[method](table, table.sizes.target(t)) for t in targets}, table
