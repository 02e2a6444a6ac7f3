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
import torch
from safetensors.torch import save

from golden.make import HERE, MODELS
from rdquant import entropy
from rdquant.coder import ImageCoder
from rdquant.entropy import rans_reference
from rdquant.errors import BadModel, DecodeError
from rdquant.files.container import Limits, Profile, Quantizer, checksum, describe, write
from rdquant.files.integer_models import integer_fingerprint, load_integer
from rdquant.files.model_file import read
from rdquant.load import open_coder

LIMITS = Limits(pixels=4096)


@functools.cache
def coders() -> list[ImageCoder]:
    return [open_coder(str(HERE / f"{name}.rdqm")) for name in MODELS]


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
    z, y = (body[: 4 * split], body[4 * split :]) if coder.codec.has_hyperprior else (b"", body)
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
def _model_parts() -> tuple[bytes, dict[str, torch.Tensor]]:
    header, tensors = read(HERE / "factorized-w8.rdqm")
    return json.dumps(header).encode(), tensors


def model(coder: ImageCoder, data: bytes) -> None:
    """The bytes are edits of a model file: of its JSON and its tensors. What still loads must decode."""
    text, tensors = _model_parts()
    tensors = {k: t.clone() for k, t in tensors.items()}
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
            if what % 4 == 2 and t.numel():
                t[at % t.numel()] = torch.tensor(value[0]).to(t.dtype)
                tensors[name] = t.reshape(tensors[name].shape)
            else:
                tensors[name] = t[: at % (t.numel() + 1)].clone()
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as handle:
        handle.write(save(tensors, {"rdquant": text.decode()}))
        handle.flush()
        try:
            codec = load_integer(Path(handle.name))
        except BadModel:
            return
    fingerprint = integer_fingerprint(codec)
    stream = entropy.encode(np.zeros(codec.M, np.int32), np.arange(codec.M, dtype=np.int32), codec.y_tables)
    file = write(fingerprint, Profile.INTEGER, Quantizer.UNIFORM, 9, 9, (b"", stream))
    _answered(ImageCoder(codec, fingerprint, Profile.INTEGER), file)


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
    for i, name in enumerate(MODELS):
        for size in ("1x1", "noise"):
            data = (HERE / f"{name}-{size}.rdq").read_bytes()
            if len(data) > 2000:
                continue
            found[f"file-{name}-{size}"] = bytes([0, i]) + data
            found[f"header-{name}-{size}"] = bytes([1, i, len(data) % 32]) + data[12:]
            found[f"streams-{name}-{size}"] = bytes([2, i, 63, 63, 8]) + data[26:]
            found[f"entropy-{name}-{size}"] = bytes([3, i, 40]) + data[-44:-4]
    for what in range(4):
        for which in (0, 20):
            found[f"model-{what}-{which}"] = bytes([MODEL, 0, what, which, which, 0, 200 + which, 255])
    return found
