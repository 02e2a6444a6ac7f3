"""Verbs that make a model run elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import UsageError
from .common import Json, app

PANEL = "Deploy"


@app.command(rich_help_panel=PANEL)
def export(
    model: Annotated[str, typer.Argument(help="An integer model file or zoo name.")],
    to: Annotated[str, typer.Option(help="onnx or openvino.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the networks and report.json.")],
    network: Annotated[
        list[str] | None, typer.Option(help="Networks to export; default: analysis and synthesis.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write networks as standard quantized graphs for other engines, with this model's own integers.

    The table says which operations have 8 bits there and which stay in float. Symbols are still coded by
    rdquant: `rdquant decode --engine` does all of it.
    """
    from importlib.util import find_spec

    from ..files.integer_models import load_integer
    from ..zoo import model_path

    if to not in ("onnx", "openvino"):
        raise UsageError(f"--to must be onnx or openvino, got {to!r}")
    needed = ("onnx",) if to == "onnx" else ("onnx", "openvino")
    if missing := [package for package in needed if find_spec(package) is None]:
        raise UsageError(f"exporting to {to} needs {', '.join(missing)}: pip install rdquant[deploy]")
    from ..export.model import FREE, export_codec

    report = export_codec(load_integer(model_path(model)), to, out, tuple(network or FREE))  # type: ignore
    if as_json:
        console.show_json(report)
        return
    for name, found in report.items():
        rows = [[o["node"], o["operation"], o["form"], o["why"]] for o in found["operations"]]
        share = found["int8 share of multiplications"]
        console.show_table(
            f"{name}: {share:.0%} of multiplications in int8", ("node", "", "form", "why"), rows
        )
    console.say(f"{out}: {', '.join(report)}")
