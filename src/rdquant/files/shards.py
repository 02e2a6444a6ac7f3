"""Shards: many pictures in one file, as large data sets are stored.

A tar file (``.tar``) is what WebDataset reads: a sample is the members of one name up to the suffix, such as
``0017.png`` and ``0017.json``. A Parquet file (``.parquet``) has a sample a row; pictures are in the column
``image``, of bytes, or as Hugging Face writes them: of ``bytes`` and ``path``. Whatever is beside a picture
stays beside it. Samples stream through: memory is that of one, of a batch of `ROWS` in Parquet.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from ..errors import ImageError, UsageError
from . import images
from .atomic import atomic_write

#: name and content of a sample's picture -> what stands there instead; None leaves the sample out
Rewrite = Callable[[str, bytes], bytes | None]
COLUMN = "image"
#: of Parquet, in memory at a time
ROWS = 16

#: what files are shards
SUFFIXES = {".tar", ".parquet"}


class Shard(Protocol):
    """A file that is there. What it holds and is not read raises `ImageError`."""

    def count(self) -> int:
        """Of pictures."""

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each."""

    def rewrite(self, target: Path, suffix: str, change: Rewrite) -> None:
        """Write ``target``, in which pictures are changed and their names end in ``suffix``."""


class TarShard:
    def __init__(self, path: Path, suffixes: set[str]) -> None:
        self.path, self.suffixes = path, suffixes

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.path, "r:") as opened:
                yield opened
        except FileNotFoundError:
            raise UsageError(f"no such file: {self.path}") from None
        except tarfile.TarError as error:
            raise ImageError(f"{self.path} is not a tar file that can be read: {error}") from None

    def _is_picture(self, member: tarfile.TarInfo) -> bool:
        return member.isreg() and PurePosixPath(member.name).suffix.lower() in self.suffixes

    def _members(self, opened: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, bytes, bool]]:
        """Regular files with their contents, and whether each is a picture."""
        for member in opened:
            if handle := opened.extractfile(member) if member.isreg() else None:
                yield member, handle.read(), self._is_picture(member)

    def count(self) -> int:
        with self._opened() as opened:
            return sum(map(self._is_picture, opened))

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        with self._opened() as opened:
            yield from ((m.name, content) for m, content, picture in self._members(opened) if picture)

    def rewrite(self, target: Path, suffix: str, change: Rewrite) -> None:
        """Of a sample that is left out, members before its picture stay, as streaming has it."""
        left_out, coded = set[str](), set[str]()
        with (
            self._opened() as opened,
            atomic_write(target) as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as written,
        ):
            for member, content, picture in self._members(opened):
                name = PurePosixPath(member.name)
                key = member.name.removesuffix(name.suffix)
                if picture:
                    changed = change(member.name, content)
                    if changed is None:
                        left_out.add(key)
                        continue
                    member.name, content = key + suffix, changed
                    if member.name in coded:
                        raise ImageError(f"{self.path}: two pictures would be written as {member.name}")
                    coded.add(member.name)
                elif key in left_out:
                    continue
                member.size = len(content)
                member.pax_headers = {}
                written.addfile(member, io.BytesIO(content))


class ParquetShard:
    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UsageError("Parquet files need pyarrow: pip install 'rdquant[scale]'") from None
        self.path, self._parquet = path, pyarrow.parquet

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow

        try:
            with self._parquet.ParquetFile(self.path) as opened:
                if COLUMN not in opened.schema_arrow.names:
                    raise ImageError(
                        f"{self.path} has no column {COLUMN!r}: {', '.join(opened.schema_arrow.names)}"
                    )
                yield opened
        except FileNotFoundError:
            raise UsageError(f"no such file: {self.path}") from None
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ImageError(f"{self.path} is not a Parquet file that can be read: {error}") from None

    def _batches(self, opened: Any) -> Iterator[tuple[Any, list[tuple[str, bytes]]]]:
        """Rows, and name and content of each one's picture."""
        row = 0
        for batch in opened.iter_batches(batch_size=ROWS):
            found = []
            for cell in batch.column(COLUMN).to_pylist():
                given = cell if isinstance(cell, dict) else {"bytes": cell}
                name, content = given.get("path") or f"{row:06}", given.get("bytes")
                if not isinstance(content, bytes):
                    raise ImageError(f"{self.path}: row {row} has no bytes in its {COLUMN!r}")
                found.append((str(name), content))
                row += 1
            yield batch, found

    def count(self) -> int:
        with self._opened() as opened:
            return int(opened.metadata.num_rows)

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        with self._opened() as opened:
            for _, found in self._batches(opened):
                yield from found

    def rewrite(self, target: Path, suffix: str, change: Rewrite) -> None:
        import pyarrow

        with self._opened() as opened, atomic_write(target) as handle:
            schema = opened.schema_arrow
            place, kind = schema.get_field_index(COLUMN), schema.field(COLUMN).type
            with self._parquet.ParquetWriter(handle, schema) as writer:
                for batch, found in self._batches(opened):
                    changed = [change(name, content) for name, content in found]
                    kept = [i for i, content in enumerate(changed) if content is not None]
                    cells: list[Any] = [changed[i] for i in kept]
                    if pyarrow.types.is_struct(kind):
                        names = [str(PurePosixPath(found[i][0]).with_suffix(suffix)) for i in kept]
                        cells = [{"bytes": c, "path": n} for c, n in zip(cells, names, strict=True)]
                    rows = batch.take(pyarrow.array(kept, pyarrow.int64()))
                    column = pyarrow.array(cells, type=kind)
                    writer.write_batch(rows.set_column(place, schema.field(place), column))


def is_shard(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def open_shard(path: Path, suffixes: set[str]) -> Shard:
    """``suffixes``: what names of pictures end in (in Parquet, all are). Raises `UsageError`."""
    return ParquetShard(path) if path.suffix.lower() == ".parquet" else TarShard(path, suffixes)


class ShardPictures:
    """Pictures of shards to measure on, read as they come: names with ``(H, W, 3)`` uint8."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._shards = [open_shard(path, images.SUFFIXES) for path in paths]

    def __len__(self) -> int:
        return sum(shard.count() for shard in self._shards)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for shard in self._shards:
            for name, content in shard.pictures():
                yield name, images.picture_in(content, images.Reading(colour="ignore"), name).rgb


def pictures_at(path: Path) -> Sequence[Path] | ShardPictures:
    """Of a folder of pictures or of shards, or of a shard. Raises `UsageError` where there are none."""
    shards = [path] if is_shard(path) else sorted(filter(is_shard, path.iterdir())) if path.is_dir() else []
    if not shards:
        return images.list_images(path)
    if not len(found := ShardPictures(shards)):
        raise UsageError(f"no pictures in {path} (looked for {', '.join(sorted(images.SUFFIXES))})")
    return found
