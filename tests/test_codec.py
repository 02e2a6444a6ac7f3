"""What a codec says of itself; how it runs, the tests of the coder, the passes and the files see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rdquant.codec import MOST_DOWNSAMPLING, Codec
from rdquant.entropy import scale_boundaries, scale_table, scale_thresholds
from rdquant.errors import BadModel
from rdquant.graph import Graph, Node, Port
from rdquant.graph.operations import WindowAttention
from rdquant.latents import FIXED_HI, FIXED_LO
from rdquant.priors import ChannelGroups, FourPart
from tiny import KINDS, STRIDE, M, make_codec


def with_networks(codec: Codec, **networks: Graph) -> Codec:
    return dataclasses.replace(codec, networks={**codec.networks, **networks})


def test_strides_are_those_of_the_networks() -> None:
    codec = make_codec(KINDS["mean"])
    assert (codec.M, codec.stride, codec.z_stride, codec.downsampling) == (M, STRIDE, 2 * STRIDE, 2 * STRIDE)
    plain = make_codec(KINDS["factorized"])
    assert plain.stride == plain.z_stride == plain.downsampling == STRIDE


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_pictures_have_whole_windows(window: int) -> None:
    """Of attention at the resolution of y, whatever the strides."""
    codec = make_codec(KINDS["mean"], integer=False)
    attention = WindowAttention(1, window, 0, torch.zeros(1, (2 * window - 1) ** 2))
    old = codec.networks["synthesis"]
    nodes = (Node("a", attention, ("y_hat",)), *(Node(n.name, n.op, ("a",)) for n in old.nodes))
    found = with_networks(codec, synthesis=Graph({"y_hat": Port(3 * M, 0, 0)}, nodes, old.output))
    side = found.downsampling
    assert side % (2 * STRIDE) == 0 and side // STRIDE % window == 0
    assert side <= 2 * STRIDE * window


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", [None, 100, 256, 500])
def test_tables_are_those_of_scales_in_steps(kind: str, spacing: int | None) -> None:
    """For other spacings thresholds move, within a unit of the rounding; float and integer codecs agree."""
    integer, real = (make_codec(KINDS[kind], integer=i) for i in (True, False))
    if not integer.prior.hyper:
        return
    scales = np.arange(1, FIXED_HI, 7)
    found = integer.table_indexes(scales, spacing)
    assert int(np.abs(found - real.table_indexes(scales / 256, spacing)).max()) <= 1
    assert np.array_equal(real.table_indexes(scales * 2, 512), real.table_indexes(scales))
    assert (np.diff(found) >= 0).all() and int(found.max()) < len(integer.y_tables)


def test_thresholds_rise_however_coarse_scales_are() -> None:
    for fraction_bits in range(9):
        assert (np.diff(scale_thresholds(scale_boundaries(scale_table()), fraction_bits)) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_codecs_that_do_not_fit_are_bad_models(kind: str) -> None:
    codec = make_codec(KINDS[kind])
    codec.check()
    with pytest.raises(BadModel, match="networks must be"):
        with_networks(codec, surplus=codec.networks["analysis"]).check()
    synthesis = codec.networks["synthesis"]
    narrow = dataclasses.replace(synthesis, inputs={"y_hat": Port(M, FIXED_LO, 100)})
    with pytest.raises(BadModel, match="16 bits"):
        with_networks(codec, synthesis=narrow).check()
    with pytest.raises(BadModel, match="medians"):
        dataclasses.replace(codec, medians=codec.medians[1:]).check()
    for name, sources in codec.prior.networks.items():
        graph = codec.networks[name]
        ports = {k: dataclasses.replace(p, hi=p.hi - 1) for k, p in graph.inputs.items()}
        with pytest.raises(BadModel, match=f"{name} takes"):
            with_networks(codec, **{name: dataclasses.replace(graph, inputs=ports)}).check()
        assert len(sources) == len(ports)


def test_priors_that_do_not_fit_the_latent_are_bad_models() -> None:
    groups = make_codec(KINDS["groups"])
    with pytest.raises(BadModel, match=rf"groups \(1, 2, 4\) must be {M}"):
        ChannelGroups((1, 2, 4)).check(M, 2)
    with pytest.raises(BadModel, match="_2 takes"):
        dataclasses.replace(groups, prior=ChannelGroups((1, 2, 6))).check()
    for channels, side in ((6, 2), (8, 3)):
        with pytest.raises(BadModel, match=f"got {channels} and {side}"):
            FourPart().check(channels, side)


def test_a_pixel_cannot_ask_for_a_large_picture() -> None:
    codec = make_codec(KINDS["mean"])
    codec.__dict__["downsampling"] = 2 * MOST_DOWNSAMPLING
    with pytest.raises(BadModel, match=str(2 * MOST_DOWNSAMPLING)):
        codec.check()
