"""The command line as a user meets it, in processes of its own where exit codes matter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_codec
from rdquant import cli, zoo
from rdquant.errors import RdquantError
from rdquant.files.images import read_image, write_image


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rdquant.cli", *map(str, args)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def picture(tmp_path: Path, photo: np.ndarray) -> Path:
    path = tmp_path / "photo.png"
    write_image(path, photo[:100, :130])
    return path


def test_encode_and_decode_with_defaults(picture: Path) -> None:
    encoded = run("encode", picture)
    assert encoded.returncode == 0, encoded.stderr
    file = picture.with_suffix(".rdq")
    decoded = run("decode", file, "-o", picture.with_name("out.png"))
    assert decoded.returncode == 0, decoded.stderr
    a, b = read_image(picture).astype(float), read_image(picture.with_name("out.png"))
    assert a.shape == b.shape and np.mean((a - b) ** 2) < 200
    assert file.stat().st_size < picture.stat().st_size / 4


def invoke(*args: object) -> None:
    cli.app([str(a) for a in args], standalone_mode=False)


def test_from_checkpoint_to_file_and_back(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"state_dict": small_codec("mbt2018-mean").state_dict()}, tmp_path / "c.pth.tar")
    invoke("import", tmp_path / "c.pth.tar", "-o", tmp_path / "m.safetensors")
    calib = tmp_path / "calib"
    calib.mkdir()
    write_image(calib / "a.png", read_image(picture))
    model = tmp_path / "q.safetensors"
    invoke("quantize", tmp_path / "m.safetensors", "--calib", calib, "-o", model, "--weights", 8, "--no-rdo")
    invoke("encode", picture, "-m", model, "-o", tmp_path / "f.rdq")
    invoke("decode", tmp_path / "f.rdq", "-m", model, "-o", tmp_path / "d.png")
    assert read_image(tmp_path / "d.png").shape == read_image(picture).shape
    capsys.readouterr()
    invoke("inspect", tmp_path / "f.rdq", "--json")
    fields = {row[0]: row[3] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (fields["width"], fields["height"]) == ("130", "100")
    invoke("inspect", model, "--json")
    layers = {row[0]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert layers["g_s.2"][3] == 8 and layers["h_s.0"][3] == 7
    for kind in ("m", "q"):
        invoke(
            "evaluate",
            "-m",
            tmp_path / f"{kind}.safetensors",
            "--images",
            calib,
            "--json",
            tmp_path / f"{kind}.json",
        )
    data = json.loads((tmp_path / "q.json").read_text())
    image = data["points"][0]["images"][0]
    assert image["bpp"] == pytest.approx(8 * image["bytes"] / (100 * 130), rel=1e-5)
    with pytest.raises(RdquantError, match="1 point"):
        invoke("bdrate", tmp_path / "m.json", tmp_path / "q.json")


def test_zoo_lists_and_inspects(capsys: pytest.CaptureFixture) -> None:
    invoke("zoo", "--json")
    assert zoo.DEFAULT in json.loads(capsys.readouterr().out)
    invoke("zoo")
    invoke("inspect", zoo.DEFAULT)
    assert "g_s.0" in capsys.readouterr().out


def test_training_from_the_command_line(picture: Path, tmp_path: Path) -> None:
    options = [f"--set={o}" for o in ("N=4", "M=6", "batch=1", "crop=64", "compile=false", "bf16=false")]
    folder = tmp_path / "train"
    folder.mkdir()
    for i in range(2):
        write_image(folder / f"{i}.png", read_image(picture))
    invoke("train", "--data", folder, "--run", tmp_path / "run", "--steps", 2, *options)
    assert (tmp_path / "run" / "model.safetensors").exists()
    invoke("train", "--data", folder, "--run", tmp_path / "run")  # resumes: nothing left to do
    with pytest.raises(RdquantError, match="colour"):
        invoke("train", "--data", folder, "--run", tmp_path / "new", "--set", "colour=1")


@pytest.mark.parametrize(
    "case", ["text", "missing", "alpha", "cmyk", "model", "truncated", "folder", "other", "out"]
)
def test_wrong_input_is_one_line_and_exit_code_2(
    case: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out.rdq"
    if case == "text":
        picture.write_text("not a picture")
        args, message = ("encode", picture, "-o", out), "not a picture"
    elif case == "missing":
        args, message = ("encode", tmp_path / "none.png", "-o", out), "no such picture"
    elif case == "alpha":
        Image.new("RGBA", (5, 5), (1, 2, 3, 100)).save(picture)
        args, message = ("encode", picture, "-o", out), "transparent"
    elif case == "cmyk":
        picture = tmp_path / "c.jpg"
        Image.new("CMYK", (5, 5)).save(picture)
        args, message = ("encode", picture, "-o", out), "CMYK"
    elif case == "model":
        args, message = ("encode", picture, "-m", "no-such-model", "-o", out), "no-such-model"
    elif case == "truncated":
        invoke("encode", picture, "-o", tmp_path / "f.rdq")
        (tmp_path / "f.rdq").write_bytes((tmp_path / "f.rdq").read_bytes()[:-5])
        args, message = ("decode", tmp_path / "f.rdq", "-o", out.with_suffix(".png")), "ends"
    elif case == "folder":
        (tmp_path / "empty").mkdir()
        args, message = ("evaluate", "-m", zoo.DEFAULT, "--images", tmp_path / "empty"), "no pictures"
    elif case == "other":
        invoke("encode", picture, "-o", tmp_path / "f.rdq")
        args = ("decode", tmp_path / "f.rdq", "-m", "mean-scale-s-0130", "-o", out.with_suffix(".png"))
        message = "the file needs model"
    else:
        args, message = ("encode", picture, "-o", tmp_path / "no" / "f.rdq"), "cannot write"
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["rdquant", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert set(tmp_path.rglob("*")) == before


def test_exit_code_of_a_process(tmp_path: Path) -> None:
    result = run("decode", tmp_path / "none.rdq")
    assert result.returncode == 2 and result.stderr.startswith("error: cannot read")
