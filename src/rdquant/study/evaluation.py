"""Evaluation picture by picture, stored as it goes: by processes, or on a Ray cluster.

Cells are pictures, or shards, of one model at one setting. Seconds are those of what runs beside other cells.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..coder import ImageCoder
from ..files.shards import ShardPictures, is_shard
from ..load import open_coder
from ..measure import evaluate
from ..measure.results import ImageResult
from . import executor

#: model, and picture or shard
Cell = tuple[str, Path]


@functools.lru_cache(maxsize=2)
def _opened(model: str, quantizer: str | None, step: float | None, effort: int) -> ImageCoder:
    return open_coder(model, quantizer, step, effort)


@dataclass(frozen=True)
class Evaluation:
    """The study; options as of `rdquant.evaluate`."""

    folder: Path  #: of results
    quantizer: str | None = None
    step: float | None = None
    effort: int = 0
    check: bool = True

    def coder(self, model: str) -> ImageCoder:
        return _opened(model, self.quantizer, self.step, self.effort)

    def path(self, cell: Cell) -> Path:
        """Named by the coder, what of it counts, and the picture's bytes."""
        model, file = cell
        said = json.dumps([self.coder(model).describe(), self.check, file.name], sort_keys=True)
        digest = hashlib.sha256(said.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
        return self.folder / f"{file.stem}-{digest.hexdigest()[:16]}.json"

    def label(self, cell: Cell) -> str:
        return f"{cell[0]}, {cell[1].name}"

    def preparation(self, cell: Cell) -> str:
        return cell[0]

    def make(self, cell: Cell) -> dict[str, Any]:
        model, file = cell
        files = ShardPictures([file]) if is_shard(file) else [file]
        found = evaluate(self.coder(model), files, self.check)
        return {"images": [dataclasses.asdict(image) for image in found]}


def evaluated(
    study: Evaluation,
    models: Sequence[str],
    files: Sequence[Path],
    jobs: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    say: Callable[[executor.Taken], None] | None = None,
) -> list[list[ImageResult]]:
    """By model, one result a picture, in order. Arguments and errors as of `rdquant.study.executor.run`."""
    study.folder.mkdir(parents=True, exist_ok=True)
    cells = [(model, file) for model in models for file in files]
    found = executor.run(study, functools.partial(_same, study), cells, jobs, ray, progress, say)
    images = [[ImageResult(**image) for image in result["images"]] for result in found]
    by_model = [images[i : i + len(files)] for i in range(0, len(images), len(files))]
    return [[image for part in parts for image in part] for parts in by_model]


def _same(study: Evaluation) -> Evaluation:
    return study
