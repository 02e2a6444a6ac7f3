"""What verbs share: the application, options that all or several have, and ``--set``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__, console, threads, zoo
from ..errors import UsageError

#: options of every verb
_EVERYWHERE = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Everywhere")
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", help="Say nothing but errors.", rich_help_panel="Everywhere")
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Where errors come from; time and memory.", rich_help_panel="Everywhere"
        ),
    ],
    "count": Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="That compute; default: all cores.", rich_help_panel="Everywhere"
        ),
    ],
    "device": Annotated[
        str | None,
        typer.Option(
            help="Of PyTorch, such as cuda, for integer networks: same files, same pixels.",
            rich_help_panel="Everywhere",
        ),
    ],
}


class Verbs(typer.Typer):
    """An application whose verbs all take the same options about output and threads."""

    def command(  # type: ignore[override]
        self, *args: Any, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        register = super().command(*args, **options)

        def note(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_everywhere(function))
            return function

        return note


def _everywhere(function: Callable[..., Any]) -> Callable[..., Any]:
    own = inspect.signature(function, eval_str=True)
    defaults = {"as_json": False, "quiet": False, "verbose": False, "count": None, "device": None}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in _EVERYWHERE.items()
    ]

    @functools.wraps(function)
    def verb(
        *args: Any,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        count: int | None,
        device: str | None,
        **rest: Any,
    ) -> None:
        vars(console.settings).update(json=as_json, quiet=quiet, verbose=verbose)
        logger = logging.getLogger("rdquant")
        logger.setLevel(logging.INFO)
        logger.handlers = [_Said()]
        if count is not None:
            threads.limit(count)
        if device is not None:
            os.environ["RDQUANT_ENGINE"] = f"torch:{device}"
        start = time.perf_counter()
        try:
            function(*args, **rest)
        finally:
            if verbose:
                console.say(f"{console.Seconds(time.perf_counter() - start)}{_peak()}")

    parameters = [*own.parameters.values(), *added]
    verb.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


class _Said(logging.Handler):
    """What the library logs, as the command line says things."""

    def emit(self, record: logging.LogRecord) -> None:
        console.say(record.getMessage())


def _peak() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    return f", at most {console.Size(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)} of memory"


def zoo_names(incomplete: str) -> list[str]:
    """What a shell offers for a model."""
    return [name for name in zoo.index() if name.startswith(incomplete)]


app = Verbs(
    help="Make a trained learned image codec shippable: integer, small, reproducible.\n\n"
    "With nothing but this package: `rdquant encode photo.png`, `rdquant decode photo.rdq`, and "
    "`rdquant inspect photo.rdq`. With a codec of your own: `rdquant import` a CompressAI checkpoint, "
    "`rdquant quantize` it, `rdquant evaluate` what that cost. A codec that CompressAI does not know is "
    "quantized from Python: `rdquant.quantize`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Quantizer = Annotated[
    str | None,
    typer.Option(
        help="Latent levels: uniform (nearest), rdoq (by D + lambda R), tcq4 or tcq8 (trellis-coded). "
        "Default: what the model was retrained for, else uniform."
    ),
]
Step = Annotated[float | None, typer.Option(help="Of TCQ, in steps of plain rounding.")]
Effort = Annotated[
    int,
    typer.Option(
        help="0 to 3: rounds of refining levels for this picture (0, 8, 16, 32); the decoder is as fast. 1 "
        "makes files of the default model 9 % smaller at equal PSNR (Kodak), in seconds instead of tenths; 2 "
        r"and 3 take two and four times as long. From 1 on it needs PyTorch: rdquant\[train]."
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace files that exist.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With several: files at a time, each with memory for a picture; default: one for each core, at "
        "most 4.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Work on a Ray cluster: its address, auto for the one running here, local for one of this "
        r"machine alone. Pictures and models have the same paths on all its machines. Needs rdquant\[scale]."
    ),
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


def free(target: Path, overwrite: bool) -> None:
    """Before any work: raises `UsageError` for a file that exists and is not to be replaced, or cannot be."""
    if target.is_file() and not overwrite:
        raise UsageError(f"{target} exists; --overwrite replaces it")
    if target.exists() and not target.is_file():
        raise UsageError(f"cannot write {target}: it is not a file")
    folder = next(path for path in target.absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {target}: {folder} is no folder that can be written")


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
