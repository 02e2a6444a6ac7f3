"""numba as the kernels of rdquant import it.

With its first compiled function, numba imports scipy where that is installed, for algebra that no kernel here
does: a fifth of a second. It is told that there is none.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from numba import njit

__all__ = ["njit"]


def _missing() -> None:
    raise ImportError("not looked for")


with contextlib.suppress(ImportError, AttributeError):  # where numba has come to look elsewhere, it may
    linalg: Any = importlib.import_module("numba.np.linalg")
    found, linalg.ensure_blas = linalg.ensure_blas, _missing
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = found
