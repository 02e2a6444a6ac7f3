"""Verbs that code pictures: encode, decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console, zoo
from ..batch import JOBS
from ..errors import UsageError
from .common import Effort, Jobs, Quantizer, Step, app, zoo_names

PANEL = "Code pictures"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A model file or a zoo name (`rdquant zoo`).", autocompletion=zoo_names
    ),
]


@app.command(rich_help_panel=PANEL)
def encode(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any size that Pillow reads, or folders.")],
    model: Model = zoo.DEFAULT,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, or - ; for several pictures a folder. Default: beside each."),
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
    files that exist are skipped, so that the same command resumes.
    """
    from ..files.atomic import atomic_write
    from ..files.container import bytes_of, with_sections
    from ..files.images import SUFFIXES, Reading, read_picture
    from ..load import open_coder

    if sum(v is not None for v in (quality, target_bpp, target_size)) > 1:
        raise UsageError("give one of --quality, --target-bpp and --target-size")
    for name, value in (("bpp", target_bpp), ("size", target_size)):
        if value is not None and not value > 0:
            raise UsageError(f"--target-{name} must be positive, got {value}")
    reading = Reading(colour, background, exif)  # type: ignore[arg-type]
    coder, opening = None, threading.Lock()

    def work(source: Path, target: Path) -> dict[str, Any]:
        nonlocal coder
        picture = read_picture(source, reading)
        rgb = picture.rgb
        with opening:
            coder = coder or open_coder(model, quantizer, step, effort, quality)
        start = time.perf_counter()
        most = target_size if target_bpp is None else target_bpp * rgb[..., 0].size / 8
        if most is None:
            data = coder.encode(rgb, pixel_checksum)
        else:
            data = coder.encode_to_size(rgb, most - bytes_of(picture.sections), pixel_checksum)
        if picture.sections:
            data = with_sections(data, picture.sections)
        with atomic_write(target) as handle:
            handle.write(data)
        height, width = rgb.shape[:2]
        return {
            "source": str(source), "file": str(target), "width": width, "height": height,
            "bytes": console.Size(len(data)), "bpp": 8 * len(data) / (height * width),
            "seconds": console.Seconds(time.perf_counter() - start),
        }  # fmt: skip

    def line(r: dict[str, Any]) -> str:
        return f"{r['file']}: {r['bytes']}, {r['bpp']:.3f} bpp, {r['seconds']}"

    _each(images, SUFFIXES, ".rdq", work, line, out, overwrite, jobs)


@app.command(rich_help_panel=PANEL)
def decode(
    files: Annotated[list[Path], typer.Argument(help=".rdq files, or folders of them.")],
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
    from ..files.images import write_image
    from ..load import coder_for, open_coder

    limits = Limits(pixels=max_pixels)
    coders: dict[bytes, ImageCoder] = {}
    opening = threading.Lock()

    def work(source: Path, target: Path) -> dict[str, Any]:
        data = read_file(source)
        header, _ = read(data, limits)
        key = b"" if model else header.fingerprint
        with opening:
            if key not in coders:
                coders[key] = open_coder(model) if model else coder_for(header.fingerprint)
        start = time.perf_counter()
        pixels = coders[key].decode(data, limits, engine)  # type: ignore[arg-type]
        lost = write_image(target, pixels, header.sections)
        return {
            "source": str(source), "file": str(target), "width": header.width, "height": header.height,
            "left_out": lost, "seconds": console.Seconds(time.perf_counter() - start),
        }  # fmt: skip

    def line(r: dict[str, Any]) -> str:
        lost = f", {' and '.join(r['left_out'])} left out: it has no place" if r["left_out"] else ""
        return f"{r['file']}: {r['width']}x{r['height']}, {r['seconds']}{lost}"

    _each(files, {".rdq"}, ".png", work, line, out, overwrite, jobs)


def _each(
    sources: list[Path],
    suffixes: set[str],
    suffix: str,
    work: Callable[[Path, Path], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    out: Path | None,
    overwrite: bool,
    jobs: int,
) -> None:
    """``work`` on one file, whose error ends the command, or on many, whose errors are reported."""
    from .. import batch
    from ..files.atomic import STREAM

    if len(sources) == 1 and not sources[0].is_dir():
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
    found = batch.collect(sources, suffixes)
    folders = {f.parent for f in found}
    if out is None and len(folders) > 1:
        raise UsageError(f"the files are in {len(folders)} folders; name one for the results with --out")
    with console.progress(suffix) as update:
        report = batch.run(found, out or folders.pop(), suffix, work, overwrite, update, jobs)
    if console.settings.json:
        failed = [{"source": str(source), "error": why} for source, why in report.failed]
        done = [record for _, record in report.done]
        console.show_json({"done": done, "skipped": list(map(str, report.skipped)), "failed": failed})
    else:
        for _, record in report.done:
            console.say(line(record))
        console.say(report.summary())
    for source, why in report.failed:
        console.error(why if str(source) in why else f"{source}: {why}")
    if report.failed:
        raise typer.Exit(1)
