"""Large pictures through a graph in strips of rows: the same integers in bounded memory.

Each strip takes as many rows more on either side as its outputs depend on. Integers do not depend on how
a tensor is cut, so strips join exactly; floats of other strip heights may differ in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..graph import Graph
from .cache import per_graph

#: positions of a graph's finest tensor, and values of its largest, that go through at a time
POSITIONS, VALUES = 2**20, 2**24
#: of what comes in strips
TYPES = tuple(np.dtype(t) for t in ("u1", "i2", "i4", "i8"))


@dataclass(frozen=True)
class Cut:
    """How a graph can be cut. ``granule``: strips are multiples of it; ``beyond``: more rows on either side,
    too; both in rows of the input. ``finest, out``: resolutions, see `Graph.resolutions`; ``most``: values of
    the largest tensor for each position of the input. ``dtype``: of `TYPES`, the narrowest that holds its
    output.
    """

    granule: int
    beyond: int
    finest: Fraction
    out: Fraction
    most: Fraction
    dtype: np.dtype[Any]


@per_graph
def cut(graph: Graph) -> Cut | None:
    """None: not at all, see `rdquant.graph.Operation.halo`."""
    halo = graph.halo()
    if halo is None:
        return None
    at = graph.resolutions()
    granule = math.lcm(*(r.denominator for r in at.values()))
    ports = graph.ports()
    end = ports[graph.output]
    dtype = next(t for t in TYPES if np.iinfo(t).min <= end.lo and end.hi <= np.iinfo(t).max)
    most = max(port.channels * at[edge] ** 2 for edge, port in ports.items())
    beyond = math.ceil(halo / granule) * granule
    return Cut(granule, beyond, max(at.values()), at[graph.output], most, dtype)


def in_strips(graph: Graph, inputs: tuple[np.ndarray, ...], run: Callable[..., np.ndarray]) -> np.ndarray:
    """``run(*inputs)``, which evaluates ``graph``, strip by strip where inputs are large.

    ``inputs: (B, C, H, W)`` each, of one size, H a multiple of the graph's downsampling. What comes in strips
    is stored in the narrowest type that holds the graph's output.
    """
    b, _, height, width = inputs[0].shape
    how = cut(graph)
    if how is None or any(t.shape[2:] != (height, width) for t in inputs):
        return run(*inputs)
    row, values = math.ceil(b * width * how.finest**2), math.ceil(b * width * how.most)
    rows = max(1, min(POSITIONS // row, VALUES // values) // how.granule) * how.granule
    if height <= rows + 2 * how.beyond:
        return run(*inputs)
    whole: np.ndarray | None = None
    for start in range(0, height, rows):
        end, top = min(height, start + rows), max(0, start - how.beyond)
        out = run(*(t[:, :, top : min(height, end + how.beyond)] for t in inputs))
        if whole is None:  # channels last in memory, as engines have it
            whole = np.empty((b, int(height * how.out), out.shape[3], out.shape[1]), how.dtype)
        first, last = int((start - top) * how.out), int((end - top) * how.out)
        whole[:, int(start * how.out) : int(end * how.out)] = out[:, :, first:last].transpose(0, 2, 3, 1)
    assert whole is not None
    return whole.transpose(0, 3, 1, 2)
