"""What all verbs share: the application, options that several have, and ``--set``."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import UsageError

app = typer.Typer(
    help="Make a trained learned image codec shippable: integer, small, reproducible.\n\n"
    "With nothing but this package: `rdquant encode photo.png`, `rdquant decode photo.rdq`, and "
    "`rdquant inspect photo.rdq`. With a codec of your own: `rdquant import` a CompressAI checkpoint, "
    "`rdquant quantize` it, `rdquant evaluate` what that cost. A codec that CompressAI does not know is "
    "quantized from Python: `rdquant.quantize`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quantizer = Annotated[
    str | None,
    typer.Option(
        help="Latent levels: uniform (nearest), rdoq (by D + lambda R), tcq4 or tcq8 (trellis-coded). "
        "Default: what the model was retrained for, else uniform."
    ),
]
Step = Annotated[float | None, typer.Option(help="Of TCQ, in steps of plain rounding.")]
Effort = Annotated[
    int | None,
    typer.Option(
        help="0 to 3: rounds of refining levels for this picture (0, 4, 12, 32); the decoder is as fast. "
        "Default: 1 for models retrained for rdoq or tcq, else 0."
    ),
]
Jobs = Annotated[
    int,
    typer.Option(min=1, help="With several: files at a time, each with memory for a picture."),
]


def _version(show: bool) -> None:
    if show:
        print(f"rdquant {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def options_of(items: list[str] | None, kinds: tuple[type, ...]) -> dict[type, dict[str, Any]]:
    """``NAME=JSON`` strings, given to whichever dataclass has the field."""
    found: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    names = {kind: {f.name for f in dataclasses.fields(kind)} for kind in kinds}
    for item in items or []:
        name, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set takes NAME=VALUE, got {item!r}")
        owners = [kind for kind in kinds if name in names[kind]]
        if not owners:
            raise UsageError(
                f"--set: no option {name!r}; there are {', '.join(sorted(set().union(*names.values())))}"
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        found[owners[0]][name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return found
