"""What an engine made of a graph, kept as long as the graph; and numba's caches of what it is made with."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import llvmlite.binding
import numba
import numpy as np

from ..graph import Graph

T = TypeVar("T")


def _sources(folder: Path) -> list[Path]:
    """Of what may be compiled into kernels of ``folder``."""
    package = folder.parent
    shared = *(package / "graph").rglob("*.py"), *package.glob("compiled.py")
    return sorted((*folder.glob("*.py"), *shared))


def drop_stale_kernels(folder: Path) -> None:
    """Remove numba's caches beside the sources of ``folder`` where any of these or that they share is newer.

    A cache knows the file that a function is in, and not those of the functions that were compiled into it:
    after an update of a working copy it would go on computing what was.
    """
    newest = max(p.stat().st_mtime for p in _sources(folder))
    for kernel in folder.glob("__pycache__/*.nb[ci]"):
        with contextlib.suppress(OSError):  # another process was first, or may and we may not
            if kernel.stat().st_mtime < newest:
                kernel.unlink()


def verdict(kernel: Any, folder: Path) -> Path | None:
    """A file that is there if what the sources of ``folder`` compile to has passed its test on this machine,
    with these versions and settings: beside the compiled ``kernel``. None where nothing is compiled.
    """
    from .products import instructions  # kernels, behind `drop_stale_kernels`

    if not hasattr(kernel, "stats"):
        return None
    host = llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()
    chosen = instructions(), sorted(i for i in os.environ.items() if i[0].startswith("NUMBA_CPU"))
    versions = numba.__version__, llvmlite.__version__, np.__version__
    digest = hashlib.sha256(repr((host, chosen, versions)).encode())
    for source in _sources(folder):
        digest.update(source.read_bytes())
    return Path(kernel.stats.cache_path) / f"self-test-{digest.hexdigest()[:16]}"


def per_graph(make: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """``make``, called once for each graph. What it returns must not hold the graph."""
    found: WeakKeyDictionary[Graph, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def cached(graph: Graph) -> T:
        if graph not in found:
            found[graph] = make(graph)
        return found[graph]

    return cached
