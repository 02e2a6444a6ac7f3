"""Verbs that code pictures: encode, decode."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, zoo
from ..batch import JOBS
from ..errors import UsageError
from .common import Effort, Jobs, Quantizer, Step, app, zoo_names
from .many import each

if TYPE_CHECKING:
    import numpy as np

    from ..files.container import Header
    from ..files.images import Picture

PANEL = "Code pictures"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A model file or a zoo name (`rdquant zoo`).", autocompletion=zoo_names
    ),
]


@app.command(rich_help_panel=PANEL)
def encode(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures of any size that Pillow reads, folders, or shards: .tar (WebDataset), .parquet."
        ),
    ],
    model: Model = zoo.DEFAULT,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File, or - ; for several pictures or a shard a folder. Default: beside each."
        ),
    ] = None,
    quantizer: Quantizer = None,
    step: Step = None,
    effort: Effort = 0,
    quality: Annotated[
        float | None,
        typer.Option("--quality", "-q", help="1..100, of models for many rates; by default 50."),
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(help="The highest quality with at most so many bits a pixel.")
    ] = None,
    target_size: Annotated[
        int | None, typer.Option(help="The highest quality with at most so many bytes a file.")
    ] = None,
    pixel_checksum: Annotated[
        bool, typer.Option(help="Decode as well, and let the file carry a checksum of the picture.")
    ] = False,
    colour: Annotated[
        str,
        typer.Option(
            help="Of pictures with a colour profile: keep it in the file (unless it says sRGB), convert to "
            "srgb, or ignore it."
        ),
    ] = "keep",
    background: Annotated[
        str | None,
        typer.Option(help="A colour to lay transparent pixels on, such as white; else they are refused."),
    ] = None,
    exif: Annotated[bool, typer.Option(help="Keep EXIF: places and names are in it, too.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    jobs: Jobs = JOBS,
) -> None:
    """Compress pictures to .rdq files; - is standard input and output.

    With several pictures or a folder, a bad picture does not stop the others (exit code 1 tells), and
    files that exist are skipped, so that the same command resumes. A shard of pictures becomes a shard of
    .rdq files, with labels and whatever else is in it.
    """
    from ..files.atomic import atomic_write
    from ..files.container import bytes_of, with_sections
    from ..files.images import SUFFIXES, Reading, picture_in, read_picture
    from ..load import open_coder

    if sum(v is not None for v in (quality, target_bpp, target_size)) > 1:
        raise UsageError("give one of --quality, --target-bpp and --target-size")
    for name, value in (("bpp", target_bpp), ("size", target_size)):
        if value is not None and not value > 0:
            raise UsageError(f"--target-{name} must be positive, got {value}")
    reading = Reading(colour, background, exif)  # type: ignore[arg-type]
    coder, opening = None, threading.Lock()

    def coded(picture: Picture) -> bytes:
        nonlocal coder
        rgb = picture.rgb
        with opening:
            coder = coder or open_coder(model, quantizer, step, effort, quality)
        most = target_size if target_bpp is None else target_bpp * rgb[..., 0].size / 8
        if most is None:
            data = coder.encode(rgb, pixel_checksum)
        else:
            data = coder.encode_to_size(rgb, most - bytes_of(picture.sections), pixel_checksum)
        return with_sections(data, picture.sections) if picture.sections else data

    def work(source: Path, target: Path) -> dict[str, Any]:
        picture = read_picture(source, reading)
        start = time.perf_counter()
        data = coded(picture)
        with atomic_write(target) as handle:
            handle.write(data)
        height, width = picture.rgb.shape[:2]
        return {
            "source": str(source), "file": str(target), "width": width, "height": height,
            "bytes": console.Size(len(data)), "bpp": 8 * len(data) / (height * width),
            "seconds": console.Seconds(time.perf_counter() - start),
        }  # fmt: skip

    def line(r: dict[str, Any]) -> str:
        return f"{r['file']}: {r['bytes']}, {r['bpp']:.3f} bpp, {r['seconds']}"

    def sample(name: str, content: bytes) -> tuple[bytes, int]:
        picture = picture_in(content, reading, name)
        return coded(picture), picture.rgb[..., 0].size

    each(images, SUFFIXES, ".rdq", work, sample, line, out, overwrite, jobs)


@app.command(rich_help_panel=PANEL)
def decode(
    files: Annotated[list[Path], typer.Argument(help=".rdq files, or folders or shards of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, or - ; for several a folder. Default: beside each, .png."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Needed unless the zoo has the model.")
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger pictures.")] = 2**28,
    engine: Annotated[
        str,
        typer.Option(
            help="What makes the pixels: exact, the same on every machine; or, 1 off here and there: "
            "openvino or onnx (rdquant[deploy]), torch; auto takes openvino where it is installed."
        ),
    ] = "exact",
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    jobs: Jobs = JOBS,
) -> None:
    """Decode .rdq files to pictures; - is standard input and output.

    With several files or a folder, a damaged file does not stop the others (exit code 1 tells), and
    pictures that exist are skipped, so that the same command resumes.
    """
    from ..coder import ImageCoder
    from ..files.atomic import read_file
    from ..files.container import Limits, read
    from ..files.images import save_image, write_image
    from ..load import coder_for, open_coder

    limits = Limits(pixels=max_pixels)
    coders: dict[bytes, ImageCoder] = {}
    opening = threading.Lock()

    def decoded(data: bytes) -> tuple[np.ndarray, Header, float]:
        """Pixels, header, and seconds without loading the model."""
        header, _ = read(data, limits)
        key = b"" if model else header.fingerprint
        with opening:
            if key not in coders:
                coders[key] = open_coder(model) if model else coder_for(header.fingerprint)
        start = time.perf_counter()
        pixels = coders[key].decode(data, limits, engine)  # type: ignore[arg-type]
        return pixels, header, time.perf_counter() - start

    def work(source: Path, target: Path) -> dict[str, Any]:
        pixels, header, seconds = decoded(read_file(source))
        start = time.perf_counter()
        lost = write_image(target, pixels, header.sections)
        return {
            "source": str(source), "file": str(target), "width": header.width, "height": header.height,
            "left_out": lost, "seconds": console.Seconds(seconds + time.perf_counter() - start),
        }  # fmt: skip

    def line(r: dict[str, Any]) -> str:
        lost = f", {' and '.join(r['left_out'])} left out: it has no place" if r["left_out"] else ""
        return f"{r['file']}: {r['width']}x{r['height']}, {r['seconds']}{lost}"

    def sample(name: str, content: bytes) -> tuple[bytes, int]:
        pixels, header, _ = decoded(content)
        whole = io.BytesIO()
        save_image(whole, ".png", pixels, header.sections)
        return whole.getvalue(), pixels[..., 0].size

    each(files, {".rdq"}, ".png", work, sample, line, out, overwrite, jobs)
