"""The front door: `rdquant.encode` and `decode`, Pillow, standard input and output."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdquant
from conftest import small_codec
from golden.make import HERE, picture
from profiles import profile
from rdquant.errors import DecodeError, ImageError, UnknownModel, UsageError
from rdquant.files.container import with_sections
from rdquant.files.integer_models import integer_fingerprint

MODEL = str(HERE / "unshuffle-w8.rdqm")


def test_arrays_images_and_paths_give_one_file(tmp_path: Path) -> None:
    rgb = picture("70x45")
    Image.fromarray(rgb).save(tmp_path / "x.png")
    data = rdquant.encode(rgb, MODEL, quality=40)
    assert rdquant.encode(Image.fromarray(rgb), MODEL, quality=40) == data
    assert rdquant.encode(tmp_path / "x.png", MODEL, quality=40) == data
    assert rdquant.encode(rgb, MODEL, quality=60) != data
    (tmp_path / "x.rdq").write_bytes(data)
    assert np.array_equal(rdquant.decode(data, MODEL), rdquant.decode(tmp_path / "x.rdq", MODEL))


def test_what_has_no_one_answer_is_refused() -> None:
    with pytest.raises(ImageError, match="CMYK"):
        rdquant.encode(Image.new("CMYK", (8, 8)))
    with pytest.raises(ImageError, match="transparent"):
        rdquant.encode(Image.new("RGBA", (8, 8)))
    with pytest.raises(DecodeError):
        rdquant.decode(b"RDQ nonsense")


def test_pillow_reads_and_writes(tmp_path: Path) -> None:
    rgb, path = picture("96x128"), tmp_path / "x.rdq"
    Image.fromarray(rgb).save(path)
    with Image.open(path) as opened:
        assert (opened.format, opened.size, opened.mode) == ("RDQ", (128, 96), "RGB")
        found = np.asarray(opened)
    assert np.array_equal(found, rdquant.decode(path))
    assert path.read_bytes() == rdquant.encode(rgb)
    with pytest.raises(UsageError, match=r"one rate|1\.\.100"):
        Image.fromarray(rgb).save(tmp_path / "y.rdq", quality=1000)


def test_pillow_says_that_a_file_is_damaged(tmp_path: Path) -> None:
    data = bytearray(rdquant.encode(picture("70x45")))
    data[-9] ^= 1
    with pytest.raises(OSError, match="checksum"), Image.open(io.BytesIO(bytes(data))):
        pass


def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "rdquant", *arguments], input=given, capture_output=True)


def test_a_dash_is_standard_input_and_output(tmp_path: Path) -> None:
    rgb, png = picture("70x45"), io.BytesIO()
    Image.fromarray(rgb).save(png, "PNG")
    coded = run("encode", "-", "--model", MODEL, "-q", "30", given=png.getvalue())
    assert coded.returncode == 0, coded.stderr
    assert coded.stdout == rdquant.encode(rgb, MODEL, quality=30)
    decoded = run("decode", "-", "-o", "-", "--model", MODEL, given=coded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    with Image.open(io.BytesIO(decoded.stdout)) as opened:
        assert np.array_equal(np.asarray(opened), rdquant.decode(coded.stdout, MODEL))


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "x.png", tmp_path / "x.rdq"
    Image.fromarray(picture("1x1")).save(source)
    target.write_bytes(b"mine")
    refused = run("encode", str(source))
    assert refused.returncode != 0 and b"--overwrite" in refused.stderr
    assert target.read_bytes() == b"mine"
    assert run("encode", str(source), "--overwrite").returncode == 0
    assert target.read_bytes() != b"mine"


def test_tensors_and_batches() -> None:
    rgb, other = picture("70x45"), picture("1x1")
    data = rdquant.encode(rgb, MODEL, quality=40)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    assert rdquant.encode(tensor, MODEL, quality=40) == data
    both = rdquant.encode([Image.fromarray(rgb), other], MODEL, quality=40)
    assert both[0] == data and len(both) == 2
    assert rdquant.encode(np.stack([rgb, rgb]), MODEL, quality=40) == [data, data]
    assert rdquant.encode(torch.stack([tensor, tensor]), MODEL, quality=40) == [data, data]
    first, second = rdquant.decode(both, MODEL)
    assert first.shape == rgb.shape and second.shape == other.shape
    with pytest.raises(ImageError, match=r"tensor \(B, 3, H, W\) or a list, got \(2, 70, 45, 3\)"):
        rdquant.encode(torch.from_numpy(np.stack([rgb, rgb])), MODEL)
    with pytest.raises(ImageError, match=r"\(70, 45\)"):
        rdquant.encode(rgb[..., 0], MODEL)
    with pytest.raises(ImageError, match=r"one array .* got \(2, 70, 45, 3\).*rdquant\.encode"):
        rdquant.open(MODEL).encode(np.stack([rgb, rgb]))


def test_floats_are_of_0_to_1() -> None:
    rgb = picture("70x45")
    data, tensor = rdquant.encode(rgb, MODEL), torch.from_numpy(rgb).permute(2, 0, 1) / 255
    for floats in (rgb / 255, (rgb / 255).astype(np.float16), tensor, tensor.bfloat16()):
        assert rdquant.encode(floats, MODEL) == data
    assert rdquant.encode(torch.stack([tensor, tensor]), MODEL) == [data, data]
    for bad, message in ((1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan")):
        tensor[1, 2, 3] = bad
        with pytest.raises(ImageError, match=rf"in \[0, 1\], got {message}"):
            rdquant.encode(tensor, MODEL)
    with pytest.raises(ImageError, match="int64"):
        rdquant.encode(rgb.astype(np.int64), MODEL)


def test_targets_are_those_of_the_command_line() -> None:
    rgb = picture("96x128")
    data = rdquant.encode(rgb, MODEL, target_size=1700)
    assert 1600 < len(data) <= 1700 and rdquant.encode(rgb, MODEL, target_bpp=8 * 1700 / (96 * 128)) == data
    with pytest.raises(UsageError, match="give one of"):
        rdquant.encode(rgb, MODEL, quality=3, target_size=1700)
    with pytest.raises(UsageError, match="-1"):
        rdquant.encode(rgb, MODEL, target_bpp=-1)
    with pytest.raises(UsageError, match="one rate: leave quality"):
        rdquant.encode(rgb, str(HERE / "factorized-w8.rdqm"), target_size=1700)


def test_profile_and_exif_go_through_a_file(tmp_path: Path) -> None:
    rgb, exif = picture("70x45"), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    source, coded = tmp_path / "x.jpg", tmp_path / "x.rdq"
    Image.fromarray(rgb).save(source, quality=95, icc_profile=profile(), exif=exif)
    assert run("encode", str(source), "--exif").returncode == 0
    assert rdquant.encode(source, exif=True) == coded.read_bytes()
    with Image.open(coded) as opened:
        assert opened.info["icc_profile"] == profile() and opened.size == (70, 45)
        assert dict(opened.getexif()) == {0x010F: "a camera"}
        opened.save(tmp_path / "again.rdq", exif=True)
    assert rdquant.encode(source, colour="ignore") == with_sections(coded.read_bytes(), ())
    shown = run("inspect", str(coded))
    assert b"ICC section" in shown.stdout and b"EXIF section" in shown.stdout
    assert run("decode", str(coded), "-o", str(tmp_path / "back.png")).returncode == 0
    with Image.open(tmp_path / "back.png") as opened:
        assert opened.info["icc_profile"] == profile() and opened.getexif()[0x010F] == "a camera"
    lost = run("decode", str(coded), "-o", str(tmp_path / "back.bmp"))
    assert b"icc_profile and exif left out" in lost.stderr


def test_a_target_size_counts_what_the_picture_carries(tmp_path: Path) -> None:
    source = tmp_path / "x.png"
    Image.fromarray(picture("96x128")).save(source, icc_profile=profile())
    most = 2500
    done = run("encode", str(source), "--model", MODEL, "--target-size", str(most))
    assert done.returncode == 0, done.stderr
    assert most - 400 < len((tmp_path / "x.rdq").read_bytes()) <= most


def test_one_door_to_every_model() -> None:
    rgb = picture("70x45")
    by_name, at = rdquant.open(MODEL, quality=30), rdquant.open(f"{MODEL}@30")
    in_memory = rdquant.open(rdquant.load_integer(Path(MODEL)))
    data = by_name.encode(rgb)
    assert at.encode(rgb) == data and in_memory.fingerprint == by_name.fingerprint
    with pytest.raises(UnknownModel, match="'nothing'"):
        rdquant.open("nothing")


def test_a_codec_in_memory_codes_as_its_file_does(tmp_path: Path) -> None:
    rgb, codec = picture("70x45"), rdquant.load_integer(MODEL)
    data = rdquant.encode(rgb, codec, quality=30)
    assert data == rdquant.encode(rgb, Path(MODEL), quality=30)
    assert np.array_equal(rdquant.decode(data, codec), rdquant.decode(data, MODEL))
    shown = r"Codec\(unshuffle8, weights of 7 to 8 bits, 8 networks, [\d,]+ parameters\)"
    assert re.fullmatch(shown, repr(codec)), codec


def test_a_model_that_is_saved_anew_is_opened_anew(tmp_path: Path) -> None:
    rgb, path = picture("70x45"), tmp_path / "mine.rdqm"
    for name in ("unshuffle-w8", "factorized-w8"):
        path.write_bytes((HERE / f"{name}.rdqm").read_bytes())
        assert rdquant.encode(rgb, str(path)) == rdquant.encode(rgb, HERE / f"{name}.rdqm"), name


def test_a_coded_file_is_not_coded_again(tmp_path: Path) -> None:
    (tmp_path / "x.rdq").write_bytes(rdquant.encode(picture("1x1")))
    with pytest.raises(ImageError, match=r"x\.rdq is a coded file"):
        rdquant.encode(tmp_path / "x.rdq")


def test_from_a_checkpoint_to_a_curve(tmp_path: Path, photo: np.ndarray) -> None:
    """The first page: quantize what CompressAI trained, measure it, compare."""
    codec = small_codec("mbt2018-mean")
    torch.save(codec.state_dict(), tmp_path / "checkpoint.pth.tar")
    crops = [np.ascontiguousarray(photo[i : i + 96, i : i + 64]) for i in (0, 100, 200)]
    integer = rdquant.quantize(tmp_path / "checkpoint.pth.tar", crops, side=64, lambda_=0.01)
    assert integer.description["parent"] == "checkpoint.pth.tar"
    rdquant.save_integer(integer, f"{tmp_path}/mine.rdqm")
    data = rdquant.encode(crops[0], integer, quantizer="rdoq")
    assert data == rdquant.encode(crops[0], f"{tmp_path}/mine.rdqm", quantizer="rdoq")
    (tmp_path / "pictures").mkdir()
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(tmp_path / "pictures" / f"{i}.png")
    again = rdquant.quantize(codec, tmp_path / "pictures", side=64)
    assert integer_fingerprint(again) == integer_fingerprint(integer)
    done: list[tuple[int, int]] = []
    curve = rdquant.evaluate([integer, again], crops, progress=lambda *d: done.append(d))
    assert [len(p.images) for p in curve.points] == [3, 3] and done[-1] == (6, 6)
    assert repr(curve) == "Curve('rdquant', 'pictures', 2 points)" and len(repr(curve.points)) < 150
    assert curve.points[0].bpp == curve.points[1].bpp
    low, high = curve.points[0].interval("psnr") or (0, 0)
    assert low < curve.points[0].psnr < high
    by_folder = rdquant.evaluate(integer, tmp_path / "pictures")
    assert by_folder.dataset == "pictures" and by_folder.points[0].psnr == curve.points[0].psnr
