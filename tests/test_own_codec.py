"""docs/own-codec.md as it is: a codec that lives outside of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rdquant
from rdquant.errors import BadModel, CaptureError

PAGE = (Path(__file__).parent.parent / "docs" / "own-codec.md").read_text()


def run_page(given: dict[str, Any], blocks: slice = slice(None)) -> dict[str, Any]:
    """What the page's Python leaves behind, in the current folder."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)[blocks]:
        exec(compile(block, "docs/own-codec.md", "exec"), given)
    return given


@pytest.fixture(scope="module")
def page(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("own"))
        crops = [np.ascontiguousarray(photo[i : i + 64, i : i + 96]) for i in (0, 200)]
        yield run_page({"__name__": "own_codec", "pictures": crops, "rgb": photo[100:260, 80:300]})


def test_the_page_writes_a_file_like_the_float_codecs(page: dict[str, Any]) -> None:
    rgb, rgb_hat = page["rgb"].astype(float), page["rgb_hat"]
    assert rgb_hat.shape == rgb.shape and rgb_hat.dtype == np.uint8
    floats = page["before"].decode(page["data_before"])
    assert np.mean((rgb_hat - floats.astype(float)) ** 2) < 0.05 * np.mean((rgb - floats) ** 2)
    assert len(page["data"]) > 500
    assert len(page["data"]) == pytest.approx(len(page["data_before"]), rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (63, 65)])
def test_decoding_is_exact(page: dict[str, Any], size: tuple[int, int], rng: np.random.Generator) -> None:
    """Also of the model as it was before it was a file, and of the reference engine."""
    rgb = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    coder = page["coder"]
    data = coder.encode(rgb)
    expected = coder.forward(rgb)[0]
    assert np.array_equal(coder.decode(data), expected)
    memory = rdquant.open(page["integer"])
    memory.codec.__dict__["engine"] = "reference"
    assert np.array_equal(memory.decode(data), expected) and memory.encode(rgb) == data


def test_every_network_is_in_integers(page: dict[str, Any]) -> None:
    codec = rdquant.load_integer(Path("gated-w8a8.rdqm"))
    assert codec.architecture == "gated" and codec.integer
    assert set(codec.networks) == {"analysis", "synthesis", *codec.prior.networks}
    kinds = {node.op.kind for graph in codec.networks.values() for node in graph.nodes}
    assert {"unshuffle", "shuffle", "product", "sum", "concatenate"} <= kinds


class Softsign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.abs(x))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "module", [nn.BatchNorm2d(8), nn.Conv2d(8, 8, 5, padding=1), nn.GELU("tanh"), Softsign(), Branch()]
)
def test_refusals_read_as_the_page_says(module: nn.Module) -> None:
    codec = run_page({"__name__": "own_codec"}, slice(2))["codec"]
    codec.analysis[4] = module
    with pytest.raises(CaptureError) as error:
        rdquant.quantize(codec, [])
    assert f"`{str(error.value).split('; got Conv')[0]}" in PAGE


def test_a_network_that_is_missing_is_named() -> None:
    codec = run_page({"__name__": "own_codec"}, slice(2))["codec"]
    del codec.hyper_synthesis
    with pytest.raises(BadModel) as error:
        rdquant.capture(codec)
    assert f"`{error.value}`" in PAGE


def test_the_package_is_light_and_has_the_names_that_it_says() -> None:
    code = "import sys, rdquant; assert 'torch' not in sys.modules; print(*rdquant.__all__)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(hasattr(rdquant, name) for name in names.split())
    with pytest.raises(AttributeError, match="nonsense"):
        rdquant.nonsense  # noqa: B018
