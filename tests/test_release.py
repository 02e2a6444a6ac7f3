"""What is released: builds are reproducible, and hold what they should."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(out: Path, source: Path) -> dict[str, str]:
    """SHA-256 of the wheel and the source archive, made without a network by the backend itself."""
    code = (
        "import sys, hatchling.build as b; sys.argv = ['hatchling']\n"
        f"print(b.build_wheel({str(out)!r})); print(b.build_sdist({str(out)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()}


def copied(target: Path) -> Path:
    """What git tracks, and what is new and not ignored, at other times than here."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def test_builds_are_reproducible_and_hold_models_and_assets(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        out.mkdir()
    first, second = (build(out, copied(tmp_path / f"source-{i}")) for i, out in enumerate(outs))
    assert first == second and len(first) == 2
    wheel = next(p for p in outs[0].iterdir() if p.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for needed in ("zoo/index.json", "report/assets/page.js", "latents/tcq_tables.npz", "py.typed"):
        assert f"rdquant/{needed}" in held, needed
    assert any(name.endswith(".rdqm") for name in held) and not any("tests" in name for name in held)
    assert wheel.stat().st_size < 30e6
    archive_name = next(p for p in outs[0].iterdir() if p.name.endswith(".tar.gz"))
    with tarfile.open(archive_name) as source:
        names = source.getnames()
    assert any(n.endswith("/README.md") for n in names) and any(
        n.endswith("/tests/test_golden.py") for n in names
    )


def test_a_policy_and_a_promise_are_there() -> None:
    assert "Report" in (ROOT / "SECURITY.md").read_text()
    assert "UnsupportedVersion" in (ROOT / "docs" / "compatibility.md").read_text()
