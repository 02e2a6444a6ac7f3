"""Files of float models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codecs import FloatCodec, build
from ..errors import BadModel, RdquantError
from .model_file import VERSIONS, digest, read, write


def save_float(
    codec: FloatCodec, path: str | Path, description: dict[str, Any] | None = None, half: bool = True
) -> None:
    """Write a float codec; ``half`` stores float16 (the zoo's form), else float32."""
    dtype = torch.float16 if half else torch.float32
    tensors = {k: t.detach().cpu().to(dtype).numpy() for k, t in codec.state_dict().items()}
    for name, t in tensors.items():
        if not np.isfinite(t).all():
            raise BadModel(f"{name} is not finite" + (" in float16; store float32 instead" if half else ""))
    header = {
        "version": VERSIONS["float"][-1],
        "kind": "float",
        "structure": {"architecture": codec.architecture, **codec.options()},
        "description": description or {},
    }
    write(Path(path), header, tensors)


def load_float(path: str | Path) -> FloatCodec:
    """A float codec in evaluation mode, float32. Raises `UnknownModel` or `BadModel`."""
    header, tensors = read(Path(path))
    if header.get("kind") != "float":
        raise BadModel(f"{path} holds a {header.get('kind')!r} model; this needs a float one")
    try:
        options = dict(header["structure"])
        architecture = str(options.pop("architecture"))
        with torch.device("meta"):  # allocates nothing: the tensors of the file must be that large first
            expected = build(architecture, **options).state_dict()
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        RdquantError,
    ) as error:
        raise BadModel(f"{path}: bad structure: {error}") from None
    if missing := sorted(set(expected) ^ set(tensors)):
        raise BadModel(f"{path}: missing or unexpected tensors: {', '.join(missing[:5])}")
    for name, t in tensors.items():
        if t.shape != expected[name].shape:
            raise BadModel(f"{path}: {name} has shape {tuple(t.shape)}, needs {tuple(expected[name].shape)}")
        if t.dtype.kind != "f" or not np.isfinite(t.astype(np.float32)).all():
            raise BadModel(f"{path}: {name} must be finite floats")
    codec = build(architecture, **options)
    codec.load_state_dict({k: torch.from_numpy(t.astype(np.float32)) for k, t in tensors.items()})
    return codec.eval()


def float_fingerprint(codec: FloatCodec) -> bytes:
    """8 bytes that name a float codec's exact weights."""
    structure = {"kind": "float", "architecture": codec.architecture, **codec.options()}
    return digest(structure, {k: t.detach().cpu().numpy() for k, t in codec.state_dict().items()})
