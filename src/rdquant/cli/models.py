"""Verbs about models: zoo, import, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import console, zoo
from .common import Overwrite, app, free, zoo_names

PANEL = "Models"
#: what the zoo's index says of Kodak
MEASURED = ("bpp", "psnr", "ms_ssim")


@app.command("zoo", rich_help_panel=PANEL)
def zoo_command() -> None:
    """List the models shipped with rdquant and their measured rate-distortion on Kodak."""
    index = zoo.index()
    if console.settings.json:
        console.show_json(index)
        return
    columns = ("name", "kind", "lambda", "bpp", "PSNR dB", "MS-SSIM", "size", "fingerprint")
    rows = []
    for name, e in index.items():
        lambda_ = e["lambda"] if "lambda" in e else "{:g}..{:g}".format(*e["lambdas"])
        measured = map(e["kodak"].get, MEASURED)
        rows.append((name, e["kind"], lambda_, *measured, console.Size(e["bytes"]), e["fingerprint"]))
    console.show_table(
        "zoo (Kodak means, real files, effort 0; models for many rates in the middle)", columns, rows
    )


@app.command("import", rich_help_panel=PANEL)
def import_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A CompressAI checkpoint: .pth, .pth.tar or .safetensors.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model file to write.")],
    half: Annotated[bool, typer.Option(help="Store float16 instead of float32.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a CompressAI checkpoint into a model file. Nothing in it is executed.

    Architecture and widths are found from its tensors: bmshj2018-factorized(-relu), bmshj2018-hyperprior,
    mbt2018-mean, mbt2018, cheng2020-anchor, cheng2020-attn, elic2022-official, elic2022-chandelier.
    """
    from ..codecs.checkpoint import import_checkpoint
    from ..files.float_models import save_float

    free(out, overwrite)
    codec = import_checkpoint(checkpoint)
    save_float(codec, out, {"imported": checkpoint.name}, half=half)
    if console.settings.json:
        found = {"architecture": codec.architecture, **codec.options(), "bytes": out.stat().st_size}
        console.show_json({"file": str(out), **found})
        return
    options = ", ".join(f"{k}={v}" for k, v in codec.options().items())
    console.say(f"{out}: {codec.architecture}, {options}, {console.Size(out.stat().st_size)}")


@app.command("inspect", rich_help_panel=PANEL)
def inspect_command(
    target: Annotated[
        str,
        typer.Argument(help="An .rdq file, - , a model file or a zoo name.", autocompletion=zoo_names),
    ],
) -> None:
    """Show what is in a file: every header field; or the whole graph of an integer model, node by node, with
    operations, widths and ranges; or the parameters of a float model.
    """
    from ..files import container
    from ..files.atomic import STREAM

    path = STREAM if target == str(STREAM) else zoo.model_path(target)
    columns: tuple[str, ...] = container.COLUMNS
    if path == STREAM or container.is_container(path):
        found = container.inspect_container(path)
    else:
        from ..files import inspect

        found, columns = inspect.inspect_model(path), inspect.MODEL_COLUMNS
    if console.settings.json:
        console.show_json(found)
        return
    rows = found.pop("rows")
    for key, value in found.items():
        print(f"{key}: {json.dumps(value) if isinstance(value, dict) else value}")
    console.show_table("", columns, rows)
