from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from random_graphs import branching, convolution, epilogue, inputs_of, multiplier
from rdquant.engines.approximate import Approximate, _Layer
from rdquant.graph import Graph, Node, Port, Rounding
from rdquant.graph.operations import Requantize


def _mixed(g: torch.Generator) -> Graph:
    """What a quantized synthesis is: shift, mixing, transposed convolution, inverse GDN, mixing, pixels."""
    first = convolution(g, 6, 6, 1)
    mixing = convolution(g, 8, 8, 1)
    first.bias[:] = 0
    mixing.bias[:] = 0
    nodes = (
        Node("shift", Requantize(multiplier(g, 6, 1, 3.9), None, -(2**15), 2**15 - 1), ("y_hat",)),
        Node("m", first, ("shift",)),
        Node("m.out", Requantize(multiplier(g, 6, 0.001, 0.01), None, -(2**15), 2**15 - 1), ("m",)),
        Node("a", convolution(g, 6, 8, 5, 2, True), ("m.out",)),
        Node("a.out", epilogue(g, "igdn", 8, 100_000), ("a",)),
        Node("b.m", mixing, ("a.out",)),
        Node("b.m.out", epilogue(g, "compensate", 8, 40_000), ("b.m",)),
        Node("b", convolution(g, 8, 8, 3), ("b.m.out",)),
        Node("b.out", epilogue(g, "leaky", 8, 60_000), ("b",)),
        Node("c", convolution(g, 8, 3, 4, 2, True), ("b.out",)),
        Node("c.out", replace(epilogue(g, "requantize", 3, 60_000), lo=0, hi=255), ("c",)),
    )
    return Graph({"y_hat": Port(6, -(2**15), 2**15 - 1)}, nodes, "c.out")


def _latents(g: torch.Generator) -> torch.Tensor:
    return torch.randint(-2000, 2001, (2, 6, 6, 5), generator=g)


@pytest.mark.parametrize("seed", range(3))
def test_is_the_graph_with_nothing_rounded(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    graph, y_hat = _mixed(g), _latents(g)
    approximate = Approximate(graph)
    # matrices and their factors are gone
    assert [n.name for n in approximate.graph.nodes] == ["a.out", "b.out", "c.out"]
    assert all(isinstance(n.op, _Layer) for n in approximate.graph.nodes)
    expected = graph.relaxed(y_hat.double(), rounding=Rounding.CLIPPED)
    found = approximate.relaxed(y_hat.float())
    assert torch.allclose(found.double(), expected, atol=0.02)
    rounded = approximate.run(y_hat.numpy())
    assert np.array_equal(rounded, torch.floor(found.detach() + 0.5).clamp(0, 255).numpy())


def test_gradients_pass() -> None:
    g = torch.Generator().manual_seed(4)
    graph, y_hat = _mixed(g), _latents(g).float().requires_grad_()
    (found,) = torch.autograd.grad(Approximate(graph).relaxed(y_hat).square().mean(), y_hat)
    again = y_hat.detach().double().requires_grad_()
    output = graph.relaxed(again, rounding=Rounding.CLIPPED)
    (expected,) = torch.autograd.grad(output.square().mean(), again)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


def test_other_operations_are_relaxed() -> None:
    g = torch.Generator().manual_seed(5)
    graph = branching(g)
    inputs = [torch.from_numpy(t) for t in inputs_of(graph, g, 8, 12)]
    found = Approximate(graph).relaxed(*(t.float() for t in inputs))
    expected = graph.relaxed(*(t.double() for t in inputs), rounding=Rounding.CLIPPED)
    assert float((found - expected).abs().quantile(0.99)) < 0.05


@pytest.mark.parametrize(
    ("node", "op"),
    [
        ("shift", {"lo": 0}),  # a rectifier
        ("m", {"bias": np.ones(6, np.int64)}),
        ("m.out", {"negative": multiplier(torch.Generator().manual_seed(0), 6, 0.01, 0.1)}),
    ],
)
def test_what_is_not_linear_stays(node: str, op: dict) -> None:
    g = torch.Generator().manual_seed(6)
    graph, y_hat = _mixed(g), _latents(g)
    graph = graph.replaced({node: replace(graph[node].op, **op)})
    approximate = Approximate(graph)
    assert len(approximate.graph.nodes) == 4
    expected = graph.relaxed(y_hat.double(), rounding=Rounding.CLIPPED)
    assert torch.allclose(approximate.relaxed(y_hat.float()).double(), expected, atol=0.02)
