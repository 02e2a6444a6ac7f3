"""What verbs do with one file, with many, and with shards of them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import console
from ..errors import UsageError
from .common import free

if TYPE_CHECKING:
    from ..batch import Report
    from ..bulk import Coding


def each(
    coding: Coding, sources: list[Path], out: Path | None, overwrite: bool, jobs: int | None, ray: str | None
) -> None:
    """One file, whose error ends the command, or many, whose errors are reported."""
    from .. import batch, bulk
    from ..files import shards
    from ..files.atomic import STREAM

    if len(sources) == 1 and not sources[0].is_dir() and not shards.is_shard(sources[0]):
        target = out or (STREAM if sources[0] == STREAM else sources[0].with_suffix(coding.suffix))
        target = target / bulk.target_name(coding, sources[0]) if target.is_dir() else target
        free(target, overwrite)
        if target == STREAM and console.settings.json:
            raise UsageError("--json and the file would both go to standard output; name a file with --out")
        _show(batch.Report([(sources[0], coding.file(sources[0], target))]), summary=False)
        return
    found = batch.collect(sources, coding.suffixes | shards.SUFFIXES)
    folders = {f.parent for f in found}
    if out is None and len(folders) > 1:
        raise UsageError(f"the files are in {len(folders)} folders; name one for the results with --out")
    folder = out or folders.pop()
    if same := [f for f in found if shards.is_shard(f) and (folder / f.name).resolve() == f.resolve()]:
        raise UsageError(f"{same[0]} would be written over itself; name another folder with --out")
    name, work = functools.partial(bulk.target_name, coding), functools.partial(bulk.code, coding)
    with console.progress(coding.suffix) as update:
        if ray is None:
            report = batch.run(found, folder, name, work, overwrite, update, jobs or batch.JOBS)
        else:
            report = _on_ray(coding, found, folder, overwrite, update, jobs, ray)
    for source, record in report.done:
        report.failed += [(source, f"{source}, {why}") for why in record.get("lost", ())]
    _show(report)
    if report.failed:
        raise typer.Exit(1)


def _on_ray(
    coding: Coding, found: list[Path], folder: Path, overwrite: bool, update: Any, jobs: int | None, ray: str
) -> Report:
    from .. import batch, bulk
    from ..study import executor

    targets, skipped = batch.to_do(found, folder, functools.partial(bulk.target_name, coding), overwrite)
    cells = list(targets.items())
    with tempfile.TemporaryDirectory() as records:
        recipe = functools.partial(bulk.CodingStudy, coding, Path(records))
        results = executor.run(recipe(), recipe, cells, jobs, ray, update)
    made = [(source, record) for (source, _), record in zip(cells, results, strict=True)]
    return batch.Report(
        done=[(s, r) for s, r in made if "error" not in r], skipped=skipped,
        failed=[(s, r["error"]) for s, r in made if "error" in r],
    )  # fmt: skip


def _show(report: Report, summary: bool = True) -> None:
    if console.settings.json:
        failed = [{"source": str(source), "error": why} for source, why in report.failed]
        done = [record for _, record in report.done]
        console.show_json({"done": done, "skipped": list(map(str, report.skipped)), "failed": failed})
    else:
        for _, record in report.done:
            console.say(f"{record['file']}: {_line(record)}")
        if summary:
            console.say(report.summary())
    for source, why in report.failed:
        console.error(why if str(source) in why else f"{source}: {why}")


def _line(r: dict[str, Any]) -> str:
    seconds = console.Seconds(r["seconds"])
    if "bytes" not in r:
        lost = f", {' and '.join(r['left_out'])} left out: it has no place" if r["left_out"] else ""
        return f"{r['width']}x{r['height']}, {seconds}{lost}"
    count = f"{r['pictures']} pictures, " if "pictures" in r else ""
    return f"{count}{console.Size(r['bytes'])}, {r['bpp']:.3f} bpp, {seconds}"
