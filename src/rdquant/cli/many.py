"""What verbs do with one file, with many, and with shards of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from .. import console
from ..errors import RdquantError, UsageError

#: source, target -> what there is to say about it
Work = Callable[[Path, Path], dict[str, Any]]
#: name and content of a sample -> its new content, and pixels
Sample = Callable[[str, bytes], tuple[bytes, int]]


def each(
    sources: list[Path],
    suffixes: set[str],
    suffix: str,
    work: Work,
    sample: Sample,
    line: Callable[[dict[str, Any]], str],
    out: Path | None,
    overwrite: bool,
    jobs: int,
) -> None:
    """``work`` on one file, whose error ends the command, or on many, whose errors are reported; on what is
    in shards ``sample``, from name and content to content and pixels.
    """
    from .. import batch
    from ..files import shards
    from ..files.atomic import STREAM

    if len(sources) == 1 and not sources[0].is_dir() and not shards.is_shard(sources[0]):
        target = out or (STREAM if sources[0] == STREAM else sources[0].with_suffix(suffix))
        target = target / (sources[0].stem + suffix) if target.is_dir() else target
        if target.is_file() and not overwrite:
            raise UsageError(f"{target} exists; --overwrite replaces it")
        if target == STREAM and console.settings.json:
            raise UsageError("--json and the file would both go to standard output; name a file with --out")
        record = work(sources[0], target)
        if console.settings.json:
            console.show_json({"done": [record], "skipped": [], "failed": []})
        else:
            console.say(line(record))
        return
    found = batch.collect(sources, suffixes | shards.SUFFIXES)
    folders = {f.parent for f in found}
    if out is None and len(folders) > 1:
        raise UsageError(f"the files are in {len(folders)} folders; name one for the results with --out")
    folder = out or folders.pop()
    if same := [f for f in found if shards.is_shard(f) and (folder / f.name).resolve() == f.resolve()]:
        raise UsageError(f"{same[0]} would be written over itself; name another folder with --out")

    def name(source: Path) -> str:
        return source.name if shards.is_shard(source) else source.stem + suffix

    def any_work(source: Path, target: Path) -> dict[str, Any]:
        return (
            _shard(source, target, suffixes, suffix, sample)
            if shards.is_shard(source)
            else work(source, target)
        )

    with console.progress(suffix) as update:
        report = batch.run(found, folder, name, any_work, overwrite, update, jobs)
    for source, record in report.done:
        report.failed += [(source, f"{source}, {why}") for why in record.get("lost", ())]
    if console.settings.json:
        failed = [{"source": str(source), "error": why} for source, why in report.failed]
        done = [record for _, record in report.done]
        console.show_json({"done": done, "skipped": list(map(str, report.skipped)), "failed": failed})
    else:
        for _, record in report.done:
            console.say(_shard_line(record) if "pictures" in record else line(record))
        console.say(report.summary())
    for source, why in report.failed:
        console.error(why if str(source) in why else f"{source}: {why}")
    if report.failed:
        raise typer.Exit(1)


def _shard(
    source: Path,
    target: Path,
    suffixes: set[str],
    suffix: str,
    sample: Sample,
) -> dict[str, Any]:
    """Of what is in a shard: a picture that cannot be coded is left out, and named in ``lost``."""
    from ..files.shards import open_shard

    start, sizes, pixels, lost = time.perf_counter(), [0], [0], []

    def change(name: str, content: bytes) -> bytes | None:
        try:
            changed, count = sample(name, content)
        except RdquantError as error:
            lost.append(str(error) if name in str(error) else f"{name}: {error}")
            return None
        sizes.append(len(content if suffix == ".png" else changed))
        pixels.append(count)
        return changed

    open_shard(source, suffixes).rewrite(target, suffix, change)
    return {
        "source": str(source), "file": str(target), "pictures": len(sizes) - 1, "lost": lost,
        "bytes": console.Size(sum(sizes)), "bpp": 8 * sum(sizes) / max(1, sum(pixels)),
        "seconds": console.Seconds(time.perf_counter() - start),
    }  # fmt: skip


def _shard_line(r: dict[str, Any]) -> str:
    return f"{r['file']}: {r['pictures']} pictures, {r['bytes']}, {r['bpp']:.3f} bpp, {r['seconds']}"
