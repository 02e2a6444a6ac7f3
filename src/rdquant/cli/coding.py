"""Verbs that code pictures: encode, decode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import zoo
from .common import Effort, Jobs, Overwrite, Quantizer, Ray, Step, app, zoo_names
from .many import each

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
        str | None, typer.Option(help="The highest quality with at most so much a file: 30kB or bytes.")
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
    overwrite: Overwrite = False,
    jobs: Jobs = None,
    ray: Ray = None,
) -> None:
    """Compress pictures to .rdq files; - is standard input and output.

    With several pictures or a folder, a bad picture does not stop the others (exit code 1 tells), and
    files that exist are skipped, so that the same command resumes. A shard of pictures becomes a shard of
    .rdq files, with labels and whatever else is in it.
    """
    from ..bulk import Encoding
    from ..files.images import Reading
    from ..quality import bytes_in

    most = None if target_size is None else bytes_in(target_size)
    reading = Reading(colour, background, exif)  # type: ignore[arg-type]
    coding = Encoding(model, reading, quantizer, step, effort, quality, target_bpp, most, pixel_checksum)
    each(coding, images, out, overwrite, jobs, ray)


@app.command(rich_help_panel=PANEL)
def decode(
    files: Annotated[list[Path], typer.Argument(help=".rdq files, or folders or shards of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, or - ; for several a folder. Default: beside each."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Of pictures that --out does not name: png, ppm, tiff, webp, jpg.")
    ] = "png",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Its file, of a model that the zoo does not have.")
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger pictures.")] = 2**28,
    engine: Annotated[
        str,
        typer.Option(
            help="What makes the pixels: exact, the same on every machine; or, 1 off here and there: "
            r"openvino or onnx (rdquant\[deploy]), torch; auto takes openvino where it is installed."
        ),
    ] = "exact",
    overwrite: Overwrite = False,
    jobs: Jobs = None,
    ray: Ray = None,
) -> None:
    """Decode .rdq files to pictures; - is standard input and output.

    With several files or a folder, a damaged file does not stop the others (exit code 1 tells), and
    pictures that exist are skipped, so that the same command resumes.
    """
    from ..bulk import Decoding
    from ..files.container import Limits

    coding = Decoding(model, Limits(pixels=max_pixels), engine, f".{format_.removeprefix('.')}")
    each(coding, files, out, overwrite, jobs, ray)
