"""What a command imports: a cold start is mostly that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
#: run first: an import of these fails
_BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
_COMMAND = "import sys; sys.argv = {argv!r}; from rdquant.cli import main; main()"


def run(argv: list[object], blocked: tuple[str, ...]) -> subprocess.CompletedProcess:
    code = _BLOCK.format(blocked=blocked) + _COMMAND.format(argv=["rdquant", *map(str, argv)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_a_blocked_module_is_noticed() -> None:
    found = run(["inspect", GOLDEN / "cheng-w8-1x1.rdq"], ("rich.table",))
    assert found.returncode != 0 and "rich.table" in found.stderr


def test_inspecting_a_file_imports_no_arithmetic() -> None:
    found = run(["inspect", GOLDEN / "cheng-w8-96x128.rdq"], ("torch", "scipy", "numba", "numpy"))
    assert found.returncode == 0, found.stderr
    assert "width" in found.stdout and "128" in found.stdout


def test_coding_with_an_integer_model_needs_no_float_codecs(tmp_path: Path) -> None:
    """Neither architectures and their capture, nor scipy, which is for making tables."""
    blocked = ("scipy", "rdquant.codecs", "rdquant.graph.capture", "rdquant.passes")
    model, out = GOLDEN / "cheng-w8.rdqm", tmp_path / "out.png"
    decoded = run(["decode", GOLDEN / "cheng-w8-96x128.rdq", "-m", model, "-o", out], blocked)
    assert decoded.returncode == 0, decoded.stderr
    encoded = run(["encode", out, "-m", model, "-o", tmp_path / "again.rdq"], blocked)
    assert encoded.returncode == 0, encoded.stderr
