"""Many files: at a time, in order, and past a bad one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rdquant import batch
from rdquant.errors import UsageError
from rdquant.files.images import read_image, write_image
from rdquant.load import open_coder

GOLDEN = Path(__file__).parent / "golden"
SOURCES = [Path(f"{name}.in") for name in "dacb"]


def named(suffix: str) -> Callable[[Path], str]:
    return lambda source: source.stem + suffix


def write(source: Path, target: Path) -> str:
    target.write_text(source.stem)
    return source.stem


def test_jobs_run_at_a_time_and_are_reported_in_order(tmp_path: Path) -> None:
    both, lock, running, most = threading.Barrier(2), threading.Lock(), 0, 0

    def work(source: Path, target: Path) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(timeout=60)  # breaks unless two are here
        with lock:
            running -= 1
        return write(source, target)

    seen: list[int] = []
    report = batch.run(
        SOURCES, tmp_path, named(".out"), work, progress=lambda i, n, _: seen.append(i), jobs=2
    )
    assert report.done == [(s, s.stem) for s in SOURCES] and not report.failed
    assert most == 2 and seen == [1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.out", "b.out", "c.out", "d.out"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_bad_file_is_noted_and_what_is_there_is_skipped(tmp_path: Path, jobs: int) -> None:
    (tmp_path / "a.out").write_text("before")

    def work(source: Path, target: Path) -> str:
        if source.stem == "c":
            raise UsageError("no good")
        return write(source, target)

    report = batch.run(SOURCES, tmp_path, named(".out"), work, jobs=jobs)
    assert [s.stem for s, _ in report.done] == ["d", "b"] and report.failed == [(Path("c.in"), "no good")]
    assert report.skipped == [Path("a.in")] and (tmp_path / "a.out").read_text() == "before"


def test_an_error_of_another_kind_ends_it(tmp_path: Path) -> None:
    started: list[Path] = []

    def work(source: Path, target: Path) -> str:
        started.append(source)
        if len(started) == 2:
            raise ZeroDivisionError
        if len(started) > 2:
            time.sleep(0.01)  # or all might be done before anybody looks
        return write(source, target)

    many = [Path(f"{i:03}.in") for i in range(200)]
    with pytest.raises(ZeroDivisionError):
        batch.run(many, tmp_path, named(".out"), work, jobs=1)
    assert len(started) < len(many)


def test_no_jobs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        batch.run(SOURCES, tmp_path, named(".out"), write, jobs=0)


def test_pictures_are_the_same_whatever_the_jobs(tmp_path: Path) -> None:
    """One coder in several threads, networks with contexts among them."""
    coder = open_coder(str(GOLDEN / "cheng-w8.rdqm"))
    files = sorted(GOLDEN.glob("cheng-w8-*.rdq")) * 3
    copies = [tmp_path / f"{i}.rdq" for i in range(len(files))]
    for file, copy in zip(files, copies, strict=True):
        copy.write_bytes(file.read_bytes())

    def work(source: Path, target: Path) -> str:
        write_image(target, coder.decode(source.read_bytes()))
        return ""

    report = batch.run(copies, tmp_path / "out", named(".png"), work, jobs=4)
    assert len(report.done) == len(copies)
    for file, copy in zip(files, copies, strict=True):
        decoded = coder.decode(file.read_bytes())
        assert np.array_equal(read_image(tmp_path / "out" / f"{copy.stem}.png"), decoded)
