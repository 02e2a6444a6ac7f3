from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import small_codec
from rdquant.codecs import ARCHITECTURES
from rdquant.errors import BadModel, UnknownModel
from rdquant.files.bits import packed_size
from rdquant.files.float_models import float_fingerprint, load_float, save_float
from rdquant.files.integer_models import (
    file_bytes,
    integer_fingerprint,
    load_integer,
    save_integer,
    weight_bytes,
)
from rdquant.files.model_file import model_kind, read
from rdquant.weights import QuantizeConfig, quantize
from rdquant.weights.config import is_mixing
from rdquant.weights.formats import FORMATS


@pytest.fixture(scope="module")
def integer_file(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("models") / "q.rdqm"
    save_integer(quantize(small_codec("mbt2018-mean"), [photo[:128, :128]]), path)
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float_round_trip(architecture: str, tmp_path: Path) -> None:
    codec, path = small_codec(architecture), tmp_path / "m.safetensors"
    save_float(codec, path, half=False)
    assert model_kind(path) == "float"
    assert float_fingerprint(load_float(path)) == float_fingerprint(codec)
    save_float(codec, path)
    assert float_fingerprint(load_float(path)) != float_fingerprint(codec)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_integer_round_trip(architecture: str, tmp_path: Path, photo: np.ndarray) -> None:
    codec, path = quantize(small_codec(architecture), [photo[:128, :128]]), tmp_path / "q.rdqm"
    save_integer(codec, path)
    again = load_integer(path)
    assert model_kind(path) == "integer"
    assert integer_fingerprint(again) == integer_fingerprint(codec)
    assert again.description == codec.description


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("bits", [3, 8, 12])
def test_every_number_format_round_trips(
    number_format: str, bits: int, tmp_path: Path, photo: np.ndarray
) -> None:
    if number_format == "codebook" and bits > 8:
        pytest.skip("a codebook of 4,096 levels is the uniform format")
    config = QuantizeConfig(weight_bits=bits, number_format=number_format)  # type: ignore[arg-type]
    codec, path = quantize(small_codec("mbt2018-mean"), [photo[:64, :64]], config), tmp_path / "q"
    save_integer(codec, path)
    assert integer_fingerprint(load_integer(path)) == integer_fingerprint(codec)


def test_sizes_are_the_files(tmp_path: Path, photo: np.ndarray) -> None:
    """And coded weights take less than packed ones, whose size is known."""
    for bits, number_format, least, most in (
        (8, "uniform", 0.5, 0.95),
        (4, "uniform", 0.4, 0.9),
        (4, "codebook", 1, 1.1),
        (9, "uniform", 1, 1),
    ):
        config = QuantizeConfig(weight_bits=bits, number_format=number_format)  # type: ignore[arg-type]
        codec = quantize(small_codec("mbt2018-mean"), [photo[:64, :64]], config)
        save_integer(codec, tmp_path / "q")
        assert file_bytes(codec) == (tmp_path / "q").stat().st_size
        stages = [s for n in codec.networks.values() for s in n.stages if not is_mixing(s.name)]
        packed = sum(packed_size(s.conv.weight.numel(), s.conv.bits) for s in stages)
        sizes = weight_bytes(codec)
        assert least <= sum(sizes[s.name] for s in stages) / packed <= most


def test_infinite_in_half_precision_is_refused(tmp_path: Path) -> None:
    codec = small_codec("bmshj2018-factorized")
    with torch.no_grad():
        codec.g_a[0].bias[0] = 1e6
    with pytest.raises(BadModel, match=r"g_a\.0\.bias is not finite in float16"):
        save_float(codec, tmp_path / "m.safetensors")


def test_kinds_are_not_confused(integer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="needs a float one"):
        load_float(integer_file)
    save_float(small_codec("bmshj2018-factorized"), tmp_path / "m.safetensors")
    with pytest.raises(BadModel, match="needs a quantized one"):
        load_integer(tmp_path / "m.safetensors")


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UnknownModel):
        load_integer(path)
    path.write_bytes(b"no model")
    with pytest.raises(BadModel, match="not a safetensors file"):
        load_integer(path)
    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(BadModel, match="header"):
        load_integer(path)


def _edit(source: Path, target: Path, tensors: dict | None = None, structure: dict | None = None) -> None:
    header, data = read(source)
    for name, change in (tensors or {}).items():
        if change is None:
            del data[name]
        else:
            data[name] = change(data[name])
    header["structure"].update(structure or {})
    save_file(data, str(target), {"rdquant": json.dumps(header)})


def _at(index: int, value: int):  # type: ignore[no-untyped-def]
    def change(t: torch.Tensor) -> torch.Tensor:
        packed = t.dtype == torch.uint8 and value < 256
        t = t.to(torch.int64).clone()
        t.view(-1)[index] = value
        return t.to(torch.uint8) if packed else t

    return change


def test_absurd_widths_and_sizes_allocate_nothing(integer_file: Path, tmp_path: Path) -> None:
    """Found by fuzzing: levels of 2^40 were made before the width was checked."""
    header, data = read(integer_file)
    for part, index, field, value, message in (
        ("g_a", 0, "bits", 42, "2..16"),
        ("g_a", 0, "bits", 0, "2..16"),
        ("g_a", 2, "bits", 3, r"over \+-3"),
        ("g_a", 2, "shape", [10**6, 10**6, 5, 5], "over 67108864 weights"),
        ("g_s", 0, "compensate", True, "feedback"),
    ):
        broken = json.loads(json.dumps(header))
        broken["structure"]["stages"][part][index][field] = value
        save_file(data, str(tmp_path / "m"), {"rdquant": json.dumps(broken)})
        with pytest.raises(BadModel, match=message):
            load_integer(tmp_path / "m")


@pytest.mark.parametrize(
    ("tensors", "structure", "message"),
    [
        ({"g_s.0.weight": None}, {}, r"g_s\.0\.weight"),
        ({}, {"N": float("inf")}, "bad structure"),
        ({}, {"M": None}, "bad structure"),
        ({"g_s.0.weight": lambda t: t.float()}, {}, "integers only"),
        ({"g_s.0.weight": lambda t: t[1:]}, {}, "4-byte words"),
        ({"g_s.0.weight": lambda t: t.reshape(2, -1)}, {}, "flat bytes"),
        ({"g_s.0.weight": lambda t: t[:-4]}, {}, "ends too early"),
        ({"g_s.0.rows": lambda t: t[1:]}, {}, "rows must be"),
        ({"g_s.0.rows": lambda t: t.to(torch.int16)}, {}, "rows must be"),
        ({"g_s.0.taps": None}, {}, "taps"),
        ({"weight_tables.frequencies": _at(3, 7)}, {}, "CDF"),
        ({"weight_tables.frequencies": None}, {}, "no weight_tables"),
        ({"weight_tables.offsets": None}, {}, "offsets"),
        ({"g_a.0.bias": _at(0, 2**40)}, {}, r"2\^36"),
        ({"y_tables.frequencies": _at(3, 7)}, {}, "CDF"),
        ({"y_tables.frequencies": lambda t: t[1:]}, {}, "frequencies"),
        ({"z_tables.starts": _at(1, 10**6)}, {}, "starts"),
        ({"thresholds": _at(3, 0)}, {}, "thresholds"),
        ({"medians": _at(0, 2**20)}, {}, "medians"),
        ({"latent_shift": _at(0, 9)}, {}, "latent_shift"),
        ({"latent_shift": None}, {}, "latent_shift"),
        ({"g_a.0.gamma": lambda t: t[1:]}, {}, "bytes, got"),
        ({"g_a.0.factor.shift": _at(0, 60)}, {}, "shift"),
        ({}, {"fraction_bits": 40}, "fraction_bits"),
        ({}, {"architecture": "other"}, "other"),
        ({}, {"stages": {}}, "networks"),
        ({}, {"stages": 3}, "bad structure"),
        ({}, {"M": 13}, "13"),
    ],
)
def test_every_lie_in_a_model_is_named(
    tensors: dict, structure: dict, message: str, integer_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    _edit(integer_file, bad, tensors, structure)
    with pytest.raises(BadModel, match=message):
        load_integer(bad)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"g_s.0.weight": lambda t: t[1:]}, "bytes, got"),
        ({"g_s.0.weight": lambda t: t.reshape(1, -1)}, "bytes, got"),
        ({"g_s.0.weight": _at(0, 255)}, "index 7, it has 7 levels"),
    ],
)
def test_every_lie_about_packed_weights_is_named(
    tensors: dict, message: str, tmp_path: Path, photo: np.ndarray
) -> None:
    config = QuantizeConfig(weight_bits=3, number_format="power_of_two")
    save_integer(quantize(small_codec("mbt2018-mean"), [photo[:64, :64]], config), tmp_path / "q")
    _edit(tmp_path / "q", tmp_path / "bad", tensors)
    with pytest.raises(BadModel, match=message):
        load_integer(tmp_path / "bad")


def test_damaged_gzip_is_named(integer_file: Path, tmp_path: Path) -> None:
    data, bad = integer_file.read_bytes(), tmp_path / "bad.rdqm"
    bomb = gzip.compress(bytes(2**28 + 1), 1)
    for content, message in (
        (data[:-1], "ends too early"),
        (data[:100] + b"\xff" + data[101:], "damaged gzip|not a safetensors"),
        (data[:-5] + bytes(5), "damaged gzip"),
        (data + b"x", "1 byte"),
        (bomb, "more than 268435456"),
    ):
        bad.write_bytes(content)
        with pytest.raises(BadModel, match=message):
            load_integer(bad)


def test_fingerprint_sees_every_integer(integer_file: Path, tmp_path: Path) -> None:
    original = integer_fingerprint(load_integer(integer_file))
    for name in ("g_a.0.bias", "g_s.2.gamma", "medians"):
        first = int(read(integer_file)[1][name].view(-1)[0])
        _edit(integer_file, tmp_path / "m", {name: _at(0, first ^ 1)})
        assert integer_fingerprint(load_integer(tmp_path / "m")) != original
