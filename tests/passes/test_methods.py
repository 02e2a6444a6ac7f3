"""Every method by name: it makes a codec that codes, and none ends worse than it began."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import small_codec
from rdquant.coder import ImageCoder
from rdquant.errors import UsageError
from rdquant.files.container import Profile
from rdquant.graph.capture import capture
from rdquant.passes import QuantizeConfig, prepare, to_integer
from rdquant.passes.held_out import HeldOut, split
from rdquant.passes.methods import METHODS, Job, options_for, pictures_for, quantize_by
from rdquant.passes.reconstruct import Reconstruction, SoftRounding, units
from rdquant.passes.twin import Twin

QUICK = {"lambda_": 0.01, "batch": 1, "crop": 64, "compile": False}
SEARCHES = {"ours", "adaround", "brecq", "rdo-ptq"}


def _pictures(photo: np.ndarray) -> list[np.ndarray]:
    return [photo[i : i + 64, i : i + 64] for i in (0, 128, 256, 400)]


@pytest.mark.parametrize("name", METHODS)
def test_no_method_ends_worse_than_it_began(name: str, photo: np.ndarray) -> None:
    few = {"steps": 14} if name in SEARCHES else {}
    quantize, rdo = options_for(name, {"weight_bits": 4}, {**QUICK, **few})
    pictures = pictures_for(name, _pictures(photo))
    integer, trace = quantize_by(name, Job(small_codec("mbt2018-mean"), pictures, quantize, rdo))
    j = {e["unit"]: e["J"] for e in trace.entries if "J" in e}
    assert j["end"] <= j["start"] * (1 + 1e-6)
    assert integer.description["method"] == name
    coder = ImageCoder(integer, bytes(8), Profile.INTEGER)
    assert coder.decode(coder.encode(photo[:70, :90])).shape == (70, 90, 3)


@pytest.mark.parametrize(
    ("architecture", "fisher"), [("cheng2020-anchor", True), ("bmshj2018-factorized", False)]
)
def test_reconstruction_takes_any_graph(architecture: str, fisher: bool, photo: np.ndarray) -> None:
    codec, pictures = small_codec(architecture), _pictures(photo)[:2]
    quantize, rdo = options_for("brecq", {"weight_bits": 4}, {**QUICK, "steps": 2})
    codec_, seen = prepare(capture(codec), pictures, quantize)
    twin = Twin(*to_integer(codec_, seen, quantize), codec.entropy_bottleneck)
    held = HeldOut(twin, split(pictures)[1], rdo.lambda_)
    start = held.cost(twin)
    Reconstruction(twin, held.x, rdo, held, 2 if fisher else 1, fisher, fisher).run({})
    assert held.cost(twin) <= start * (1 + 1e-6)
    twin.export()
    for network in twin.integer.networks:
        found = [s for unit in units(twin, network, 2) for s in unit.stages]
        assert found == twin.of_network(network)


def test_adaround_brings_outputs_closer(photo: np.ndarray) -> None:
    """Enough steps, and J of the pictures that it learns from falls by a good part of the loss."""
    codec, pictures = small_codec("mbt2018-mean"), [photo[:128, :128]]
    quantize, rdo = options_for(
        "adaround", {"weight_bits": 3, "scope": ("synthesis",)}, {**QUICK, "steps": 60}
    )
    codec_, seen = prepare(capture(codec), pictures, quantize)
    twin = Twin(*to_integer(codec_, seen, quantize), codec.entropy_bottleneck)
    held = HeldOut(twin, pictures, rdo.lambda_)
    start = held.report(twin)["mse"]
    Reconstruction(twin, held.x, rdo, held, 1, False, False).run({})
    least = held.float_j["mse"]
    assert held.report(twin)["mse"] - least < 0.8 * (start - least)


def test_soft_rounding_starts_at_the_weights_and_hardens_to_neighbours(photo: np.ndarray) -> None:
    codec = small_codec("mbt2018-mean")
    config = QuantizeConfig(weight_bits=4, rounding="nearest", mixing="none", number_format="uniform")
    twin = Twin(
        *to_integer(*prepare(capture(codec), [photo[:64, :64]], config), config), codec.entropy_bottleneck
    )
    layer = twin.layer("g_a.2")
    soft = SoftRounding(layer, None)
    inside = layer.v.clamp(layer.lowest, layer.highest)
    assert float((soft.weight().detach() - inside).abs().max()) < 2e-3
    soft.v.data.add_(10.0)
    soft.harden()
    above = np.minimum(np.floor(inside.numpy()) + 1, layer.highest)
    assert np.array_equal(layer.levelled(None).detach().numpy(), above)


def test_rdo_ptq_takes_ten_pictures(photo: np.ndarray) -> None:
    pictures = [photo[i : i + 4, :4] for i in range(64)]
    assert len(pictures_for("rdo-ptq", pictures)) == 10
    assert pictures_for("ours", pictures) == pictures


def test_lambda_is_needed_where_j_decides() -> None:
    for name, bits in (("ours", 8), ("ours", 6), ("minmax", 4)):
        assert options_for(name, {"weight_bits": bits}, {})[1].lambda_ is None
    for name, bits in (("ours", 4), ("mse", 8), ("brecq", 8), ("rdo-ptq", 8)):
        with pytest.raises(UsageError, match="--lambda"):
            options_for(name, {"weight_bits": bits}, {})


def test_unknown_methods_are_quoted() -> None:
    with pytest.raises(UsageError, match=r"'magic'.*|.*magic"):
        options_for("magic", {}, {"lambda_": 1.0})
