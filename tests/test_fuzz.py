"""The corpus that fuzzing left (benchmarks/fuzz.py), and seconds of fuzzing where atheris is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fuzz_target

CORPUS = Path(__file__).parent / "corpus.zip"


def test_the_corpus_is_answered() -> None:
    with zipfile.ZipFile(CORPUS) as archive:
        names = archive.namelist()
        assert len(names) > 100
        for name in names:
            fuzz_target.run(archive.read(name))


def test_seeds_are_answered() -> None:
    for data in fuzz_target.seeds().values():
        fuzz_target.run(data)


def test_the_target_sees_an_error_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("not in the tree")

    monkeypatch.setattr("rdquant.coder.read", broken)
    with pytest.raises(IndexError):
        fuzz_target.run(bytes(2) + b"RDQ")


def test_seconds_of_fuzzing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    script = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    options = ["--seconds", "10", "--corpus", str(tmp_path / "corpus.zip"), "--out", ""]
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
