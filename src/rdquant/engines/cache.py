"""What an engine made of a graph, kept as long as the graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from ..graph import Graph

T = TypeVar("T")


def per_graph(make: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """``make``, called once for each graph. What it returns must not hold the graph."""
    found: WeakKeyDictionary[Graph, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def cached(graph: Graph) -> T:
        if graph not in found:
            found[graph] = make(graph)
        return found[graph]

    return cached
