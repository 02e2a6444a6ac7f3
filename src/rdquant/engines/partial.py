"""What a part of a latent takes of a graph's output, without the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Graph
from ..graph.heads import Heads, heads
from ..threads import allowed, share
from .cache import per_graph

if TYPE_CHECKING:
    from ..priors import Part


@per_graph
def _by_groups(graph: Graph) -> dict[tuple[int, int], Heads | None]:
    """By the groups of a part, and the channels of each."""
    return {}


def run_part(
    graph: Graph, inputs: tuple[np.ndarray, ...], part: Part, run: Callable[..., np.ndarray]
) -> np.ndarray:
    """``part.pick(run(graph, inputs))``. Of channel groups that have positions of their own the last
    convolution computes these alone.
    """
    groups = 1 if part.positions is None else len(part.positions)
    count = part.channels.stop - part.channels.start
    if groups == 1 or count % groups:
        return part.pick(run(graph, inputs))
    found, each = _by_groups(graph), count // groups
    if (groups, each) not in found:
        whole = np.arange(graph.channels()[graph.output]).reshape(-1, groups, each)
        found[groups, each] = heads(graph, [whole[:, g].reshape(-1) for g in range(groups)])
    cut = found[groups, each]
    if cut is None:
        return part.pick(run(graph, inputs))
    trunk = run(cut.trunk, inputs)
    assert part.positions is not None
    b, _, h, w = trunk.shape
    places = [place for _, place in part.groups((b, count, h, w))]
    outs: list[np.ndarray] = [trunk] * groups

    def through(first: int, last: int) -> None:
        for g in range(first, last):
            here = trunk[..., *places[g]]
            here = here.reshape(*here.shape[:2], 1, -1) if here.ndim < 4 else here
            outs[g] = run(cut.parts[g], (here,))

    if groups < allowed():  # more threads than that share each one's positions
        through(0, groups)
    else:
        share(groups, through)
    copies = outs[0].shape[1] // each
    kind = np.result_type(*outs)  # as few bytes as hold what weights can give
    taken = np.empty((b, copies, groups, each, part.positions.shape[1]), kind)
    for g, out in enumerate(outs):
        taken[:, :, g] = out.reshape(b, copies, each, -1)
    return taken.reshape(b, copies * count, 1, -1)
