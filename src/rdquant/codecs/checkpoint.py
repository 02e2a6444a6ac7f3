"""Reading CompressAI checkpoints: find the architecture and widths from the tensors alone.

Accepts ``.pth``/``.pth.tar`` (through ``torch.load(weights_only=True)``: nothing is executed) and
safetensors, a bare state dict or one under ``state_dict``/``model``, ``module.`` prefixes, and the
three spellings that CompressAI has used for the entropy bottleneck's parameters.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import BadModel, UnknownModel, UsageError
from . import ARCHITECTURES, build
from .base import FloatCodec
from .bottleneck import parameter_name

#: buffers that CompressAI stores and rdquant derives again
_DERIVED = re.compile(
    r"((^|\.)gaussian_conditional\.)|(_reparam\.)|(lower_bound\.bound$)|(\.(_offset|_quantized_cdf|_cdf_length|target|mask)$)"
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under CompressAI's current names. Raises `UnknownModel` or `BadModel`."""
    if not path.is_file():
        raise UnknownModel(f"no such checkpoint: {path}")
    data: Any
    try:
        if path.suffix == ".safetensors":
            data = load_file(str(path))
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.PickleError, RuntimeError, SafetensorError, ValueError, EOFError, OSError, KeyError) as e:
        if code := re.search(r"GLOBAL (\S+)", str(e)):
            raise BadModel(
                f"{path} cannot be read without running code from it ({code[1]}), so it is refused; save its "
                "state dict alone"
            ) from None
        raise BadModel(f"{path} is not a checkpoint of PyTorch or safetensors, or it is damaged") from None
    for key in ("state_dict", "model"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping):
        raise BadModel(f"{path} holds a {type(data).__name__}, not a state dict")
    tensors = {}
    for key, value in data.items():
        name = str(key).removeprefix("module.")
        if not isinstance(value, Tensor) or _DERIVED.search(name):
            continue
        before, bottleneck, own = name.rpartition("entropy_bottleneck.")
        tensors[before + bottleneck + (parameter_name(own) if bottleneck else own)] = value
    return tensors


def identify(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """``(architecture, options)``. Raises `BadModel` for anything but those we know."""
    for name, cls in ARCHITECTURES.items():
        try:
            options = cls.identify(tensors)
        except (KeyError, IndexError):
            continue
        if options is not None:
            return name, options
    raise BadModel(f"the checkpoint is of no architecture known here: {', '.join(ARCHITECTURES)}")


def import_checkpoint(path: Path) -> FloatCodec:
    """A float codec from a CompressAI checkpoint, in evaluation mode.

    Raises `UnknownModel` (no such file) or `BadModel` (pickled code, unknown architecture, missing,
    misshapen or not finite tensors; the first is named).
    """
    tensors = read_tensors(path)
    architecture, options = identify(tensors)
    try:
        codec = build(architecture, **options)
    except UsageError as error:
        raise BadModel(f"{path}: {error}") from None
    tensors = codec.renamed(tensors)
    expected = codec.state_dict()
    for name, like in expected.items():
        if name not in tensors:
            raise BadModel(f"{path}: {name} is missing")
        if tensors[name].shape != like.shape:
            raise BadModel(f"{path}: {name} is {tuple(tensors[name].shape)}, needs {tuple(like.shape)}")
        if not bool(torch.isfinite(tensors[name].float()).all()):
            raise BadModel(f"{path}: {name} is not finite")
    if unknown := sorted(set(tensors) - set(expected)):
        raise BadModel(f"{path}: unexpected tensors: {', '.join(unknown[:5])}")
    codec.load_state_dict({name: tensors[name].float() for name in expected})
    return codec.eval()
