"""Engines run integer graphs, all with equal results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..graph import Graph
from . import cache, fast
from .self_test import self_test
from .strips import in_strips

cache.drop_stale_kernels(Path(__file__).parent)

__all__ = ["Engine", "default_engine", "run"]

#: "reference": float64, numpy. "fast": products of small integers, numba.
Engine = Literal["reference", "fast"]


def default_engine() -> Engine:
    """Fast if this machine passes the self-test, else the reference; ``RDQUANT_ENGINE`` overrides.

    Raises `UsageError` for a value that it does not know.
    """
    chosen = os.environ.get("RDQUANT_ENGINE", "auto")
    if chosen not in ("auto", "fast", "reference"):
        raise UsageError(f"RDQUANT_ENGINE must be auto, fast or reference, got {chosen!r}")
    if chosen == "reference":
        return "reference"
    return "fast" if self_test() or chosen == "fast" else "reference"


def run(graph: Graph, inputs: tuple[np.ndarray, ...], engine: Engine, valid: bool = False) -> np.ndarray:
    """``inputs: (B, C, H, W)`` each, of any type, holding integers -> the output's integers.

    Values outside the range of an input are clipped to it: no bound is ever broken. Large inputs go through
    in strips, which changes nothing but the memory it takes. ``valid``: convolutions are not padded.
    """
    if engine == "fast":
        plan = fast.plan(graph)
        if valid:
            return plan.run(*inputs, valid=True)
        return in_strips(graph, inputs, plan.run)
    if valid:
        return graph.valid().exact(*inputs)
    return in_strips(graph, inputs, graph.exact)
