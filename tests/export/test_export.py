"""Exported networks in ONNX Runtime and OpenVINO against the exact integers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_codec
from random_graphs import KINDS, branching, convolution, epilogue, graph_of, inputs_of, operation
from rdquant.errors import UsageError
from rdquant.graph import Graph, Node, Port
from rdquant.latents.parts import quantized
from rdquant.load import coder_of
from rdquant.passes import QuantizeConfig, quantize
from rdquant.passes.config import PROFILES
from rdquant.pixels import to_batch

pytest.importorskip("onnx")

from rdquant.export.handlers import by_phases
from rdquant.export.model import export_codec, onnx_model
from rdquant.export.runtimes import PACKAGES, runner

ENGINES = sorted(PACKAGES)
#: operations that are written; the others are refused by name
WRITTEN = [k for k in KINDS if "attention" not in k]
#: one of each kind of layer: GDN, LeakyReLU and pixel shuffles, residual blocks and gates
VARIED = ("mbt2018-mean", "bmshj2018-factorized-relu", "cheng2020-attn", "elic2022-official")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return request.param


def _apart(graph: Graph, engine: str, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """How far the engine's integers are from the exact ones, of those that are no accumulators."""
    exact = graph.exact(*inputs)
    found = runner(graph, engine)(*inputs).astype(np.float64)
    assert found.shape == exact.shape
    return np.abs(found - exact) / np.maximum(1, np.abs(exact) * 2.0**-20)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("reach", [(-100, 155), (-(2**15), 2**15 - 1), (0, 255)])
def test_every_operation(kind: str, reach: tuple[int, int], engine: str) -> None:
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        graph = graph_of(*operation(kind, g, 6, *reach))
        if kind == "compensate":  # errors that are passed on change everything behind them
            op = dataclasses.replace(graph["op"].op, feedback=np.zeros((6, 6), np.int16))
            graph = graph.replaced({"op": op})
        apart = _apart(graph, engine, inputs_of(graph, g, 4, 8))
        assert apart.max() <= 1
        assert (apart >= 0.5).mean() < (0.6 if kind == "compensate" else 0.03), "rounded another way"


@pytest.mark.parametrize("kind", ["attention", "shifted attention"])
def test_what_cannot_be_written_is_named(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError, match="op: WindowAttention cannot be exported"):
        onnx_model(graph_of(*operation(kind, g, 4, -100, 100)), "onnx")


@pytest.mark.parametrize(("k", "stride", "groups"), [(5, 2, 1), (4, 2, 2), (3, 1, 1), (7, 3, 1), (2, 2, 4)])
@pytest.mark.parametrize("bits", [8, 10])
def test_transposed_convolutions(k: int, stride: int, groups: int, bits: int, engine: str) -> None:
    """Phase by phase for ONNX Runtime, as they are for OpenVINO; then a rectifier in 8 bits."""
    g = torch.Generator().manual_seed(k)
    op = dataclasses.replace(
        convolution(g, 4, 8, k, stride, True, groups, bits), padding=(k - stride + 1) // 2
    )
    nodes = (Node("c", op, ("x",)), Node("r", epilogue(g, "requantize", 8, 40_000), ("c",)))
    graph = Graph({"x": Port(4, -128, 127)}, nodes, "r")
    graph.check()
    apart = _apart(graph, engine, inputs_of(graph, g, 5, 6))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_phases_are_the_transposed_convolution() -> None:
    g = torch.Generator().manual_seed(1)
    for k, s in ((5, 2), (4, 2), (3, 2), (7, 3), (1, 1)):
        op = dataclasses.replace(convolution(g, 3, 2, k, s, True), padding=(k - s + 1) // 2)
        weight, (top, left, bottom, right) = by_phases(op.by_output().astype(np.float64), s, op.padding)
        x = torch.randint(-9, 9, (1, 3, 4, 5), generator=g).double()
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        found = torch.nn.functional.pixel_shuffle(
            torch.nn.functional.conv2d(padded, torch.from_numpy(weight)), s
        )
        assert torch.equal(found, op.convolve(x))


def test_branches(engine: str) -> None:
    """Accumulators with several readers, ranges with zero points, 8 bits and 16 joined."""
    g = torch.Generator().manual_seed(3)
    graph = branching(g)
    graph = graph.replaced({"back.out": epilogue(g, "requantize", 6, 40_000)})
    apart = _apart(graph, engine, inputs_of(graph, g, 8, 12))
    assert (apart > 1).mean() < 0.01


@pytest.mark.parametrize("architecture", VARIED)
def test_pixels_agree_and_symbols_are_the_same(architecture: str, photo: np.ndarray, engine: str) -> None:
    crop = photo[:128, 64:192]
    config = QuantizeConfig(**PROFILES["portable"])
    coder = coder_of(quantize(small_codec(architecture), [crop], config))
    data = coder.encode(crop)
    exact, found = coder.decode(data).astype(int), coder.decode(data, engine=engine)
    # in float32 a few more are rounded to the other side, and networks that learned nothing make much of it
    assert (np.abs(found - exact) <= 1).mean() >= 0.98
    y = coder.codec.analysis(to_batch(crop))
    near = runner(coder.codec.networks["analysis"], engine)(to_batch(crop))
    assert (np.abs(near - y) > 2.0**coder.codec.fraction_bits / 8).mean() < 0.01


def test_files_and_report(photo: np.ndarray, tmp_path: Path) -> None:
    import onnx

    crop = photo[:128, 64:192]
    codec = quantize(small_codec("mbt2018-mean"), [crop], QuantizeConfig(**PROFILES["portable"]))
    report = export_codec(codec, "onnx", tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    stored = onnx.load(tmp_path / "synthesis.onnx")
    onnx.checker.check_model(stored, full_check=True)
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in stored.graph.initializer}
    pairs = [n for n in stored.graph.node if n.op_type == "QuantizeLinear"]
    assert pairs and all(scales[n.input[1]] == 1 for n in pairs)  # our integers, in our ranges
    forms = {o["node"]: o["form"] for o in report["synthesis"]["operations"]}
    assert forms["g_s.1"] == "float" and forms["g_s.6"] == "int8"
    with pytest.raises(UsageError, match="no network nope"):
        export_codec(codec, "onnx", tmp_path, ("nope",))


def test_openvino_files_run(photo: np.ndarray, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    crop = photo[:128, 64:192]
    codec = quantize(small_codec("mbt2018-mean"), [crop], QuantizeConfig(**PROFILES["portable"]))
    report = export_codec(codec, "openvino", tmp_path)
    assert report["synthesis"]["int8 share of multiplications"] > 0.2
    y_hat = quantized(codec, to_batch(crop)).y_hat
    network = openvino.Core().compile_model(
        tmp_path / "synthesis.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = network([y_hat.astype(np.float32)])[0].astype(int)
    assert (np.abs(found - codec.synthesis(y_hat)) <= 1).mean() >= 0.999


def test_engines_that_are_not_there(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = photo[:64, 64:128]
    coder = coder_of(quantize(small_codec("mbt2018-mean"), [crop], QuantizeConfig(**PROFILES["portable"])))
    data = coder.encode(crop)
    with pytest.raises(UsageError, match="engine must be one of auto, exact"):
        coder.decode(data, engine="nope")  # type: ignore[arg-type]
    monkeypatch.setattr("rdquant.export.runtimes.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs openvino and onnx: pip install 'rdquant\[deploy\]'"):
        coder.decode(data, engine="openvino")
    assert np.array_equal(coder.decode(data, engine="auto"), coder.decode(data))
