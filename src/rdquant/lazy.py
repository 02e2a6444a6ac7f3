"""PyTorch for modules that are imported where nobody needs it: what codes pictures does without.

`torch` and `F` (torch.nn.functional) are imported when the first of their names is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import UsageError

#: package -> the extra of rdquant that brings it
EXTRAS = {
    "torch": "train",
    "scipy": "train",
    "pytorch_msssim": "train",
    "onnx": "deploy",
    "onnxruntime": "deploy",
    "openvino": "deploy",
    "imagecodecs": "anchors",
    "matplotlib": "report",
    "skimage": "report",
    "duckdb": "results",
    "ray": "scale",
}


@contextmanager
def extras() -> Iterator[None]:
    """Raises `UsageError`, which names the extra to install, where one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        raise UsageError(
            f"this needs {package}, which is not installed: pip install 'rdquant[{extra}]'"
        ) from None


class _Module:
    """A module that is imported with the first of its names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        with extras():
            return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:
    torch, F = _Module("torch"), _Module("torch.nn.functional")

__all__ = ["EXTRAS", "F", "extras", "torch"]
