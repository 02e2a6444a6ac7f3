"""Engines run integer graphs, all with equal results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..graph import Graph
from . import cache, fast
from .self_test import passes, self_test
from .strips import in_strips

cache.drop_stale_kernels(Path(__file__).parent)

__all__ = ["Engine", "default_engine", "run"]

#: "reference": float64, numpy. "fast": products of small integers, numba. "torch:DEVICE": `device`.
Engine = str
_TORCH = "torch:"


def default_engine() -> Engine:
    """Fast if this machine passes the self-test, else the reference; ``RDQUANT_ENGINE`` overrides.

    Raises `UsageError` for a value that it does not know, and a device that is not there or fails the test.
    """
    chosen = os.environ.get("RDQUANT_ENGINE", "auto")
    if chosen.startswith(_TORCH):
        if not passes(lambda graph: _on_device(graph, chosen, False)):
            raise UsageError(f"{chosen} does not give the contract's integers")
        return chosen
    if chosen not in ("auto", "fast", "reference"):
        raise UsageError(f"RDQUANT_ENGINE must be auto, fast, reference or torch:DEVICE, got {chosen!r}")
    if chosen == "reference":
        return "reference"
    return "fast" if self_test() or chosen == "fast" else "reference"


def _on_device(graph: Graph, engine: Engine, valid: bool) -> Callable[..., np.ndarray]:
    from .device import plan

    return plan(graph, engine.removeprefix(_TORCH), valid).run


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
    if engine.startswith(_TORCH):
        on_device = _on_device(graph, engine, valid)
        return on_device(*inputs) if valid else in_strips(graph, inputs, on_device)
    if valid:
        return graph.valid().exact(*inputs)
    return in_strips(graph, inputs, graph.exact)
