"""The command line: one thin command per verb, in groups. ``rdquant --help`` teaches."""

from __future__ import annotations

import gc
import sys
import traceback
import warnings

from .. import console
from ..errors import RdquantError
from ..lazy import extras
from . import coding, exporting, measuring, models, quantizing, studies, training
from .common import app

#: the modules, whose import makes their verbs known, among them
__all__ = ["app", "coding", "exporting", "main", "measuring", "models", "quantizing", "studies", "training"]


def main() -> None:
    """Entry point: errors of ours are one line and exit code 2, warnings are one line."""
    gc.set_threshold(50_000, 20, 20)  # a start is imports, whose many objects stay
    warnings.showwarning = lambda message, *_: console.say(f"warning: {message}")
    try:
        with extras():
            app()
    except RdquantError as error:
        if console.settings.verbose:
            traceback.print_exc()
        console.error(str(error))
        sys.exit(2)
    finally:
        gc.freeze()  # or the interpreter's end would look through all that was imported
