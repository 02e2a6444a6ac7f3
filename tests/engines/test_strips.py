from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from random_graphs import GRANULE, KINDS, branching, convolution, epilogue, graph_of, inputs_of, operation
from rdquant.engines import run, strips
from rdquant.graph import Graph, Node, Port
from rdquant.graph.operations import Shuffle, Unshuffle


def _in_strips(
    graph: Graph, inputs: tuple[np.ndarray, ...], positions: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, int]:
    calls = 0

    def counted(*parts: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return run(graph, parts, "fast")

    monkeypatch.setattr(strips, "POSITIONS", positions)
    return strips.in_strips(graph, inputs, counted), calls


@pytest.mark.parametrize("positions", [1, 250])
def test_strips_of_branches_join_to_the_whole(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    graph = branching(g)
    inputs = inputs_of(graph, g, 64, 8)
    whole = run(graph, inputs, "fast")
    found, calls = _in_strips(graph, inputs, positions, monkeypatch)
    assert np.array_equal(found, whole) and calls > 2
    for engine in ("reference", "fast"):
        assert np.array_equal(run(graph, inputs, engine), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_strips_of_every_operation(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(seed)
    graph = graph_of(*operation(kind, g, 3, -100, 155))
    inputs = inputs_of(graph, g, 32, 8)
    found, calls = _in_strips(graph, inputs, 1, monkeypatch)
    assert np.array_equal(found, run(graph, inputs, "fast"))
    assert calls == 1 if "attention" in kind else calls > 1


def _chain(*ops: tuple[str, object]) -> Graph:
    names = ["x", *(name for name, _ in ops)]
    nodes = tuple(Node(n, op, (e,)) for (n, op), e in zip(ops, names, strict=False))  # type: ignore[arg-type]
    return Graph({"x": Port(4, -100, 155)}, nodes, names[-1])


def test_a_shorter_halo_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(2)
    graph = _chain(
        ("a", convolution(g, 4, 4, 5, 2, True)), ("a.out", epilogue(g, "requantize", 4, 30_000)),
        ("b", convolution(g, 4, 4, 5, 2, True)), ("b.out", epilogue(g, "requantize", 4, 30_000)),
    )  # fmt: skip
    inputs = inputs_of(graph, g, 20, 3)
    whole = run(graph, inputs, "fast")
    how = strips.cut(graph)
    assert how is not None and (how.granule, how.beyond, how.finest, how.out) == (1, 2, 4, 4)
    assert np.array_equal(_in_strips(graph, inputs, 1, monkeypatch)[0], whole)
    monkeypatch.setattr(strips, "cut", lambda graph: replace(how, beyond=1))
    assert not np.array_equal(_in_strips(graph, inputs, 1, monkeypatch)[0], whole)


def test_a_halo_counts_whole_positions_of_coarse_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the finest tensor depends on all of the position that it was shuffled from."""
    g = torch.Generator().manual_seed(3)
    graph = _chain(
        ("a", convolution(g, 4, 4, 3)), ("a.out", epilogue(g, "requantize", 4, 9_000)),
        ("down", Unshuffle(2)),
        ("mix", convolution(g, 16, 16, 1)), ("mix.out", epilogue(g, "requantize", 16, 30_000)),
        ("up", Shuffle(4)), ("b", convolution(g, 1, 4, 3)), ("b.out", epilogue(g, "requantize", 4, 30_000)),
    )  # fmt: skip
    inputs = inputs_of(graph, g, 24, 4)
    assert graph.halo() == Fraction(3)
    whole = run(graph, inputs, "fast")
    assert np.array_equal(_in_strips(graph, inputs, 1, monkeypatch)[0], whole)


def test_inputs_of_two_sizes_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(4)
    graph = branching(g)
    a, b = inputs_of(graph, g, 8, 8)
    monkeypatch.setattr(strips, "POSITIONS", 1)
    seen: list[tuple[int, ...]] = []
    strips.in_strips(graph, (a, b[:, :, :6]), lambda *parts: seen.append(parts[0].shape[2:]) or parts[0])
    assert seen == [(8, 8)]


def test_granules_are_known() -> None:
    assert set(GRANULE) <= set(KINDS)
