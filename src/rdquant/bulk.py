"""Coding of many pictures: what is done with each file and each shard, here or on other machines.

`Encoding` and `Decoding` are options, which can be pickled; models are opened by whoever codes first.
"""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from .coder import ImageCoder, coded
from .errors import ImageError, RdquantError
from .files import images
from .files.atomic import atomic_write, read_file
from .files.container import Header, Limits, read
from .files.shards import is_shard, open_shard
from .load import coder_for, open_coder
from .quality import check_target


class Coding(Protocol):
    """Files with one of ``suffixes`` become files with ``suffix``, shards of them shards."""

    suffixes: ClassVar[set[str]]

    @property
    def suffix(self) -> str: ...

    def file(self, source: Path, target: Path) -> dict[str, Any]:
        """One file, and what there is to say about it."""

    def sample(self, name: str, content: bytes) -> tuple[bytes, int, int]:
        """Of a shard: its new content, bytes of the coded picture, and pixels."""


class _Coders:
    """Coders by what they are asked for, opened once. Pickled empty."""

    def __init__(self) -> None:
        self._opening, self._open = threading.Lock(), dict[Any, ImageCoder]()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _Coders, ()

    def get(self, key: Any, opening: Any) -> ImageCoder:
        with self._opening:
            if key not in self._open:
                self._open[key] = opening()
            return self._open[key]


@dataclass(frozen=True)
class Encoding:
    """Pictures to .rdq files. Options are those of `rdquant.encode`."""

    model: str
    reading: images.Reading = field(default_factory=images.Reading)
    quantizer: str | None = None
    step: float | None = None
    effort: int = 0
    quality: float | None = None
    target_bpp: float | None = None
    target_size: int | None = None
    pixel_checksum: bool = False
    _coders: _Coders = field(default_factory=_Coders, compare=False)

    suffixes: ClassVar[set[str]] = images.SUFFIXES
    suffix = ".rdq"

    def __post_init__(self) -> None:
        check_target(self.quality, self.target_bpp, self.target_size)

    def _coded(self, picture: images.Picture) -> bytes:
        coder = self._coders.get(
            None, lambda: open_coder(self.model, self.quantizer, self.step, self.effort, self.quality)
        )
        wanted = self.target_bpp, self.target_size, self.pixel_checksum
        return coded(coder, picture.rgb, picture.sections, *wanted)

    def file(self, source: Path, target: Path) -> dict[str, Any]:
        picture = images.read_picture(source, self.reading)
        start = time.perf_counter()
        data = self._coded(picture)
        with atomic_write(target) as handle:
            handle.write(data)
        height, width = picture.rgb.shape[:2]
        return {
            "source": str(source), "file": str(target), "width": width, "height": height,
            "bytes": len(data), "bpp": 8 * len(data) / (height * width),
            "seconds": time.perf_counter() - start,
        }  # fmt: skip

    def sample(self, name: str, content: bytes) -> tuple[bytes, int, int]:
        picture = images.picture_in(content, self.reading, name)
        data = self._coded(picture)
        return data, len(data), picture.rgb[..., 0].size


@dataclass(frozen=True)
class Decoding:
    """.rdq files to pictures. Options are those of `rdquant.decode`; ``model``: None for the file's own;
    ``suffix``: of pictures that are not named.
    """

    model: str | None = None
    limits: Limits = field(default_factory=Limits)
    engine: str = "exact"
    suffix: str = ".png"
    _coders: _Coders = field(default_factory=_Coders, compare=False)

    suffixes: ClassVar[set[str]] = {".rdq"}

    def __post_init__(self) -> None:
        images.format_of(self.suffix)

    def _decoded(self, data: bytes) -> tuple[np.ndarray, Header, float]:
        """Pixels, header, and seconds without loading the model."""
        header, _ = read(data, self.limits)
        key = b"" if self.model else header.fingerprint
        coder = self._coders.get(
            key, lambda: open_coder(self.model) if self.model else coder_for(header.fingerprint)
        )
        start = time.perf_counter()
        pixels = coder.decode(data, self.limits, self.engine)  # type: ignore[arg-type]
        return pixels, header, time.perf_counter() - start

    def file(self, source: Path, target: Path) -> dict[str, Any]:
        pixels, header, seconds = self._decoded(read_file(source))
        start = time.perf_counter()
        lost = images.write_image(target, pixels, header.sections)
        return {
            "source": str(source), "file": str(target), "width": header.width, "height": header.height,
            "left_out": lost, "seconds": seconds + time.perf_counter() - start,
        }  # fmt: skip

    def sample(self, name: str, content: bytes) -> tuple[bytes, int, int]:
        pixels, header, _ = self._decoded(content)
        whole = io.BytesIO()
        images.save_image(whole, self.suffix, pixels, header.sections)
        return whole.getvalue(), len(content), pixels[..., 0].size


def target_name(coding: Coding, source: Path) -> str:
    return source.name if is_shard(source) else source.stem + coding.suffix


def code(coding: Coding, source: Path, target: Path) -> dict[str, Any]:
    """A file or a shard. Of a shard, a picture that cannot be coded is left out, and named in ``lost``."""
    if not is_shard(source):
        return coding.file(source, target)
    start, sizes, pixels, lost = time.perf_counter(), list[int](), 0, list[str]()

    def change(name: str, content: bytes) -> bytes | None:
        nonlocal pixels
        try:
            changed, size, count = coding.sample(name, content)
        except RdquantError as error:
            lost.append(str(error) if name in str(error) else f"{name}: {error}")
            return None
        sizes.append(size)
        pixels += count
        return changed

    shard = open_shard(source, coding.suffixes)
    if not shard.count():
        raise ImageError(f"no pictures in {source} (looked for {', '.join(sorted(coding.suffixes))})")
    shard.rewrite(target, coding.suffix, change)
    return {
        "source": str(source), "file": str(target), "pictures": len(sizes), "lost": lost,
        "bytes": sum(sizes), "bpp": 8 * sum(sizes) / max(1, pixels), "seconds": time.perf_counter() - start,
    }  # fmt: skip


@dataclass(frozen=True)
class CodingStudy:
    """Cells ``(source, target)`` for `rdquant.study.executor`, whose results are records."""

    coding: Coding
    folder: Path  #: of records

    def path(self, cell: tuple[Path, Path]) -> Path:
        return self.folder / f"{cell[1].name}.json"

    def label(self, cell: tuple[Path, Path]) -> str:
        return cell[0].name

    def preparation(self, cell: tuple[Path, Path]) -> None:
        return None

    def make(self, cell: tuple[Path, Path]) -> dict[str, Any]:
        """What cannot be coded is a result, too."""
        try:
            return code(self.coding, *cell)
        except RdquantError as error:
            return {"error": str(error)}
