"""Streams and centring: the same function in float, less lost in integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conftest import small_codec
from rdquant.codec import Codec
from rdquant.errors import BadModel
from rdquant.graph.capture import capture
from rdquant.graph.operations import Convolution
from rdquant.passes import QuantizeConfig, observe, prepare, quantize, to_integer
from rdquant.passes.calibration import Calibration, extremes
from rdquant.passes.centring import centrable, centred
from rdquant.passes.flow import through
from rdquant.passes.streams import insert_streams, streams
from rdquant.pixels import to_batch

pytestmark = pytest.mark.filterwarnings("ignore::rdquant.passes.prepare.FewPictures")


def _outputs(codec: Codec, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        found = through(codec, x)
    return [found.y, found.scales, found.means, found.x_hat]


def _assert_same_function(codec: Codec, other: Codec) -> None:
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for a, b in zip(_outputs(codec, x), _outputs(other, x), strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max())


def test_streams_of_blocks_reach_from_shuffle_to_unshuffle() -> None:
    codec = capture(small_codec("unshuffle8"))
    (stream,) = streams(codec.networks["synthesis"])
    assert stream.writers == {"g_s.0.0": 4, "g_s.1.mix_out": 1, "g_s.1.project": 1}
    assert stream.readers == {
        ("g_s.0.1", "g_s.1.mix_in"): 1,
        ("g_s.1.add", "g_s.1.expand"): 1,
        ("g_s.1.add_2", "g_s.2.0"): 1,
    }
    (stream,) = streams(codec.networks["analysis"])
    assert stream.readers["g_a.1.add_2", "g_a.2.1"] == 4


@pytest.mark.parametrize("architecture", ["cheng2020-anchor", "mbt2018-mean", "window-attention"])
def test_nonlinear_writers_and_readers_leave_none(architecture: str) -> None:
    codec = capture(small_codec(architecture))
    assert not streams(codec.networks["synthesis"])


@pytest.mark.parametrize("architecture", ["unshuffle8", "elic2022-chandelier"])
def test_any_matrix_leaves_the_function_as_it_was(architecture: str) -> None:
    codec = capture(small_codec(architecture))
    generator, matrices = torch.Generator().manual_seed(1), {}
    for graph in codec.networks.values():
        for stream in streams(graph):
            size = graph.channels()[stream.name]
            matrices[stream.name] = torch.randn(size, size, generator=generator).double() + 3 * torch.eye(
                size
            )
    assert matrices
    changed, _ = insert_streams(codec, matrices, {})
    name = next(iter(matrices))
    network = next(n for n, g in codec.networks.items() if name in g)
    assert any(
        not torch.equal(a.op.weight, b.op.weight)
        for a, b in zip(codec.networks[network].nodes, changed.networks[network].nodes, strict=True)
        if isinstance(a.op, Convolution)
    )
    _assert_same_function(codec, changed)


@pytest.mark.parametrize("architecture", ["unshuffle8", "elic2022-chandelier"])
def test_centring_moves_ranges_and_not_the_function(architecture: str, photo: np.ndarray) -> None:
    codec = capture(small_codec(architecture))
    edges = [e for graph in codec.networks.values() for e in centrable(graph)]
    assert edges
    pictures = [photo[:128, :128]]
    changed = centred(codec, extremes(codec, pictures))
    _assert_same_function(codec, changed)
    after = observe(changed, pictures)
    for edge in edges:
        t = after.tensors[edge]
        assert torch.allclose(t.low, -t.high, rtol=1e-3, atol=1e-4 * t.largest), edge


def test_sensitivities_follow_the_basis() -> None:
    """What an error costs does not depend on the basis that it is written in."""
    codec = capture(small_codec("unshuffle8"))
    (stream,) = streams(codec.networks["synthesis"])
    generator = torch.Generator().manual_seed(2)
    cost, matrix, error = (
        torch.randn(n, m, generator=generator).double() for n, m in ((8, 8), (2, 2), (8, 1))
    )
    size = codec.networks["synthesis"].channels()[stream.name]
    matrix = torch.randn(size, size, generator=generator).double() + 3 * torch.eye(size)
    cost = torch.randn(4 * size, 4 * size, generator=generator).double()
    error = torch.randn(4 * size, 1, generator=generator).double()
    _, now = insert_streams(codec, {stream.name: matrix}, {"g_s.0.0": cost})
    moved = (matrix @ error.reshape(size, 4)).reshape(-1, 1)
    assert torch.allclose(moved.T @ now["g_s.0.0"] @ moved, error.T @ cost @ error)


def test_eight_bits_lose_less(photo: np.ndarray) -> None:
    """In a network whose streams are in a basis that eight bits do not suit, away from 0."""
    pictures, config = [photo[:128, :128]], QuantizeConfig(scope=("synthesis",))
    codec = capture(small_codec("unshuffle8"))
    (stream,) = streams(codec.networks["synthesis"])
    size, generator = codec.networks["synthesis"].channels()[stream.name], torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    codec, _ = insert_streams(codec, {stream.name: rotation * torch.logspace(-1.5, 1.5, size)}, {})
    x = torch.from_numpy(to_batch(pictures[0])).float() / 255
    with torch.no_grad():
        y_hat = through(codec, x).y_hat

    def loss(found: Codec, seen: Calibration) -> float:
        integer = to_integer(found, seen, config)[0]
        with torch.no_grad():
            real = codec.networks["synthesis"].real(y_hat)
        given = np.round(y_hat.numpy() * 2.0**integer.fraction_bits).astype(np.int32)
        return float(np.mean((integer.synthesis(given) - 255 * real.clamp(0, 1).numpy()) ** 2))

    plain = prepare(codec, pictures, dataclasses.replace(config, mixing="none"))
    assert loss(*prepare(codec, pictures, config)) < 0.7 * loss(*plain)


def test_wide_inputs_may_meet_wide_weights_in_the_entropy_path(photo: np.ndarray) -> None:
    codec = quantize(small_codec("unshuffle8"), [photo[:128, :128]], QuantizeConfig(prior_activation_bits=12))
    graph = codec.networks["hyper_synthesis"]
    ports = graph.ports()
    for node in graph.nodes:
        if isinstance(node.op, Convolution):
            port, largest = ports[node.inputs[0]], int(np.abs(node.op.weight).max())
            if port.hi - port.lo < 256:
                assert largest <= 63
                weight = node.op.weight.copy()
                weight.flat[0] = 64
                broken = graph.replaced({node.name: dataclasses.replace(node.op, weight=weight)})
                networks = {**codec.networks, "hyper_synthesis": broken}
                with pytest.raises(BadModel, match=r"holds 64; the entropy path allows \+-63"):
                    dataclasses.replace(codec, networks=networks).check()
    assert any(int(np.abs(n.op.weight).max()) > 63 for n in graph.nodes if isinstance(n.op, Convolution))
