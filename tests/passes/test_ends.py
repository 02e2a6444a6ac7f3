from __future__ import annotations

import numpy as np
import pytest

from conftest import small_codec
from rdquant.codecs.unshuffle8 import Unshuffle8
from rdquant.errors import UsageError
from rdquant.graph.capture import capture
from rdquant.graph.operations import Convolution
from rdquant.passes import QuantizeConfig, quantize
from rdquant.passes.config import PROFILES
from rdquant.passes.ends import for_codec
from rdquant.passes.mixed import is_mixing
from rdquant.passes.prepare import FewPictures

ENDS = "g_a.0.1", "g_a.2.1", "g_s.0.0", "g_s.2.0"


def test_first_and_last_layers_get_more_bits() -> None:
    codec = capture(small_codec("unshuffle8"))
    found = for_codec(QuantizeConfig(), codec)
    assert found.layer_bits == dict.fromkeys((*ENDS, "g_a.1.project", "g_s.1.project"), 12)
    assert for_codec(found, codec) == found
    few = for_codec(QuantizeConfig(weight_bits=4, layer_bits={"g_s.0.0": 5}), codec)
    assert {name: few.layer_bits[name] for name in ENDS} == dict.fromkeys(ENDS, 8) | {"g_s.0.0": 5}
    for config in (QuantizeConfig(wide_ends=False), QuantizeConfig(**PROFILES["portable"])):
        assert not for_codec(config, codec).layer_bits


def test_the_last_sums_of_a_codec_of_many_rates_have_more_bits() -> None:
    codec = capture(Unshuffle8(N=8, M=8, hyper=8, width=8, encoder=3, decoder=1))
    found = for_codec(QuantizeConfig(), codec)
    assert set(found.layer_activation_bits) == {
        "g_a.3.add_2", "g_a.3.add", "g_a.2.add_2", "g_a.2.add", "g_s.1.add_2", "g_s.1.add",
    }  # fmt: skip
    assert set(found.layer_activation_bits.values()) == {12}
    assert {name for name in found.layer_bits if "project" in name} == {"g_a.3.project", "g_s.1.project"}


@pytest.mark.parametrize("architecture", ["mbt2018-mean", "unshuffle8"])
def test_integers_have_them(architecture: str, photo: np.ndarray) -> None:
    """And a transform whose last convolution reads a mixing is left alone."""
    with pytest.warns(FewPictures, match="1 calibration pictures"):
        codec = quantize(small_codec(architecture), [photo[:128, :128]])
    nodes = [n for n in codec.networks["synthesis"].nodes if not is_mixing(n.name)]
    layers = [n.op for n in nodes if isinstance(n.op, Convolution)]
    peaks = [int(np.abs(layer.weight).max()) for layer in (layers[0], layers[-1])]
    assert all((127 < p < 2048) == (architecture == "unshuffle8") for p in peaks)


def test_activations_of_a_prior_with_contexts_have_more_bits(photo: np.ndarray) -> None:
    with pytest.warns(FewPictures, match="1 calibration pictures"):
        codec = quantize(small_codec("unshuffle8"), [photo[:128, :128]])
    widest = {}
    for name, graph in codec.networks.items():
        ports = graph.ports()
        inner = [
            e for n in graph.nodes if isinstance(n.op, Convolution) for e in n.inputs if e not in graph.inputs
        ]
        widest[name] = max((ports[e].hi - ports[e].lo for e in inner), default=0)
    wide = {name for name, span in widest.items() if span > 255}
    assert {"hyper_analysis", "hyper_synthesis", "parameters_1"} <= wide
    within = codec.networks["analysis"].ports()
    assert within["g_a.1.leaky_relu"].hi - within["g_a.1.leaky_relu"].lo == 255
    own = {
        name: for_codec(QuantizeConfig(), capture(small_codec(name)))
        for name in ("unshuffle8", "mbt2018-mean")
    }
    assert {k: c.prior_activation_bits for k, c in own.items()} == {"unshuffle8": 12, "mbt2018-mean": None}
    narrow = QuantizeConfig(prior_activation_bits=8)
    assert for_codec(narrow, capture(small_codec("unshuffle8"))).prior_activation_bits == 8
    with pytest.raises(UsageError, match=r"prior_activation_bits must be 4\.\.15, got 3"):
        QuantizeConfig(prior_activation_bits=3)


def test_sums_that_end_blocks_or_take_the_latent_have_more_bits() -> None:
    found = for_codec(QuantizeConfig(), capture(small_codec("cheng2020-anchor")))
    wide = {"g_a.1.add", "g_a.3.add", "g_a.5.add", "g_s.0.add", "g_s.2.add", "g_s.4.add", "g_s.6.add"}
    assert found.layer_activation_bits == dict.fromkeys(wide, 12)
