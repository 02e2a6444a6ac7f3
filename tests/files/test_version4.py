"""Models of version 4: the golden ones, and lies about them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden.make import HERE
from rdquant import zoo
from rdquant.errors import BadModel, UsageError
from rdquant.files.integer_models import integer_fingerprint, load_integer, save_integer
from rdquant.files.model_file import read
from rdquant.graph.operations import Convolution, Requantize
from rdquant.zoo import model_path

#: golden models of version 4
OLD = (
    "factorized-w8", "hyperprior-w8", "mean-w8", "mean-w4", "mean-plain-w8", "mean-loud-w8", "mean-shift-w8",
    "factorized-loud-w8",
)  # fmt: skip
SOURCE = HERE / "mean-shift-w8.rdqm"


@pytest.mark.parametrize("model", OLD)
def test_a_model_keeps_its_name(model: str) -> None:
    codec = load_integer(HERE / f"{model}.rdqm")
    picture = (HERE / f"{model}-1x1.rdq").read_bytes()
    assert integer_fingerprint(codec) == picture[4:12]


def test_the_zoo_keeps_its_names() -> None:
    name, entry = next((n, e) for n, e in zoo.index().items() if n.endswith("-w8a8"))
    assert integer_fingerprint(load_integer(model_path(name))).hex() == entry["fingerprint"]


@pytest.mark.parametrize("model", ["mean-w8", "mean-shift-w8", "hyperprior-w8"])
def test_saved_as_version_5_it_is_another_model_of_the_same_integers(model: str, tmp_path: Path) -> None:
    codec = load_integer(HERE / f"{model}.rdqm")
    with pytest.raises(UsageError, match="copy that file"):
        save_integer(codec, tmp_path / "m")
    save_integer(dataclasses.replace(codec, known_as={}), tmp_path / "m")
    again = load_integer(tmp_path / "m")
    assert integer_fingerprint(again) not in (integer_fingerprint(codec), *codec.known_as.values())
    assert integer_fingerprint(again) in codec.known_as
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 128)).astype(np.uint8)
    for name, given in (("analysis", pixels), ("synthesis", codec.analysis(pixels))):
        assert np.array_equal(codec.run(name, given), again.run(name, given))


def test_other_integers_are_not_called_by_its_name(tmp_path: Path) -> None:
    codec = load_integer(SOURCE)
    other = dataclasses.replace(codec, medians=codec.medians + 1)
    save_integer(other, tmp_path / "m")
    assert integer_fingerprint(other) == integer_fingerprint(load_integer(tmp_path / "m"))
    assert integer_fingerprint(other) not in codec.known_as.values()


def test_stages_become_nodes() -> None:
    codec = load_integer(SOURCE)
    synthesis = codec.networks["synthesis"]
    assert [n.name for n in synthesis.nodes] == [
        "latent_shift", "g_s.0", "g_s.1", "g_s.2", "g_s.3", "g_s.4", "g_s.5", "g_s.6", "g_s.6.out",
    ]  # fmt: skip
    shift = synthesis["latent_shift"].op
    assert isinstance(shift, Requantize) and sorted(set(shift.factor.as_float().tolist()))[-1] in (
        2,
        4,
        8,
        16,
        32,
        64,
    )
    hyper = codec.networks["hyper_analysis"]
    assert [n.name for n in hyper.nodes] == [
        "hyper_input",
        "h_a.0",
        "h_a.1",
        "h_a.2",
        "h_a.3",
        "h_a.4",
        "h_a.4.out",
    ]
    assert isinstance(hyper["h_a.1"].op, Requantize) and hyper["h_a.1"].op.negative is not None
    mixed = load_integer(HERE / "mean-w8.rdqm").networks["analysis"]
    assert [n.name for n in mixed.nodes][:4] == ["g_a.0", "g_a.1", "g_a.0m", "g_a.0m.out"]
    assert isinstance(mixed["g_a.0m"].op, Convolution) and mixed["g_a.0m"].op.kernel_size == 1


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


def _stage(network: str, index: int, **changes: Any) -> Edit:
    return lambda s, _: s["stages"][network][index].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s, t: s.update(architecture="other"), "unknown architecture"),
        (lambda s, t: s.update(architecture=["mbt2018-mean"]), "bad structure"),
        (lambda s, t: s.update(architecture="bmshj2018-hyperprior"), "has_means"),
        (lambda s, t: s.update(has_means=1), "has_means"),
        (lambda s, t: s.update(N=float("inf")), "N must be 8"),
        (lambda s, t: s.update(N=9), "N must be 8, got 9"),
        (lambda s, t: s.update(M=13), "13"),
        (lambda s, t: s.update(M=None), "latent_shift"),
        (lambda s, t: s.update(fraction_bits=40), "fraction_bits"),
        (lambda s, t: s.update(stages={}), "unexpected tensors"),
        (lambda s, t: s.update(stages=3), "bad structure"),
        (lambda s, t: s["stages"].update(more=[]), "networks must be"),
        (lambda s, t: s["stages"].update(h_s=[]), "bad structure"),
        (lambda s, t: s.pop("hyper_input"), "hyper_input"),
        (lambda s, t: s.update(hyper_input=[1, 2]), "lo <= 0 <= hi"),
        (lambda s, t: s.update(hyper_input=[-2000, 2000]), "was proven for"),
        (lambda s, t: s.update(hyper_input=5), "bad structure"),
        (_stage("g_a", 0, bits=42), "2..16"),
        (_stage("g_a", 1, bits=3), r"over \+-3"),
        (_stage("g_a", 1, shape=[10**6, 10**6, 5, 5]), "over 67108864 weights"),
        (_stage("g_a", 1, stride=1), "sides"),
        (_stage("g_a", 1, name="g_a.0"), "two nodes|missing"),
        (_stage("g_a", 1, name=7), "must be str"),
        (_stage("g_a", 1, transposed=0), "transposed must be bool"),
        (_stage("g_a", 1, **{"in": [-5, 5]}), "was proven for"),
        (_stage("g_s", 0, compensate=True, gdn=None), "bad structure"),
        (_stage("h_s", 0, leaky=False), "is leaky: False"),
        (lambda s, t: t.pop("latent_shift"), "latent_shift"),
        (lambda s, t: t.update(latent_shift=t["latent_shift"] + 8), "latent_shift"),
        (lambda s, t: t.update(latent_shift=t["latent_shift"][1:]), "latent_shift"),
        (lambda s, t: t.pop("hyper_input.factor.m"), "hyper_input"),
        (lambda s, t: t.pop("g_s.2.widen.m"), "widen"),
        (lambda s, t: t.update(more=np.zeros(1, np.int8)), "unexpected tensors: more"),
    ],
)
def test_every_lie_is_named(edit: Edit, message: str, tmp_path: Path) -> None:
    header, tensors = read(SOURCE)
    edit(header["structure"], tensors)
    save_file(tensors, str(tmp_path / "bad"), {"rdquant": json.dumps(header)})
    with pytest.raises(BadModel, match=message):
        load_integer(tmp_path / "bad")
