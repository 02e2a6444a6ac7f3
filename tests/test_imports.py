"""What a command imports: a cold start is mostly that, and the package does not bring it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rdquant.files.images import write_image

GOLDEN = Path(__file__).parent / "golden"
#: run first: an import of these fails
_BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
_COMMAND = "import sys; sys.argv = {argv!r}; from rdquant.cli import main; main()"


def run(argv: list[object], blocked: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess:
    code = _BLOCK.format(blocked=blocked) + _COMMAND.format(argv=["rdquant", *map(str, argv)])
    command, env = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def test_a_blocked_module_is_noticed() -> None:
    found = run(["inspect", GOLDEN / "cheng-w8-1x1.rdq"], ("rich.table",))
    assert found.returncode != 0 and "rich.table" in found.stderr


def test_inspecting_a_file_imports_no_arithmetic() -> None:
    found = run(["inspect", GOLDEN / "cheng-w8-96x128.rdq"], ("torch", "scipy", "numba", "numpy"))
    assert found.returncode == 0, found.stderr
    assert "width" in found.stdout and "128" in found.stdout


#: what neither `pip install rdquant` brings nor coding with an integer model imports
ABSENT = ("torch", "scipy", "pytorch_msssim", "rdquant.codecs", "rdquant.graph.capture", "rdquant.passes")


def test_coding_with_an_integer_model_needs_no_torch(tmp_path: Path) -> None:
    """Nor float codecs, nor scipy, which is for making tables."""
    model, out = GOLDEN / "cheng-w8.rdqm", tmp_path / "out.png"
    decoded = run(["decode", GOLDEN / "cheng-w8-96x128.rdq", "-m", model, "-o", out], ABSENT)
    assert decoded.returncode == 0, decoded.stderr
    encoded = run(["encode", out, "-m", model, "-o", tmp_path / "again.rdq"], ABSENT)
    assert encoded.returncode == 0, encoded.stderr
    shown = run(["inspect", model], ABSENT)
    assert shown.returncode == 0 and "cheng2020-attn" in shown.stdout, shown.stderr


def test_what_is_compiled_starts_without_the_compiler(tmp_path: Path) -> None:
    model, out = GOLDEN / "cheng-w8.rdqm", tmp_path / "out.png"
    argv = ["decode", GOLDEN / "cheng-w8-96x128.rdq", "-m", model, "-o", out, "--overwrite"]
    compiler = ("numba.np.random.generator_core",)  # of what numba imports before it compiles
    assert run(argv, ()).returncode == 0
    found = run(argv, compiler)
    assert found.returncode == 0, found.stderr
    found = run(argv, compiler, NUMBA_CACHE_DIR=str(tmp_path))
    assert found.returncode != 0 and "generator_core" in found.stderr


def test_coding_from_python_imports_no_torch(tmp_path: Path) -> None:
    """Where it is installed, too: arrays, Pillow, every engine of ours and every prior."""
    names = (
        "handmade-elic",
        "handmade-four-part",
        "mbt2018-w8",
        "window-w8",
        "factorized-w8",
        "unshuffle-w8",
    )
    models = [str(GOLDEN / f"{name}.rdqm") for name in names]
    code = f"""
import sys
import numpy as np
import rdquant
from PIL import Image
rgb = np.random.default_rng(0).integers(0, 256, (70, 45, 3)).astype(np.uint8)
data = rdquant.encode(rgb)
Image.fromarray(rgb).save(sys.argv[1])
assert np.array_equal(np.asarray(Image.open(sys.argv[1])), rdquant.decode(data))
for model in {models}:
    coder = rdquant.open(model)
    for engine in ("fast", "reference"):
        coder.codec.__dict__["engine"] = engine
        coder.decode(coder.encode(rgb))
found = {{"torch", "scipy.linalg"}} & set(sys.modules)  # of scipy, numba wants to know the version
assert not found, found
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.rdq")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stderr


def test_asking_results_needs_no_torch() -> None:
    pytest.importorskip("duckdb")
    folder = GOLDEN.parent.parent / "benchmarks" / "results"
    found = run(["results", folder, "--sql", "SELECT count(*) AS n FROM points", "--json"], ABSENT)
    assert found.returncode == 0 and json.loads(found.stdout)["rows"][0]["n"] > 100, found.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["decode", GOLDEN / "mean-w8-1x1.rdq", "-m", GOLDEN / "mean-w8.rdqm", "--engine", "torch"],
        ["encode", "PICTURE", "--effort", "1"],
        ["encode", "PICTURE", "-m", "mean-scale-s-0130"],
        ["inspect", "mean-scale-s-0130"],
        ["train", "--data", ".", "--run", "r"],
    ],
    ids=str,
)
def test_what_needs_torch_names_the_extra(argv: list[object], tmp_path: Path) -> None:
    write_image(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    given = [tmp_path / "p.png" if a == "PICTURE" else a for a in argv]
    out = ["-o", tmp_path / "out"] if argv[0] in ("decode", "encode") else []
    found = run([*given, *out], ("torch",))
    assert found.returncode == 2
    assert found.stderr.strip().endswith(
        "this needs torch, which is not installed: pip install 'rdquant[train]'"
    )
