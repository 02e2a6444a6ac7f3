"""The fast engine equals the reference, whatever the operation."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError
from numba.typed import List
from numpy.lib.stride_tricks import sliding_window_view

from random_graphs import (
    GRANULE,
    KINDS,
    WIDE,
    branching,
    convolution,
    epilogue,
    graph_of,
    inputs_of,
    integers,
    operation,
    pointwise,
)
from rdquant import compiled, engines
from rdquant.engines import cache, chain, dense, normalization, products, run, tiles
from rdquant.engines.fast import plan
from rdquant.engines.layer import Layer
from rdquant.engines.partial import run_part
from rdquant.errors import BadModel, UsageError
from rdquant.graph import Graph, Node, Port
from rdquant.graph.arithmetic import Multiplier
from rdquant.graph.heads import heads
from rdquant.graph.operations import Concatenate, Convolution, Requantize, Slice, Sum
from rdquant.priors import FourPart, Part


def _agree(graph: Graph, inputs: tuple[np.ndarray, ...], valid: bool = False) -> np.ndarray:
    reference, *others = (run(graph, inputs, engine, valid) for engine in ("reference", "fast", "torch:cpu"))
    for found in others:
        assert np.array_equal(reference, found)
    return reference


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([2, 3, 16, 65]),
    span=st.sampled_from(WIDE),
    size=st.sampled_from([(1, 1), (2, 3), (7, 5), (1, 40)]),
)
@settings(max_examples=12)
def test_every_operation(
    kind: str, seed: int, channels: int, span: tuple[int, int], size: tuple[int, int]
) -> None:
    g = torch.Generator().manual_seed(seed)
    graph = graph_of(*operation(kind, g, channels, *span))
    out = graph.check()
    granule = GRANULE.get(kind, 2 if kind == "convolution" else 1)
    found = _agree(graph, inputs_of(graph, g, size[0] * granule, size[1] * granule, 2))
    assert out.lo <= float(found.min()) and float(found.max()) <= out.hi
    assert found.shape[1] == out.channels == graph.channels()["op"]


@pytest.mark.parametrize("isa", products.available())
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["requantize", "leaky", "absolute", "compensate", "gdn", "igdn"]),
    transposed=st.booleans(),
    span=st.sampled_from(WIDE),
    cin=st.sampled_from([1, 3, 16, 65]),
    cout=st.sampled_from([4, 36, 64, 80]),
    kernel=st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 2), (2, 2)]),
    groups=st.sampled_from([1, 4]),
    bits=st.sampled_from([4, 8, 11]),
    size=st.sampled_from([(1, 1), (3, 4), (2, 61), (17, 5)]),
    side=st.sampled_from([1, 3]),
    last=st.sampled_from([3, 36, 64]),
    behind=st.sampled_from(["leaky", "compensate", "gdn"]),
)
@settings(max_examples=50)
def test_a_convolution_and_what_follows(
    isa: str, seed: int, kind: str, transposed: bool, span: tuple[int, int], cin: int, cout: int,
    kernel: tuple[int, int], groups: int, bits: int, size: tuple[int, int], side: int, last: int, behind: str,
) -> None:  # fmt: skip
    """A second one of a side of 1 goes on with the tiles of the first."""
    g = torch.Generator().manual_seed(seed)
    cin, (k, stride) = cin * groups, kernel
    conv = convolution(g, cin, cout, k, stride, transposed, groups, bits)
    reach = max(-span[0], span[1]) * 2 ** (bits - 2) * (cin / groups * k * k) ** 0.5
    nodes = (
        Node("c", conv, ("x",)),
        Node("c.out", epilogue(g, kind, cout, reach), ("c",)),
        Node("d", convolution(g, cout, last, side), ("c.out",)),
        Node("d.out", epilogue(g, behind, last, 90_000), ("d",)),
    )
    down = 1 if transposed else stride
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDQUANT_ISA", isa)
        for output in ("c.out", "d.out"):
            graph = Graph({"x": Port(cin, *span)}, nodes, output)
            graph.check()
            _agree(graph, inputs_of(graph, g, size[0] * down, size[1] * down, 2))


def test_an_input_is_neither_changed_nor_given_back() -> None:
    port = Port(16, -(2**15), 2**15 - 1)
    x = np.arange(4 * 4 * 16, dtype=np.int16).reshape(1, 4, 4, 16).transpose(0, 3, 1, 2)
    for nodes in ((), (Node("all", Slice(0, 16), ("x",)),)):
        found = plan(Graph({"x": port}, nodes, nodes[0].name if nodes else "x")).run(x)
        assert np.array_equal(found, x) and not np.shares_memory(found, x)
    x.flags.writeable = False
    kept = x.copy()
    _agree(Graph({"x": port}, (Node("half", Slice(0, 8), ("x",)),), "half"), (x,))
    assert np.array_equal(x, kept)


def test_a_graph_with_branches() -> None:
    g = torch.Generator().manual_seed(5)
    graph = branching(g)
    graph.check()
    found = _agree(graph, inputs_of(graph, g, 12, 10, 2))
    assert found.shape == (2, 3, 12, 10) and float(found.std()) > 5


@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", products.available())
def test_positions_go_through_chains_part_by_part(
    channels: int, threads: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setenv("RDQUANT_ISA", isa)
    monkeypatch.setattr(chain, "_FEW", 4)
    g = torch.Generator().manual_seed(channels)
    graph = pointwise(g, channels)
    graph.check()
    assert [len(s.steps) for s in plan(graph)._steps if isinstance(s, chain.Chain)] == [4, 4]
    for size in ((1, 1), (3, 2), (12, 21)):
        found = _agree(graph, inputs_of(graph, g, *size, 2))
    assert float(found.std()) > 5


SHIFTS = st.integers(0, 46)
WORDS = st.integers(-(2**15), 2**15 - 1) | st.sampled_from([-(2**15), -1, 0, 1, 2**15 - 1])


@given(
    q=st.lists(st.tuples(WORDS, WORDS), min_size=4, max_size=4),
    m=st.lists(st.integers(2**15, 2**16 - 1) | st.just(0), min_size=4, max_size=4),
    signs=st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4),
    shifts=st.lists(SHIFTS, min_size=4, max_size=4),
    span=st.sampled_from([(-128, 127), (0, 255), (-(2**15), 2**15 - 1)]),
)
@settings(max_examples=200, deadline=None)
def test_words_in_a_chain_are_rounded_as_ever(
    q: list[tuple[int, int]], m: list[int], signs: list[int], shifts: list[int], span: tuple[int, int]
) -> None:
    """A sum and a narrowing, with any factors that the contract allows, at the ends of what 16 bits hold."""
    factors = np.array(m, np.int32)
    both = np.stack([factors, factors[::-1] * np.array(signs, np.int32)])
    shift = np.array(shifts, np.int32)
    nodes = (
        Node("sum", Sum((1, 1), both, shift, -(2**15), 2**15 - 1), ("a", "b")),
        Node("narrow", Requantize(Multiplier(factors, shift), None, *span), ("sum",)),
    )
    ports = {name: Port(4, -(2**15), 2**15 - 1) for name in "ab"}
    a, b = (np.array([pair[i] for pair in q]).reshape(1, 4, 1, 1) for i in range(2))
    _agree(Graph(ports, nodes, "narrow"), (a, b))


@given(
    shift=st.integers(0, 46), top=st.sampled_from([1, 255, 2**15 - 1]), seed=st.integers(0, 99),
    leaky=st.booleans(), channels=st.sampled_from([1, 16, 70]), weight=st.sampled_from([1, 127, 2**11]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_sums_are_rounded_as_ever(
    shift: int, top: int, seed: int, leaky: bool, channels: int, weight: int
) -> None:
    """Accumulators at the ends of their range, by factors of any size, alone and in a chain."""
    random = np.random.default_rng(seed)
    signs = random.choice([-1, 1], (channels, channels, 1, 1))
    bias = random.integers(-(2**20), 2**20, channels)
    conv = Convolution((signs * weight).astype(np.int16), bias, bits=16)
    factor, negative = (
        Multiplier(random.integers(2**15, 2**16, channels).astype(np.int32), np.full(channels, s, np.int32))
        for s in (shift, min(shift + 3, 46))
    )
    out = Requantize(factor, negative if leaky else None, -(2**15), 2**15 - 1)
    one = Requantize(Multiplier.from_float(np.full(channels, 2.0**-8)), None, -128, 127)
    nodes = (Node("conv", conv, ("x",)), Node("out", out, ("conv",)), Node("narrow", one, ("out",)))
    q = random.choice([-top, top], (2, channels, 1, 9))
    q[1] = signs[0] * top  # the most that the first channel can add up to
    for output in ("out", "narrow"):
        graph = Graph({"x": Port(channels, -top, top)}, nodes, output)
        graph.check()
        _agree(graph, (q,))


def test_sums_beyond_32_bits_go_in_pieces() -> None:
    g = torch.Generator().manual_seed(4)
    for k, stride, transposed in ((1, 1, False), (3, 2, False), (5, 2, True)):
        conv = convolution(g, 96, 20, k, stride, transposed, bits=16)
        conv = replace(conv, weight=np.sign(conv.weight) * np.int16(2**11) | np.int16(1))
        graph = graph_of(conv, [Port(96, -(2**15), 2**15 - 1)])
        graph.check()
        layer = plan(graph)._steps[0].layer  # type: ignore[union-attr]
        assert layer is not None and not layer.direct and layer.packed.pieces.shape[1] > 2
        for x in (np.full((1, 96, 4, 6), 2**15 - 1), *inputs_of(graph, g, 4, 6)):
            _agree(graph, (x,))


@pytest.mark.parametrize("isa", products.available())
@pytest.mark.parametrize("kind", ["requantize", "leaky", "gdn", "igdn", "compensate"])
def test_what_follows_pieces_of_sums(kind: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at the ends of 16 bits in a few channels, and a bias that alone goes beyond 32."""
    monkeypatch.setenv("RDQUANT_ISA", isa)
    g = torch.Generator().manual_seed(3)
    port = Port(57, -(2**15), 2**15 - 1)
    weight = np.ones((20, 57, 1, 1), np.int16)
    weight[:, :6] = 2**15 - 1
    heavy = Convolution(weight, np.zeros(20, np.int64), bits=16)
    far = Convolution(np.full((20, 57, 3, 3), 127, np.int16), np.full(20, 2**30), padding=1, bits=8)
    for conv in (heavy, far):
        nodes = (Node("conv", conv, ("x",)), Node("out", epilogue(g, kind, 20, 2.0**31), ("conv",)))
        graph = Graph({"x": port}, nodes, "out")
        graph.check()
        for x in (np.full((1, 57, 4, 5), 2**15 - 1), *inputs_of(graph, g, 4, 5)):
            _agree(graph, (x,))


def test_transposed_sums_in_pieces_with_a_phase_of_no_taps() -> None:
    weight = np.ones((96, 2, 1, 1), np.int16)
    weight[::8] = 2**15 - 1
    conv = Convolution(weight, np.array([5, -7]), stride=2, transposed=True, bits=16)
    graph = graph_of(conv, [Port(96, -(2**15), 2**15 - 1)])
    graph.check()
    _agree(graph, (np.full((1, 96, 3, 2), 2**15 - 1),))


@pytest.mark.parametrize("channels", [100, 112, 176])
def test_compensation_of_channels_that_fill_no_whole_kernel(channels: int) -> None:
    g = torch.Generator().manual_seed(channels)
    nodes = (
        Node("conv", convolution(g, 8, channels, 1), ("x",)),
        Node("out", epilogue(g, "compensate", channels, 90 * 60 * 3), ("conv",)),
    )
    graph = Graph({"x": Port(8, -100, 155)}, nodes, "out")
    assert len(np.unique(_agree(graph, inputs_of(graph, g, 6, 7)))) > 9


def test_inputs_of_a_chain_have_one_size() -> None:
    g = torch.Generator().manual_seed(0)
    nodes = (
        Node(
            "sum",
            Sum((1, 1), np.full((2, 3), 2**15, np.int32), np.full(3, 16, np.int32), -128, 127),
            ("a", "b"),
        ),
        Node("narrow", epilogue(g, "requantize", 3, 60), ("sum",)),
    )
    graph = Graph({name: Port(3, -(2**15), 2**15 - 1) for name in "ab"}, nodes, "narrow")
    with pytest.raises(BadModel, match="different sizes"):
        run(graph, (np.zeros((1, 3, 64, 64), np.int16), np.zeros((1, 3, 1, 1), np.int16)), "fast")


def test_heads_are_of_what_can_be_taken_apart() -> None:
    g = torch.Generator().manual_seed(1)
    conv, port = Node("conv", convolution(g, 6, 8, 1), ("x",)), {"x": Port(6, -100, 155)}
    out = Node("out", epilogue(g, "requantize", 8, 90 * 60), ("conv",))
    twice = Node("twice", Concatenate(), ("out", "out"))
    both = Graph(port, (conv, out, twice), "twice")
    assert heads(both, [np.array([0, 1])]) is None  # of one reading the second needs nothing
    assert heads(both, [np.array([0, 8])]) is not None
    up = convolution(g, 6, 8, 1, 1, True)
    assert heads(Graph(port, (Node("conv", up, ("x",)), out), "out"), [np.array([0])]) is None
    # a group whose weights are all zero gives fewer bytes than others
    still = replace(conv.op, weight=conv.op.weight.copy(), bias=conv.op.bias.copy())
    still.weight[:2], still.bias[:2] = 0, 0
    bare = Graph(port, (Node("conv", still, ("x",)), Node("all", Slice(0, 8), ("conv",))), "all")
    x = inputs_of(bare, g, 4, 6)
    for part in (*FourPart().parts(8, 4, 6), Part(slice(0, 8), np.array([[0, 5], [1, 7]]))):
        found = run_part(bare, x, part, lambda own, given: run(own, given, "fast"))
        assert np.array_equal(found, part.pick(run(bare, x, "fast")))


@pytest.mark.parametrize("channels", [4, 40])
def test_a_part_is_what_it_takes_of_the_whole(channels: int) -> None:
    g = torch.Generator().manual_seed(channels)
    c, wide = channels, Port(6, -100, 155)
    nodes = (
        Node("near", convolution(g, 6, 9, 3), ("x",)),
        Node("near.out", epilogue(g, "leaky", 9, 90 * 60), ("near",)),
        Node("head", convolution(g, 9, 2 * c, 1), ("near.out",)),
        Node("head.out", epilogue(g, "requantize", 2 * c, 90 * 60), ("head",)),
        Node("second", Slice(c, 2 * c), ("head.out",)),
        Node("first", Slice(0, c), ("head.out",)),
        Node("narrow", epilogue(g, "requantize", c, 60), ("second",)),
        Node("both", Concatenate(), ("first", "narrow")),
    )
    graph = Graph({"x": wide}, nodes, "both")
    graph.check()
    x = inputs_of(graph, g, 6, 8, 2)
    whole = run(graph, x, "fast")
    for part in FourPart().parts(c, 6, 8):
        found = run_part(graph, x, part, lambda own, given: run(own, given, "fast"))
        assert np.array_equal(found, part.pick(whole))
    cut = heads(graph, [np.array([0, c]), np.array([1, c + 1])])
    assert cut is not None and cut.trunk.output == "near.out"
    mixed = replace(
        graph, nodes=(*nodes, Node("last", convolution(g, 2 * c, 2 * c, 3), ("both",))), output="last"
    )
    assert heads(mixed, [np.array([0, c])]) is None  # its last convolution takes neighbours
    assert heads(graph, [np.array([0, c + 1])]) is not None  # of either half another


def test_accumulators_can_be_the_output() -> None:
    g = torch.Generator().manual_seed(6)
    for bits, kind in ((4, np.int32), (11, np.int32)):
        graph = graph_of(convolution(g, 40, 7, 5, bits=bits), [Port(40, -(2**8), 2**8)])
        inputs = inputs_of(graph, g, 4, 5)
        _agree(graph, inputs)
        assert run(graph, inputs, "fast").dtype == kind


def test_inputs_beyond_their_range_are_clipped() -> None:
    g = torch.Generator().manual_seed(7)
    graph = graph_of(*operation("table", g, 3, -100, 155))
    wild = integers(g, -(10**6), 10**6, 1, 3, 4, 5)
    assert np.array_equal(_agree(graph, (wild,)), graph.exact(wild.clip(-100, 155)))


def test_a_plan_is_made_once_and_goes_with_its_graph() -> None:
    graph = branching(torch.Generator().manual_seed(0))
    assert plan(graph) is plan(graph)
    assert plan(graph.replaced({})) is not plan(graph)


def test_an_unproven_graph_does_not_run() -> None:
    graph = graph_of(convolution(torch.Generator().manual_seed(0), 3, 4, 5), [Port(3, 0, 2**17)])
    with pytest.raises(BadModel):
        run(graph, (np.zeros((1, 3, 4, 4)),), "fast")


# without padding


def _masked(g: torch.Generator, c: int, k: int) -> Convolution:
    conv = convolution(g, c, 2 * c, k)
    conv.weight.reshape(2 * c, c, -1)[:, :, k * k // 2 :] = 0
    return conv


@pytest.mark.parametrize("span", WIDE)
@pytest.mark.parametrize("channels", [3, 70])
def test_patches_give_single_positions(span: tuple[int, int], channels: int) -> None:
    g = torch.Generator().manual_seed(8)
    conv = _masked(g, channels, 5)
    reach = max(-span[0], span[1]) * 60 * (12 * channels) ** 0.5
    nodes = (Node("c", conv, ("x",)), Node("c.out", epilogue(g, "leaky", 2 * channels, reach), ("c",)))
    graph = Graph({"x": Port(channels, *span)}, nodes, "c.out")
    (x,) = inputs_of(graph, g, 6, 7)
    around = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))[0]
    patches = sliding_window_view(around, (5, 5), (1, 2)).transpose(1, 2, 0, 3, 4).reshape(-1, channels, 5, 5)
    whole = _agree(graph, (x,))
    found = _agree(graph, (patches,), valid=True)[:, :, 0, 0]
    assert np.array_equal(found.T.reshape(whole[0].shape), whole[0])


def test_without_padding_is_the_centre_of_what_is_padded() -> None:
    g = torch.Generator().manual_seed(9)
    nodes = (
        Node("a", convolution(g, 4, 8, 3), ("x",)),
        Node("a.out", epilogue(g, "gdn", 8, 30_000), ("a",)),
        Node("b", convolution(g, 8, 8, 5, groups=8), ("a.out",)),
        Node("b.out", epilogue(g, "requantize", 8, 30_000), ("b",)),
    )
    graph = Graph({"x": Port(4, -100, 155)}, nodes, "b.out")
    x = inputs_of(graph, g, 11, 12)
    assert np.array_equal(_agree(graph, x, valid=True), _agree(graph, x)[:, :, 3:-3, 3:-3])


@pytest.mark.parametrize("isa", products.available())
@pytest.mark.parametrize("channels", [2, 16, 32, 40, 48, 64, 128])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_one_kernel_for_each_channel(
    isa: str, channels: int, side: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At borders above all, where taps see zeros."""
    monkeypatch.setenv("RDQUANT_ISA", isa)
    g = torch.Generator().manual_seed(channels)
    nodes = (
        Node("a", convolution(g, channels, channels, side, stride, groups=channels), ("x",)),
        Node("a.out", epilogue(g, "requantize", channels, 30_000), ("a",)),
    )
    graph = Graph({"x": Port(channels, -2000, 2000)}, nodes, "a.out")
    for size in ((2, 2), (6, 4), (10, 120)):
        _agree(graph, inputs_of(graph, g, *size))


# what this machine can do


def test_self_test_passes_here_and_sees_a_wrong_sum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it says is kept, if it is good."""
    kept = tmp_path / "cache" / "verdict"
    monkeypatch.setattr(cache, "verdict", lambda *_: kept)
    monkeypatch.delenv("RDQUANT_ENGINE", raising=False)
    exact = Layer.__call__

    def wrong(layer: Layer, *given: object) -> np.ndarray:
        out = exact(layer, *given)  # type: ignore[arg-type]
        out[0, -1, -1, -1] ^= 1
        return out

    def engine() -> str:
        engines.self_test.cache_clear()
        return engines.default_engine()

    try:
        with monkeypatch.context() as broken:
            broken.setattr(Layer, "__call__", wrong)
            with pytest.warns(RuntimeWarning, match="float64 reference"):
                assert engine() == "reference" and not kept.exists()
        assert engine() == "fast" and kept.exists()
        monkeypatch.setattr(Layer, "__call__", wrong)
        assert engine() == "fast"  # it was asked before
    finally:
        engines.self_test.cache_clear()


def test_compiling_is_announced_and_reading_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_kernel.py").write_text("def kernel(a):\n    return a + 1\n")
    monkeypatch.syspath_prepend(tmp_path)  # numba imports what it reads from its cache
    module = importlib.import_module("a_kernel")
    caplog.set_level(logging.INFO, "rdquant")
    for announced in (1, 0):
        compiled._notice.cache_clear()
        caplog.clear()
        kernel = compiled.njit(cache=True)(importlib.reload(module).kernel)
        assert kernel(1) == 2 and kernel(2.5) == 3.5
        assert len(caplog.records) == announced


def test_another_machine_version_or_source_is_tested_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("engines", "graph"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("one")
    found = [cache.verdict(dense.convolve, tmp_path / "engines")]
    assert found[0] == cache.verdict(dense.convolve, tmp_path / "engines")
    (tmp_path / "graph" / "a.py").write_text("two")
    found.append(cache.verdict(dense.convolve, tmp_path / "engines"))
    monkeypatch.setattr("numba.__version__", "1000")
    found.append(cache.verdict(dense.convolve, tmp_path / "engines"))
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "abacus")
    found.append(cache.verdict(dense.convolve, tmp_path / "engines"))
    monkeypatch.setenv("RDQUANT_ISA", "portable")
    found.append(cache.verdict(dense.convolve, tmp_path / "engines"))
    assert None not in found and len(set(found)) == len(found)
    assert cache.verdict(lambda: None, tmp_path) is None


def test_the_engine_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDQUANT_ENGINE", "reference")
    assert engines.default_engine() == "reference"
    monkeypatch.setenv("RDQUANT_ENGINE", "quick")
    with pytest.raises(UsageError, match="quick"):
        engines.default_engine()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_bound_is_reached_by_the_worst_input(transposed: bool, groups: int) -> None:
    conv = convolution(torch.Generator().manual_seed(5), 6, 9, 5, 2, transposed, groups)
    conv = replace(conv, weight=np.abs(conv.weight), bias=0 * conv.bias)
    acc = conv.exact(np.full((1, 6, 12, 12), 255.0))
    assert int(acc.max()) == conv.accumulator_bound(Port(6, 0, 255))


@pytest.mark.parametrize("isa", ["avx", "sse", ""])
def test_unknown_instructions_are_refused(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDQUANT_ISA", isa)
    with pytest.raises(UsageError, match="RDQUANT_ISA"):
        products.instructions()


@njit(nogil=True)
def _prepared_product(kernel, vectors, a, stride, taps, count, words, *rest):  # type: ignore[no-untyped-def]
    products.prepare(kernel, words)
    products.product(kernel, vectors, a, stride, taps, count, words, *rest)
    products.release(kernel)


@pytest.mark.parametrize("kernel", sorted(products.POSITIONS))
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("words", [7, 24, 34])
def test_products_are_those_of_integers(kernel: int, vectors: int, words: int) -> None:
    """At the ends of all ranges, sums cut to 32 bits."""
    needed = {
        products.BYTES: "avx512vnni", products.WORDS: "avx512vnni", products.PAIRS: "avx2",
        products.BYTE_TILES: "amx", products.WORD_TILES: "amx", products.UNSIGNED_TILES: "amx",
    }  # fmt: skip
    if needed.get(kernel, "portable") not in products.available():
        pytest.skip("no such instructions here")
    vectors = min(vectors, max(products.POSITIONS[kernel]))
    g = np.random.default_rng(vectors)
    bytewise = kernel in (products.BYTES, products.BYTE_TILES)
    each, a_kind, w_kind = (4, np.uint8, np.int8) if bytewise else (2, np.int16, np.int16)
    w_kind = {products.WORD_TILES: np.int8, products.UNSIGNED_TILES: np.uint8}.get(kernel, w_kind)
    rows, taps, outputs = products.POSITIONS[kernel][vectors], np.array([0, 8, 40]), 16 * vectors
    ends = np.iinfo(a_kind).min, np.iinfo(a_kind).max, 1
    a = g.choice(ends, (rows + 9, words * each)).astype(a_kind)
    w = g.choice((np.iinfo(w_kind).min, np.iinfo(w_kind).max, 1), (3, words, outputs, each)).astype(w_kind)
    packed = tiles.halved(w.astype(np.int16)) if kernel > products.BYTE_TILES else w
    start = g.integers(-9, 9, outputs).astype(np.int32)
    c = np.zeros((rows, outputs), np.int32)
    _prepared_product(
        kernel, vectors, a.ctypes.data, 4 * words, taps.ctypes.data, 3, words, packed.ctypes.data,
        start.ctypes.data, 0, c.ctypes.data, 4 * outputs,
    )  # fmt: skip
    flat, expected = a.reshape(-1).astype(np.int64), np.tile(start.astype(np.int64), (rows, 1))
    for i in range(rows):
        for tap, kernel_of_tap in zip(taps // a.itemsize, w.astype(np.int64), strict=True):
            seen = flat[i * words * each + tap :][: words * each].reshape(words, 1, each)
            expected[i] += (seen * kernel_of_tap).sum((0, 2))
    assert np.array_equal(c, expected.astype(np.int32))


def test_roots_of_float32_are_those_of_integers() -> None:
    """Next to squares, where rounding would show, and at the ends."""
    g = np.random.default_rng(0)
    roots = np.concatenate([np.arange(1, 3000), g.integers(1, 2**21, 20_000), [2**21 - 1]]).astype(np.int64)
    norms = np.concatenate([roots**2 // 1024 + d for d in (-1, 0, 1)] + [np.array([1, 2**32 - 1])])
    norms = norms[(norms > 0) & (norms < 2**32)]
    expected = [math.isqrt(int(n) * 1024) for n in norms]
    assert [int(normalization.root(n)) for n in norms.astype(np.uint32)] == expected


@pytest.mark.parametrize(("channels", "copies"), [(1, 1), (16, 1), (16, 16), (40, 1)])
@pytest.mark.parametrize("divides", [True, False])
def test_what_is_rounded_in_float32_is_what_integers_give(divides: bool, channels: int, copies: int) -> None:
    """At ties, at all distances from them, and beyond both ends. One channel, or 16 copies: each by itself,
    whichever way it goes.
    """
    g, count = np.random.default_rng(0), 32_000
    roots = np.where(g.random(count) < 0.3, 2 ** g.integers(5, 21, count), g.integers(32, 2**21, count))
    norms = np.minimum(roots**2 // 1024, 2**32 - 1).astype(np.uint32)
    roots = np.array([math.isqrt(int(n) * 1024) for n in norms], np.int64)
    shift = g.integers(0, 8, count) if divides else np.full(count, 34)
    x = g.integers(1, 2**15, count) * g.choice((-1, 1), count)
    m, ties = g.integers(2**15, 2**16, count), g.integers(0, 5000, count) + 0.5
    for i in np.flatnonzero(g.random(count) < 0.7):
        factor = roots[i] * 2.0 ** shift[i] if divides else 2.0 ** shift[i] / roots[i]
        m[i] = min(max(round(ties[i] * factor / abs(x[i])) + g.integers(-1, 2), 1), 2**16 - 1)
    lo, hi, expected = -4096, 4095, []
    for a, f, s, root in zip(x.tolist(), m.tolist(), shift.tolist(), roots.tolist(), strict=True):
        twice = (
            (2 * a * f + (root << s)) // (2 * root << s)
            if divides
            else (2 * a * f * root + (1 << s)) >> s + 1
        )
        expected.append(min(max(twice, lo), hi))
    power, factors, out = np.ldexp(1.0, shift), np.zeros((4, count)), np.zeros(count, np.int32)
    factors[1], factors[2] = m if divides else m / power, power
    single, x = (m / power).astype(np.float32), x.astype(np.int16)
    run = normalization.normalize if divides else normalization.denormalize
    x, norms, single, factors, out, expected = (
        np.repeat(t, copies, -1) for t in (x, norms, single, factors, out, expected)
    )
    rest = float(lo), float(hi), channels > 1
    for i in range(0, len(x), channels):
        to, own = slice(i, i + channels), np.ascontiguousarray(factors[:, i : i + channels])
        run(x[to], norms[to], channels, channels, 1, channels, own, single[to], *rest, out[to])
    assert np.array_equal(out, expected)
    inside = [v for v in expected.tolist() if lo < v < hi]
    assert len(inside) > len(x) / 4 and len(set(inside)) > 1000


def test_only_arrays_are_borrowed() -> None:
    @compiled.njit()
    def first(values):  # type: ignore[no-untyped-def]
        return compiled.borrowed((values, 1))[0][0]

    with pytest.raises(TypingError):
        first(List([1, 2]))


class _Pair(NamedTuple):
    a: np.ndarray
    n: int


def test_what_is_borrowed_is_the_same_arrays() -> None:
    @compiled.njit()
    def twice(pair, rows):  # type: ignore[no-untyped-def]
        pair, (rows, first) = compiled.borrowed((pair, (rows, rows[0])))
        for i in range(pair.n):
            rows[1, i] = pair.a[i] + first[i]

    a, rows = np.arange(3.0), np.arange(6.0).reshape(2, 3)
    before = sys.getrefcount(a), sys.getrefcount(rows)
    twice(_Pair(a, 3), rows)
    assert rows.tolist() == [[0, 1, 2], [0, 2, 4]] and a.tolist() == [0, 1, 2]
    assert (sys.getrefcount(a), sys.getrefcount(rows)) == before
