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
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import BadModel, UnknownModel
from .atomic import atomic_write

#: that are read; the last of each is written
VERSIONS = {"float": (1,), "integer": (4, 5)}
#: a model file larger than this is refused before it is read
SIZE_LIMIT = 2**30
#: and so is one that holds more than this
UNZIPPED_LIMIT = 2**28
GZIP_MAGIC = b"\x1f\x8b"


def digest(structure: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    h = hashlib.sha256(json.dumps(structure, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name}:{array.dtype.name}:{list(array.shape)}:".encode())
        h.update(little.tobytes())
    return h.digest()[:8]


def serialize(header: dict[str, Any], tensors: dict[str, Tensor], compressed: bool) -> bytes:
    """The bytes of a model file."""
    data = to_safetensors({k: t.contiguous() for k, t in tensors.items()}, {"rdquant": json.dumps(header)})
    return gzip.compress(data, mtime=0) if compressed else data


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor], compressed: bool = False) -> None:
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


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a model file, in gzip or not. Raises `UnknownModel` and `BadModel`."""
    if not path.is_file():
        raise UnknownModel(f"no such model file: {path}")
    if path.stat().st_size > SIZE_LIMIT:
        raise BadModel(f"{path} has {path.stat().st_size} bytes, over the limit of {SIZE_LIMIT}")
    try:
        data = path.read_bytes()
        if data[:2] == GZIP_MAGIC:
            data = _unzip(path, data)
        tensors = from_safetensors(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{path} is not a safetensors file: {error}") from None
    try:
        header = json.loads(metadata["rdquant"])
    except (KeyError, ValueError, RecursionError):
        raise BadModel(f"{path} is a safetensors file without a readable rdquant header") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise BadModel(f"{path} has an rdquant header that does not say its kind")
    expected = VERSIONS.get(header["kind"])
    if expected is not None and header.get("version") not in expected:
        raise BadModel(
            f"{path} is a {header['kind']} model of format {header.get('version')!r}, "
            f"this release reads {', '.join(map(str, expected))}"
        )
    return header, tensors


def model_kind(path: Path) -> str:
    """``"float"`` or ``"integer"``. Raises `UnknownModel` or `BadModel`."""
    return str(read(path)[0].get("kind"))


def model_description(path: Path) -> dict[str, Any]:
    """What the file says of how the model was made, e.g. its ``lambda``."""
    found = read(path)[0].get("description")
    return found if isinstance(found, dict) else {}
