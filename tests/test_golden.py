"""Files of this and earlier releases decode to the pixels they always had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from golden.make import HERE, MODELS, PICTURES, encoded, sha256, trellis_files
from plain_decoder import PlainDecoder
from rdquant.coder import ImageCoder
from rdquant.files.container import Quantizer, read
from rdquant.load import open_coder

KNOWN = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def coder(model: str) -> ImageCoder:
    return open_coder(str(HERE / f"{model}.rdqm"))


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_and_bytes_are_as_ever(coder: ImageCoder, model: str, name: str, engine: str) -> None:
    coder.codec.__dict__["engine"] = engine
    data = (HERE / f"{model}-{name}.rdq").read_bytes()
    pixels = coder.decode(data)
    assert pixels.shape == (*PICTURES[name][2:], 3) and sha256(pixels) == KNOWN[f"{model}-{name}"]
    assert encoded(coder, name) == data


@pytest.mark.parametrize("name", PICTURES)
def test_a_second_decoder_agrees(model: str, name: str) -> None:
    decoder = PlainDecoder(HERE / f"{model}.rdqm")
    pixels = decoder.decode((HERE / f"{model}-{name}.rdq").read_bytes())
    assert sha256(pixels) == KNOWN[f"{model}-{name}"]


@pytest.mark.parametrize(("model", "name", "kind", "step"), trellis_files())
def test_trellis_coded_pixels_are_as_ever(model: str, name: str, kind: str, step: int) -> None:
    stem = f"{model}-{name}-{kind.lower()}"
    data = (HERE / f"{stem}.rdq").read_bytes()
    header, _ = read(data)
    assert (header.quantizer, header.step) == (Quantizer[kind], step)
    for decoder in (open_coder(str(HERE / f"{model}.rdqm")), PlainDecoder(HERE / f"{model}.rdqm")):
        assert sha256(decoder.decode(data)) == KNOWN[stem]


def test_approximate_pixels_are_near(coder: ImageCoder, model: str) -> None:
    data = (HERE / f"{model}-96x128.rdq").read_bytes()
    exact, near = coder.decode(data).astype(int), coder.decode(data, engine="torch")
    assert np.abs(near - exact).mean() < 1.5


def test_nothing_is_missing() -> None:
    files = {p.stem for p in Path(HERE).glob("*.rdq")}
    expected = {f"{m}-{p}" for m in MODELS for p in PICTURES}
    assert files == set(KNOWN) == expected | {f"{m}-{p}-{q.lower()}" for m, p, q, _ in trellis_files()}
