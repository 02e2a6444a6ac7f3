"""Work over many files that survives a bad one, and goes on where it was stopped.

A file that exists is finished, because every writer here replaces its target whole. So resuming after a
kill needs no record: what exists is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import RdquantError, UsageError

#: source, target -> one line about it
Work = Callable[[Path, Path], str]
Progress = Callable[[int, int, str], None]


@dataclass
class Report:
    """What became of each source."""

    done: list[tuple[Path, str]] = field(default_factory=list)
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


def run(
    sources: list[Path],
    folder: Path,
    suffix: str,
    work: Work,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """``work`` on each source, to ``folder / (stem + suffix)``. Errors of ours are noted, not raised."""
    folder.mkdir(parents=True, exist_ok=True)
    report = Report()
    for i, source in enumerate(sources):
        target = folder / (source.stem + suffix)
        if target.exists() and not overwrite:
            report.skipped.append(source)
        else:
            try:
                report.done.append((source, work(source, target)))
            except RdquantError as error:
                report.failed.append((source, str(error)))
        if progress:
            progress(i + 1, len(sources), source.name)
    return report
