"""Two implementations of the format that share no code agree: on operations, and on files of every prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import handmade
import random_graphs
from plain_decoder import OPERATIONS, Fields, PlainDecoder
from rdquant.coder import ImageCoder
from rdquant.entropy import rans_reference
from rdquant.files.container import Profile, Quantizer
from rdquant.files.integer_models import integer_fingerprint, load_integer, save_integer
from rdquant.files.structure import attributes, tensors_of
from rdquant.latents.coding import ScalarCoding, TrellisCoding


@pytest.mark.parametrize("kind", random_graphs.KINDS)
@pytest.mark.parametrize("lo, hi", random_graphs.WIDE)
def test_operations_agree(kind: str, lo: int, hi: int) -> None:
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        op, ports = random_graphs.operation(kind, g, 1 + seed % 5 * 2, lo, hi)
        graph = random_graphs.graph_of(op, ports)
        graph.check()
        inputs = random_graphs.inputs_of(graph, g, 8, 12)
        tensors = {f"op.{field}": t.astype(np.int64) for field, t in tensors_of(op).items()}
        node = {"kind": op.kind, **attributes(op)}
        given = (t[0].astype(np.int64) for t in inputs)
        found = OPERATIONS[op.kind](node, Fields("op", tensors), *given)
        assert np.array_equal(found, graph.exact(*inputs)[0]), seed


def coders(kind: str, photo: np.ndarray, folder: Path) -> tuple[ImageCoder, PlainDecoder]:
    path = folder / "m.rdqm"
    save_integer(handmade.codec(kind, photo[:128, 128:256]), path)
    codec = load_integer(path)
    return ImageCoder(codec, integer_fingerprint(codec), Profile.INTEGER), PlainDecoder(path)


@pytest.mark.parametrize("kind", handmade.PRIORS)
def test_files_of_every_prior_agree(kind: str, photo: np.ndarray, tmp_path: Path) -> None:
    coder, plain = coders(kind, photo, tmp_path)
    assert plain.fingerprint == coder.fingerprint
    gains = np.full(coder.codec.M, 1e4)
    codings = [ScalarCoding()]
    if coder.codec.prior.no_trellis is None:
        codings += [TrellisCoding(Quantizer[name], 170, gains, 0.01) for name in ("TCQ4", "TCQ8")]
    for coding in codings:
        coder.coding = coding
        for height, width in ((1, 1), (1, 70), (70, 45)):
            rgb = np.ascontiguousarray(photo[60 : 60 + height, 190 : 190 + width])
            data = coder.encode(rgb, pixel_checksum=width == 45)
            pixels = coder.decode(data)
            assert np.array_equal(pixels, plain.decode(data))
            coder.codec.__dict__["engine"] = "reference"
            assert np.array_equal(pixels, coder.decode(data)) and coder.encode(rgb, width == 45) == data
            del coder.codec.__dict__["engine"]


@pytest.mark.parametrize("kind", ["serial", "elic", "four_part"])
def test_a_plain_decoder_knows_damage(kind: str, photo: np.ndarray, tmp_path: Path) -> None:
    coder, plain = coders(kind, photo, tmp_path)
    data = coder.encode(photo[60:100, 190:220], pixel_checksum=True)
    for at in range(0, len(data), 7):
        with pytest.raises(ValueError):
            plain.decode(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


def test_the_reference_coder_reads_a_stream_of_parts(photo: np.ndarray, tmp_path: Path) -> None:
    """Parts are no streams of their own: a decoder that knows all indexes reads them as one."""
    coder, _ = coders("elic", photo, tmp_path)
    coded = coder.symbols(photo[:64, :64])
    levels, indexes = coded.stream(coder.coding)
    tables = coder.codec.y_tables
    stream = rans_reference.encode(levels.tolist(), indexes.tolist(), tables)
    assert coder.pack(coded, 64, 64).endswith(stream + coder.pack(coded, 64, 64)[-4:])
