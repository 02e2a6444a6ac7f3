"""Files of integer models: packed, entropy-coded, checked. Layout: docs/format.md.

`rdquant.files.structure` takes a codec apart, `rdquant.files.storage` makes its tensors small.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import Codec
from ..errors import BadModel, UsageError
from ..graph.operations import Convolution
from . import version4
from .model_file import VERSIONS, digest, read, serialize, write
from .storage import SPREADS, compress, expand
from .structure import check_structure, put_together, take_apart


def _own_fingerprint(structure: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    return digest(structure, {k: t.astype(np.int64) for k, t in tensors.items()})


def integer_fingerprint(codec: Codec) -> bytes:
    """8 bytes that name an integer codec: its integers and tables, not its description.

    Models of version 4 go on being called what they were.
    """
    own = _own_fingerprint(*take_apart(codec))
    return codec.known_as.get(own, own)


def _contents(codec: Codec) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not codec.integer:
        raise UsageError(f"{codec.architecture} is a float codec; quantize it first")
    codec.check()
    structure, tensors = take_apart(codec)
    header = {
        "version": VERSIONS["integer"][-1],
        "kind": "integer",
        "structure": structure,
        "description": codec.description,
    }
    return header, compress(structure, tensors)


def save_integer(codec: Codec, path: str | Path) -> None:
    """Write an integer codec: weights coded or packed, other tensors in the narrowest type, all of it in
    gzip.

    Raises `UsageError` for what was loaded from a file of version 4 and is unchanged: in version 5 it would
    have another fingerprint, and pictures would not find it.
    """
    if codec.known_as and _own_fingerprint(*take_apart(codec)) in codec.known_as:
        raise UsageError("this model is from a file of version 4; copy that file to keep its fingerprint")
    write(Path(path), *_contents(codec), compressed=True)


def file_bytes(codec: Codec) -> int:
    """Size of the file that `save_integer` would write."""
    return len(serialize(*_contents(codec), compressed=True))


def stored_bytes(codec: Codec) -> dict[str, int]:
    """Of those, before gzip, what each tensor takes, by its name in the file."""
    return {name: t.nbytes for name, t in _contents(codec)[1].items()}


def weight_bytes(codec: Codec) -> dict[str, int]:
    """Of those, what each convolution's weights take, spreads and levels included."""
    sizes = stored_bytes(codec)
    nodes = [name for graph in codec.networks.values() for name in graph.names(Convolution)]
    return {n: sum(sizes.get(f"{n}.{part}", 0) for part in ("weight", "levels", *SPREADS)) for n in nodes}


def load_integer(path: str | Path) -> Codec:
    """An integer codec, every bound of the contract checked. Raises `UnknownModel` or `BadModel`."""
    header, tensors = read(Path(path))
    if header.get("kind") != "integer":
        raise BadModel(f"{path} holds a {header.get('kind')!r} model; this needs a quantized one")
    for name, t in tensors.items():
        if t.dtype.kind not in "iu":
            raise BadModel(f"{path}: {name} is {t.dtype}; an integer model holds integers only")
    try:
        return _load(header, tensors)
    except KeyError as error:
        raise BadModel(f"{path}: missing {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise BadModel(f"{path}: bad structure: {error}") from None
    except BadModel as error:
        raise BadModel(f"{path}: {error}") from None


def _load(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Codec:
    before, old = header["structure"], header["version"] == 4
    structure, stored = version4.translate(before, tensors) if old else (before, tensors)
    check_structure(structure)
    whole = expand(structure, stored)
    codec = put_together(structure, whole, header.get("description", {}))
    codec.check()
    if not old:
        return codec
    version4.check(before, codec)
    name = version4.fingerprint(before, whole, tensors["latent_shift"])
    return dataclasses.replace(codec, known_as={_own_fingerprint(structure, whole): name})
