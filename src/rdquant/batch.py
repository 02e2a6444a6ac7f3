"""Work over many files that survives a bad one, and goes on where it was stopped.

A file that exists is finished, because every writer here replaces its target whole. So resuming after a
kill needs no record: what exists is skipped.

Several files are worked on at a time, one a thread: while the networks of one run on all cores
(`rdquant.threads`), others are read, entropy-coded and written. Memory is that of as many pictures.
A shard (`rdquant.files.shards`) is one file here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import RdquantError, UsageError

#: source, target -> what there is to say about it
Work = Callable[[Path, Path], dict[str, Any]]
Progress = Callable[[int, int, str], None]
#: files at a time, where nobody says how many
JOBS = min(4, os.cpu_count() or 1)


@dataclass
class Report:
    """What became of each source."""

    done: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def summary(self) -> str:
        return f"{len(self.done)} done, {len(self.skipped)} there already, {len(self.failed)} failed"


def collect(sources: Iterable[Path], suffixes: set[str]) -> list[Path]:
    """Files as given, and of folders the files with these suffixes, sorted.

    Raises `UsageError` for a folder without any, or two sources of one stem (they would share a target).
    """
    files: list[Path] = []
    for source in sources:
        if not source.is_dir():
            files.append(source)
            continue
        found = sorted(p for p in source.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        if not found:
            raise UsageError(f"nothing to do in {source} (looked for {', '.join(sorted(suffixes))})")
        files += found
    stems: dict[str, Path] = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise UsageError(f"{other} and {file} would be written to the same name")
    return files


def to_do(
    sources: list[Path], folder: Path, name: Callable[[Path], str], overwrite: bool
) -> tuple[dict[Path, Path], list[Path]]:
    """Targets in a folder of what is not there yet; and the others."""
    targets = {source: folder / name(source) for source in sources}
    skipped = [source for source, target in targets.items() if target.exists() and not overwrite]
    return {s: t for s, t in targets.items() if s not in set(skipped)}, skipped


def run(
    sources: list[Path],
    folder: Path,
    name: Callable[[Path], str],
    work: Work,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int = JOBS,
) -> Report:
    """``work`` on each source, to ``folder / name(source)``, ``jobs`` at a time, each in a thread.

    Errors of ours are noted; any other is raised once what runs has ended, and nothing more is begun.
    Raises `UsageError` for no jobs.
    """
    if jobs < 1:
        raise UsageError(f"there must be at least 1 job, got {jobs}")
    targets, skipped = to_do(sources, folder, name, overwrite)
    report = Report(skipped=skipped)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(work, source, target): source for source, target in targets.items()}
        try:
            for i, future in enumerate(as_completed(running), len(report.skipped) + 1):
                if progress:
                    progress(i, len(sources), running[future].name)
                if not isinstance(future.exception(), RdquantError | None):
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    for future, source in running.items():
        try:
            report.done.append((source, future.result()))
        except RdquantError as error:
            report.failed.append((source, str(error)))
    return report
