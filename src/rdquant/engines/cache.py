"""What an engine made of a graph, kept as long as the graph; and numba's caches of what it is made with."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from ..graph import Graph

T = TypeVar("T")


def drop_stale_kernels(folder: Path) -> None:
    """Remove numba's caches beside the sources of ``folder`` where any of these is newer.

    A cache knows the file that a function is in, and not those of the functions that were compiled into it:
    after an update of a working copy it would go on computing what was.
    """
    newest = max(p.stat().st_mtime for p in folder.glob("*.py"))
    for kernel in folder.glob("__pycache__/*.nb[ci]"):
        with contextlib.suppress(OSError):  # another process was first, or may and we may not
            if kernel.stat().st_mtime < newest:
                kernel.unlink()


def per_graph(make: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """``make``, called once for each graph. What it returns must not hold the graph."""
    found: WeakKeyDictionary[Graph, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def cached(graph: Graph) -> T:
        if graph not in found:
            found[graph] = make(graph)
        return found[graph]

    return cached
