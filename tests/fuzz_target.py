"""One input of the fuzzer: two bytes say how the rest is driven, and by which model. See benchmarks/fuzz.py.

Any bytes give a picture or an error of the documented tree; anything else is a finding.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from golden.make import HERE, MODELS
from rdquant import entropy
from rdquant.coder import ImageCoder
from rdquant.entropy import rans_reference
from rdquant.errors import BadModel, DecodeError
from rdquant.files.container import Limits, Profile, Quantizer, checksum, describe, write
from rdquant.files.integer_models import integer_fingerprint, load_integer
from rdquant.files.model_file import read
from rdquant.load import open_coder
from tiny import KINDS, make_coder

LIMITS = Limits(pixels=4096)


@functools.cache
def coders() -> list[ImageCoder]:
    golden = [open_coder(str(HERE / f"{name}.rdqm")) for name in MODELS]
    return [*golden, *(make_coder(kind) for kind in KINDS)]


def _answered(coder: ImageCoder, data: bytes) -> None:
    try:
        picture = coder.decode(data, LIMITS)
    except DecodeError:
        return
    assert picture.dtype == np.uint8 and picture.ndim == 3
    describe(data)


def file(coder: ImageCoder, data: bytes) -> None:
    """The bytes are a file."""
    _answered(coder, data)


def checksummed_header(coder: ImageCoder, data: bytes) -> None:
    """The bytes follow magic, version and fingerprint, with a right checksum after the first of them."""
    at = data[0] % 32 if data else 0
    head = b"RDQ\x01" + coder.fingerprint + data[1 : 1 + at]
    _answered(coder, head + checksum(head).to_bytes(4, "little") + data[1 + at :])


def streams(coder: ImageCoder, data: bytes) -> None:
    """The bytes are a size and two streams, in a file that is otherwise right."""
    width, height, split = (1 + b % 64 for b in data[:3].ljust(3, b"\0"))
    body = data[3:]
    z, y = (body[: 4 * split], body[4 * split :]) if coder.codec.prior.hyper else (b"", body)
    _answered(coder, write(coder.fingerprint, Profile.INTEGER, Quantizer.UNIFORM, width, height, (z, y)))


def entropy_coder(coder: ImageCoder, data: bytes) -> None:
    """The bytes are a count and a stream: kernel and reference must say the same."""
    tables = coder.codec.y_tables
    count = data[0] if data else 0
    indexes = np.arange(count, dtype=np.int32) * 7 % len(tables)
    stream = data[1:]
    found: list[object] = []
    for decode in (entropy.decode, rans_reference.decode):
        try:
            found.append([int(v) for v in decode(stream, indexes, tables)])  # type: ignore[operator]
        except DecodeError as error:
            found.append(type(error))
    assert found[0] == found[1], found
    if isinstance(found[0], list):
        assert entropy.encode(np.array(found[0], np.int32), indexes, tables) == stream


@functools.cache
def _model_parts(name: str) -> tuple[bytes, dict[str, np.ndarray]]:
    header, tensors = read(HERE / f"{name}.rdqm")
    return json.dumps(header).encode(), tensors


def model(coder: ImageCoder, data: bytes) -> None:
    """The bytes are edits of a model file of version 4 or 5: of its JSON and its tensors. What still loads
    must code a picture.
    """
    text, tensors = _model_parts("factorized-w8" if coder.codec.known_as else "handmade-elic")
    tensors = {k: t.copy() for k, t in tensors.items()}
    names = sorted(tensors)
    for i in range(0, len(data) - 5, 6):
        what, which, at, value = (
            data[i],
            data[i + 1],
            int.from_bytes(data[i + 2 : i + 4], "little"),
            data[i + 4 :],
        )
        if what % 4 == 0:
            numbers = list(re.finditer(rb"-?[0-9]+|true|false|\"[a-z_0-9]+\"", text))
            span = numbers[at % len(numbers)]
            new = (str(int.from_bytes(value[:2], "little", signed=True)), "null", "[]", "1e400", '"x"')[
                which % 5
            ]
            text = text[: span.start()] + new.encode() + text[span.end() :]
        elif what % 4 == 1:
            tensors.pop(names[which % len(names)], None)
        elif (name := names[which % len(names)]) in tensors:
            t = tensors[name].flatten()
            if what % 4 == 2 and t.size:
                t[at % t.size] = np.array(value[0]).astype(t.dtype)
                tensors[name] = t.reshape(tensors[name].shape)
            else:
                tensors[name] = t[: at % (t.size + 1)].copy()
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as handle:
        handle.write(save(tensors, {"rdquant": text.decode()}))
        handle.flush()
        try:
            codec = load_integer(Path(handle.name))
        except BadModel:
            return
    changed = ImageCoder(codec, integer_fingerprint(codec), Profile.INTEGER)
    changed.decode(changed.encode(np.full((9, 9, 3), 99, np.uint8)))


#: by the first byte's remainder; models take a hundred times as long, so that they get one value of it
MODES = (file, checksummed_header, streams, entropy_coder)
MODEL = 255


def run(data: bytes) -> None:
    """One execution. Raises whatever is not in the documented tree."""
    if len(data) < 2:
        return
    mode = model if data[0] == MODEL else MODES[data[0] % len(MODES)]
    mode(coders()[data[1] % len(coders())], data[2:])


def seeds() -> dict[str, bytes]:
    """Inputs to start from: real files, in each mode."""
    found = {}
    files = [
        (i, n, s, (HERE / f"{n}-{s}.rdq").read_bytes())
        for i, n in enumerate(MODELS)
        for s in ("1x1", "noise")
    ]
    grey = np.full((9, 21, 3), 90, np.uint8)
    files += [(i, k, "grey", coders()[i].encode(grey)) for i, k in enumerate(KINDS, len(MODELS))]
    for i, name, size, data in files:
        if len(data) < 2000:
            found[f"file-{name}-{size}"] = bytes([0, i]) + data
            found[f"header-{name}-{size}"] = bytes([1, i, len(data) % 32]) + data[12:]
            found[f"streams-{name}-{size}"] = bytes([2, i, 63, 63, 8]) + data[26:]
            found[f"entropy-{name}-{size}"] = bytes([3, i, 40]) + data[-44:-4]
    for what in range(4):
        for which in (0, 20):
            for model, version in ((0, 4), (len(MODELS) - 1, 5)):
                edit = bytes([MODEL, model, what, which, which, 0, 200 + which, 255])
                found[f"model-{what}-{which}-{version}"] = edit
    return found
