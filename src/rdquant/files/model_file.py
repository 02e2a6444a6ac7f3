"""Model files: safetensors for the numbers, one JSON object in its header for the rest.

Two kinds. ``float``: the parameters of a codec in training (`rdquant.files.float_models`). ``integer``: a
quantized `rdquant.codec.Codec`, integers only (`rdquant.files.integer_models`), the whole file in gzip.
Loading is a pure function of the file: nothing is unpickled, nothing is recomputed, and everything is checked
before it is used.

The fingerprint names a model in every image file: the first 8 bytes of SHA-256 over the canonical
JSON of the structure and over each tensor's name, type, shape and bytes. Descriptions do not enter.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from ..errors import BadModel, UnknownModel
from .atomic import atomic_write

#: that are read; the last of each is written
VERSIONS = {"float": (1,), "integer": (4, 5)}
#: a model file larger than this is refused before it is read
SIZE_LIMIT = 2**30
#: and so is one that holds more than this
UNZIPPED_LIMIT = 2**28
GZIP_MAGIC = b"\x1f\x8b"
#: how pickles begin, and what the first file in PyTorch's zip files is called
PICKLE_MAGIC, PICKLE_NAME = b"\x80", b"data.pkl"

T = TypeVar("T")


def digest(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    h = hashlib.sha256(json.dumps(structure, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name}:{array.dtype.name}:{list(array.shape)}:".encode())
        h.update(little.tobytes())
    return h.digest()[:8]


def serialize(header: dict[str, Any], tensors: dict[str, np.ndarray], compressed: bool) -> bytes:
    """The bytes of a model file."""
    data = to_safetensors(
        {k: np.asarray(t, order="C") for k, t in tensors.items()}, {"rdquant": json.dumps(header)}
    )
    return gzip.compress(data, mtime=0) if compressed else data


def write(
    path: Path, header: dict[str, Any], tensors: dict[str, np.ndarray], compressed: bool = False
) -> None:
    with atomic_write(path) as handle:
        handle.write(serialize(header, tensors, compressed))


def _unzip(path: Path, data: bytes) -> bytes:
    machine = zlib.decompressobj(wbits=31)
    try:
        out = machine.decompress(data, UNZIPPED_LIMIT)
    except zlib.error as error:
        raise BadModel(f"{path} is a damaged gzip file: {error}") from None
    if not machine.eof:
        if len(out) == UNZIPPED_LIMIT:
            raise BadModel(f"{path} holds more than {UNZIPPED_LIMIT} bytes")
        raise BadModel(f"{path} ends too early")
    if machine.unused_data:
        raise BadModel(f"{path}: {len(machine.unused_data)} byte(s) follow the end of the model")
    return out


def _metadata(data: bytes) -> dict[str, Any]:
    """Of a safetensors file, or of its beginning as far as tensors start. Raises `ValueError`."""
    found = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = found.get("__metadata__", {}) if isinstance(found, dict) else {}
    return metadata if isinstance(metadata, dict) else {}


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors; those of a file that is not in gzip are mapped, not read."""
    with path.open("rb") as handle:
        if handle.read(2) == GZIP_MAGIC:
            handle.seek(0)
            data = _unzip(path, handle.read())
            return _metadata(data), from_safetensors(data)
    with safe_open(path, framework="numpy") as opened:
        return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _start(path: Path) -> dict[str, Any]:
    """Metadata alone."""
    with path.open("rb") as handle:
        if handle.read(2) != GZIP_MAGIC:
            with safe_open(path, framework="numpy") as opened:
                return opened.metadata() or {}
    with gzip.open(path) as unzipped:
        size = unzipped.read(8)
        if int.from_bytes(size, "little") > UNZIPPED_LIMIT:
            raise BadModel(f"{path} holds more than {UNZIPPED_LIMIT} bytes")
        return _metadata(size + unzipped.read(int.from_bytes(size, "little")))


def is_checkpoint(path: Path) -> bool:
    """Whether PyTorch may have written a file."""
    with path.open("rb") as handle:
        start = handle.read(512)
    return start.startswith(PICKLE_MAGIC) or PICKLE_NAME in start


def _opened(path: Path, read: Callable[[Path], T]) -> T:
    """Raises `UnknownModel` and `BadModel`."""
    if not path.is_file():
        raise UnknownModel(f"no such model file: {path}")
    if path.stat().st_size > SIZE_LIMIT:
        raise BadModel(f"{path} has {path.stat().st_size} bytes, over the limit of {SIZE_LIMIT}")
    try:
        return read(path)
    except PermissionError as error:
        raise BadModel(f"cannot read {path}: {error.strerror}") from None
    except (
        SafetensorError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
        zlib.error,
    ):
        if is_checkpoint(path):
            raise BadModel(f"{path} is a PyTorch checkpoint; `rdquant import` makes a model of it") from None
        raise BadModel(f"{path} is not a model file, or it is damaged") from None


def _header(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Raises `BadModel` unless it is one of ours that is read."""
    try:
        header = json.loads(metadata["rdquant"])
    except (KeyError, ValueError, TypeError, RecursionError):
        raise BadModel(
            f"{path} is a safetensors file without a readable rdquant header; `rdquant import` takes one of "
            "CompressAI's"
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise BadModel(f"{path} has an rdquant header that does not say its kind")
    expected = VERSIONS.get(header["kind"])
    if expected is not None and header.get("version") not in expected:
        raise BadModel(
            f"{path} is a {header['kind']} model of format {header.get('version')!r}, "
            f"this release reads {', '.join(map(str, expected))}"
        )
    return header


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the tensors of a model file, in gzip or not. Raises `UnknownModel` and `BadModel`."""
    metadata, tensors = _opened(path, _contents)
    return _header(path, metadata), tensors


def model_kind(path: Path) -> str:
    """``"float"`` or ``"integer"``. Raises `UnknownModel` or `BadModel`."""
    return str(_header(path, _opened(path, _start)).get("kind"))


def model_description(path: Path) -> dict[str, Any]:
    """What the file says of how the model was made, e.g. its ``lambda``."""
    found = _header(path, _opened(path, _start)).get("description")
    return found if isinstance(found, dict) else {}
