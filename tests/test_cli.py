"""The command line as a user meets it, in processes of its own where exit codes matter."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich import markup

from conftest import small_codec
from rdquant import cli, console, zoo
from rdquant.cli import common, quantizing
from rdquant.errors import Corrupt, RdquantError, UsageError
from rdquant.files import container
from rdquant.files.float_models import save_float
from rdquant.files.images import read_image, write_image
from rdquant.files.integer_models import integer_fingerprint, load_integer
from rdquant.load import open_coder

GOLDEN = Path(__file__).parent / "golden"


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rdquant", *map(str, args)], capture_output=True, text=True, timeout=300
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


def test_retrain_quantize_and_encode_with_its_own_quantizer(
    training_folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_float(small_codec("mbt2018-mean"), tmp_path / "m.safetensors", {"lambda": 0.02})
    options = ["batch=1", "crop=64", "compile=false", "bf16=false"]
    invoke(
        "retrain", tmp_path / "m.safetensors", "--data", training_folder, "--run", tmp_path / "run",
        "-o", tmp_path / "r.safetensors", "--quantizer", "tcq4", "--steps", 2, "--json",
        *(word for option in options for word in ("--set", option)),
    )  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["phase"] for r in rows] == ["start", "1-decoder", "1-hyper"]
    invoke("quantize", tmp_path / "r.safetensors", "--calib", training_folder, "-o", tmp_path / "r.rdqm")
    file = tmp_path / "photo.rdq"
    invoke("encode", picture, "-m", tmp_path / "r.rdqm", "-o", file, "--effort", 1)
    assert container.read(file.read_bytes())[0].quantizer.name == "TCQ4"
    invoke("decode", file, "-m", tmp_path / "r.rdqm", "-o", tmp_path / "out.png")
    assert read_image(tmp_path / "out.png").shape == read_image(picture).shape


def test_from_checkpoint_to_file_and_back(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"state_dict": small_codec("mbt2018-mean").state_dict()}, tmp_path / "c.pth.tar")
    invoke("import", tmp_path / "c.pth.tar", "-o", tmp_path / "m.safetensors")
    calib = tmp_path / "calib"
    calib.mkdir()
    write_image(calib / "a.png", read_image(picture))
    model = tmp_path / "q.rdqm"
    invoke("quantize", tmp_path / "m.safetensors", "--calib", calib, "-o", model, "--weights", 8, "--no-rdo")
    invoke("encode", picture, "-m", model, "-o", tmp_path / "f.rdq")
    invoke("decode", tmp_path / "f.rdq", "-m", model, "-o", tmp_path / "d.png")
    assert read_image(tmp_path / "d.png").shape == read_image(picture).shape
    capsys.readouterr()
    invoke("inspect", tmp_path / "f.rdq", "--json")
    fields = {row[0]: row[3] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (fields["width"], fields["height"]) == ("130", "100")
    invoke("inspect", tmp_path / "m.safetensors", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {row[4] for row in found["rows"]} == {32}
    assert 0.9 * found["bytes"] < sum(row[8] for row in found["rows"]) < found["bytes"]
    invoke("inspect", model, "--json")
    bits = {row[0]: row[4] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert bits["g_s.2"] == 8 and bits["h_s.0"] == 7
    for kind, file in (("m", tmp_path / "m.safetensors"), ("q", model)):
        invoke(
            "evaluate",
            "-m",
            file,
            "--images",
            calib,
            "-o",
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
        args, message = ("encode", picture, "-o", picture / "f.rdq"), "cannot write"
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


def test_folders_survive_bad_files_and_resume(picture: Path, tmp_path: Path) -> None:
    photos, files, back = tmp_path / "photos", tmp_path / "files", tmp_path / "back"
    photos.mkdir()
    for i in range(3):
        write_image(photos / f"{i}.png", read_image(picture)[: 40 + i])
    (photos / "bad.png").write_bytes(b"no picture")
    encoded = run("encode", photos, "-o", files)
    assert encoded.returncode == 1 and "3 done, 0 there already, 1 failed" in encoded.stderr
    assert "bad.png" in encoded.stderr and sorted(p.name for p in files.iterdir()) == [
        "0.rdq",
        "1.rdq",
        "2.rdq",
    ]
    damaged = bytearray((files / "1.rdq").read_bytes())
    damaged[40] ^= 1
    (files / "1.rdq").write_bytes(damaged)
    (photos / "bad.png").unlink()
    before = (files / "0.rdq").stat().st_mtime_ns
    again = run("encode", photos, "-o", files)
    assert again.returncode == 0 and "0 done, 3 there already" in again.stderr
    assert (files / "0.rdq").stat().st_mtime_ns == before
    decoded = run("decode", files, "-o", back)
    assert decoded.returncode == 1 and "1.rdq" in decoded.stderr and "2 done" in decoded.stderr
    assert read_image(back / "2.png").shape[0] == 42 and not (back / "1.png").exists()
    (files / "1.rdq").unlink()
    assert run("decode", files, "-o", back, "--format", "ppm").returncode == 0
    assert np.array_equal(read_image(back / "2.ppm"), read_image(back / "2.png"))
    assert "'.xyz'" in run("decode", files, "-o", back, "--format", "xyz").stderr


def test_a_killed_batch_resumes(picture: Path, tmp_path: Path) -> None:
    photos, files = tmp_path / "photos", tmp_path / "files"
    photos.mkdir()
    rgb = read_image(picture)
    for i in range(12):
        write_image(photos / f"{i:02}.png", np.tile(rgb, (4, 4, 1))[: 200 + i])
    process = subprocess.Popen(
        [sys.executable, "-m", "rdquant", "encode", str(photos), "-o", str(files)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(files.glob("*.rdq"))) < 2:
        time.sleep(0.005)
    process.kill()
    process.wait()
    left = {p: p.read_bytes() for p in files.glob("*.rdq")}
    assert 2 <= len(left) < 12
    again = run("encode", photos, "-o", files)
    assert again.returncode == 0 and f"{12 - len(left)} done, {len(left)} there already" in again.stderr
    assert all(p.read_bytes() == data for p, data in left.items())
    coder = open_coder(zoo.DEFAULT)
    assert [coder.decode(p.read_bytes()).shape[0] for p in sorted(files.glob("*.rdq"))] == [
        200 + i for i in range(12)
    ]


def test_pixel_checksums_and_approximate_pixels(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.rdq"
    invoke("encode", picture, "-o", file, "--pixel-checksum")
    invoke("decode", file, "-o", tmp_path / "exact.png")
    invoke("decode", file, "-o", tmp_path / "near.png", "--engine", "torch")
    exact, near = read_image(tmp_path / "exact.png").astype(int), read_image(tmp_path / "near.png")
    assert np.abs(exact - near).max() <= 3
    data = bytearray(file.read_bytes())
    header, streams = container.read(bytes(data))
    file.write_bytes(
        container.write(
            header.fingerprint, header.profile, header.quantizer, header.width, header.height, streams,
            (header.pixels or 0) ^ 1, header.step, header.quality,
        )
    )  # fmt: skip
    with pytest.raises(Corrupt, match="not those that the encoder saw"):
        invoke("decode", file, "-o", tmp_path / "wrong.png")
    invoke("decode", file, "-o", tmp_path / "near.png", "--engine", "torch", "--overwrite")
    assert not (tmp_path / "wrong.png").exists()


def test_batches_that_cannot_start(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other" / "photo.jpg", read_image(picture))
    for arguments, message in (
        (("encode", tmp_path / "empty"), "nothing to do"),
        (("encode", picture, tmp_path / "other" / "photo.jpg"), "same name"),
        (("decode", tmp_path / "nope.rdq"), "nope.rdq"),
    ):
        with pytest.raises(RdquantError, match=message):
            invoke(*arguments)


@pytest.fixture
def small_model(tmp_path: Path, photo: np.ndarray) -> tuple[Path, Path]:
    """A float model that knows its lambda, and a folder of calibration pictures."""
    from rdquant.files.float_models import save_float

    save_float(small_codec("mbt2018-mean"), tmp_path / "m.safetensors", {"lambda": 0.01})
    calib = tmp_path / "calib"
    calib.mkdir()
    for i in range(2):
        write_image(calib / f"{i}.png", photo[100 * i : 100 * i + 64, :64])
    return tmp_path / "m.safetensors", calib


QUICK = ("--set", "compile=false", "--set", "bf16=false", "--set", "batch=1", "--set", "crop=64")


def test_quantize_by_rate_and_distortion(
    small_model: tuple[Path, Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, calib = small_model
    target = tmp_path / "q.rdqm"
    common = ("quantize", model, "--calib", calib, "-o", target, "--steps", 4, *QUICK, "--overwrite")
    invoke(*common, "--lambda", 1e-4, "--weights", 5, "--format", "additive_power", "--json")
    trace = json.loads(capsys.readouterr().out)["trace"]
    assert [e["unit"] for e in trace] == ["float", "start", "weights", "end"]
    sizes = []
    for quantizer in ("uniform", "rdoq"):
        invoke(
            "encode", picture, "-m", target, "-o", tmp_path / "f.rdq", "--quantizer", quantizer, "--overwrite"
        )
        invoke("decode", tmp_path / "f.rdq", "-m", target, "-o", tmp_path / "d.png", "--overwrite")
        sizes.append((tmp_path / "f.rdq").stat().st_size)
    assert sizes[1] < sizes[0]
    for arguments, message in (
        (("--set", "nonsense=1"), "nonsense"),
        (("--scope", "g_x"), "g_x"),
        (("--strategy", "global"), "global"),
        (("--plan", picture), "no plan"),
        (("--method", "magic"), "magic"),
    ):
        with pytest.raises(RdquantError, match=message):
            invoke(*common, *arguments)


def test_allocate_and_quantize_to_a_size(
    small_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, calib = small_model
    plan, target = tmp_path / "plan.json", tmp_path / "q.rdqm"
    table = ("--table", tmp_path / "table.json")
    invoke("allocate", model, "--calib", calib, "--target-size", "5bits", "-o", plan, *table, "--json")
    wanted = json.loads(capsys.readouterr().out)["5bits"]["target"]
    invoke("quantize", model, "--calib", calib, "-o", target, "--no-rdo", "--plan", plan)
    assert 0.99 * wanted <= target.stat().st_size <= wanted
    invoke("allocate", model, "--calib", calib, "--target-size", "4bits", "--target-size", "6bits",
           "-o", tmp_path / "plans", *table)  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "plans").iterdir()) == ["4bits.json", "6bits.json"]
    more = ("--method", "predicted", "--overwrite")
    invoke("allocate", model, "--calib", calib, "--target-size", "4bits", "-o", plan, *more)
    assert set(json.loads(plan.read_text())["bits"]) == set(
        json.loads((tmp_path / "plans" / "4bits.json").read_text())["bits"]
    )
    with pytest.raises(RdquantError, match="impossible"):
        invoke("allocate", model, "--calib", calib, "--target-size", "100B", "-o", tmp_path / "p", *table)


def test_lambda_is_asked_for_where_gradients_run(
    small_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Elsewhere the integers are the same without."""
    _, calib = small_model
    model, made = tmp_path / "unsaid.safetensors", [tmp_path / "with.rdqm", tmp_path / "without.rdqm"]
    save_float(small_codec("mbt2018-mean"), model)
    invoke("quantize", model, "--calib", calib, "-o", made[0], "--lambda", 0.01)
    assert "nothing learns from" in " ".join(capsys.readouterr().out.split())
    invoke("quantize", model, "--calib", calib, "-o", made[1])
    found = [load_integer(path) for path in made]
    assert len({integer_fingerprint(codec) for codec in found}) == 1
    assert [codec.description["lambda"] for codec in found] == [0.01, None]
    for few in (("--weights", 4), ("--method", "mse"), ("--set", "grid=true")):
        with pytest.raises(UsageError, match="--lambda"):
            invoke("quantize", model, "--calib", calib, "-o", tmp_path / "x.rdqm", *few)
    with pytest.raises(UsageError, match="--lambda"):
        open_coder(str(made[1]), effort=1)


@pytest.mark.parametrize(
    "words",
    [
        "import m -o X", "quantize m --calib c -o X", "allocate m --calib c --target-size 8x -o X",
        "export m --to onnx -o FOLDER", "finetune m --data c -o X", "evaluate -m m --images c -o X",
        "retrain m --data c --run r -o X", "anchor jpeg --images c -o FOLDER",
        "study searches m --calib c -o X",
    ],
)  # fmt: skip
def test_what_exists_is_not_replaced(words: str, picture: Path, tmp_path: Path) -> None:
    """Refused before anything is read."""
    (tmp_path / "c").mkdir()
    write_image(tmp_path / "c" / "0.png", read_image(picture))
    for name in ("x", "report.json", "c-jpeg.json"):
        (tmp_path / name).write_bytes(b"mine")
    places = {"X": tmp_path / "x", "FOLDER": tmp_path, "c": tmp_path / "c"}
    arguments = [places.get(word, word) for word in words.split()]
    with pytest.raises(UsageError, match="exists; --overwrite replaces it"):
        invoke(*arguments)
    assert all((tmp_path / name).read_bytes() == b"mine" for name in ("x", "report.json", "c-jpeg.json"))
    if "m" in arguments:
        with pytest.raises(RdquantError, match=r"no such checkpoint|neither a file|onnx"):
            invoke(*arguments, "--overwrite")


def test_what_cannot_be_written_is_refused_before_any_work(picture: Path, tmp_path: Path) -> None:
    for target, message in ((tmp_path, "not a file"), (picture / "a" / "b", "no folder")):
        with pytest.raises(UsageError, match=message):
            invoke("quantize", "no-such-model", "--calib", tmp_path, "-o", target)


def test_coded_files_and_checkpoints_are_not_encoded(picture: Path, tmp_path: Path) -> None:
    invoke("encode", picture, "-o", tmp_path / "new" / "folder" / "f.rdq", "--target-size", "0.6kB")
    file = tmp_path / "new" / "folder" / "f.rdq"
    assert 500 < file.stat().st_size <= 600
    with pytest.raises(RdquantError, match="`rdquant decode`"):
        invoke("encode", file, "-o", tmp_path / "again.rdq")
    with pytest.raises(UsageError, match="'2 pages'"):
        invoke("encode", picture, "-o", tmp_path / "g.rdq", "--target-size", "2 pages")
    checkpoint, texts = tmp_path / "cheng2020.pth.tar", tmp_path / "texts.tar"
    torch.save({"state_dict": {}}, checkpoint)
    with tarfile.open(texts, "w") as written:
        written.add(file, "a.txt")
    before = set(tmp_path.rglob("*"))
    for shard, message in ((checkpoint, "not a tar file"), (texts, "no pictures in")):
        result = run("encode", shard, "-o", tmp_path / "y.rdq")
        assert result.returncode == 1 and message in result.stderr
    assert set(tmp_path.rglob("*")) == before


def test_a_file_of_ones_own_model_asks_for_it(picture: Path, tmp_path: Path) -> None:
    model, file = GOLDEN / "factorized-w8.rdqm", tmp_path / "f.rdq"
    invoke("encode", picture, "-m", model, "-o", file)
    with pytest.raises(RdquantError, match="with -m"):
        invoke("decode", file, "-o", tmp_path / "d.png")
    with pytest.raises(UsageError, match="one rate: leave quality"):
        invoke("encode", picture, "-m", model, "-o", tmp_path / "g.rdq", "-q", 50)


def test_help_loses_nothing_to_markup() -> None:
    """Brackets that are no tags are escaped."""

    def walk(command: Any) -> None:
        for below in getattr(command, "commands", {}).values():
            walk(below)
        for text in (command.help, *(getattr(p, "help", None) for p in command.params)):
            shown = markup.render(text or "")
            assert not shown.spans and shown.plain == (text or "").replace("\\[", "["), text

    walk(typer.main.get_command(cli.app))


def test_help_shows_the_defaults_that_are_used() -> None:
    from rdquant.passes.methods import METHODS
    from rdquant.passes.rdo_config import RdoConfig

    options = inspect.signature(quantizing.quantize).parameters
    assert RdoConfig(lambda_=1.0).strategy == "joint" and options["strategy"].default is None
    assert options["method"].default == next(iter(METHODS))


def test_every_verb_has_the_same_options_of_output() -> None:
    verbs = []

    def walk(command: Any, path: str) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{path} {name}")
        if not hasattr(command, "commands"):
            verbs.append(path)
            options = {o for p in command.params for o in p.opts}
            assert {"--json", "--quiet", "--verbose", "--threads", "--device"} <= options, path

    walk(typer.main.get_command(cli.app), "rdquant")
    assert len(verbs) > 15


def test_json_of_coding_and_silence(picture: Path, tmp_path: Path) -> None:
    found = run("encode", picture, "--json", "--threads", 1)
    (record,) = json.loads(found.stdout)["done"]
    file = picture.with_suffix(".rdq")
    assert record["bytes"] == file.stat().st_size and (record["width"], record["height"]) == (130, 100)
    quiet = run("decode", file, "-o", tmp_path / "q.png", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    both = run("encode", picture, "-o", "-", "--json")
    assert both.returncode == 2 and "standard output" in both.stderr
    file.write_bytes(file.read_bytes()[:-1])
    traced = run("decode", file, "-o", tmp_path / "v.png", "--verbose")
    assert traced.returncode == 2 and "Traceback" in traced.stderr and "of memory" in traced.stderr
    assert "Traceback" not in run("decode", file, "-o", tmp_path / "v.png").stderr


def test_a_device_gives_the_same_file_and_pixels(picture: Path, tmp_path: Path) -> None:
    assert run("encode", picture, "-o", tmp_path / "a.rdq").returncode == 0
    assert run("encode", picture, "-o", tmp_path / "b.rdq", "--device", "cpu").returncode == 0
    assert (tmp_path / "a.rdq").read_bytes() == (tmp_path / "b.rdq").read_bytes()
    assert run("decode", tmp_path / "a.rdq").returncode == 0
    assert run("decode", tmp_path / "b.rdq", "--device", "cpu").returncode == 0
    assert np.array_equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))
    for absent in ("cuda:17", "abacus"):
        refused = run("encode", picture, "-o", tmp_path / "c.rdq", "--device", absent)
        assert refused.returncode == 2 and f"'{absent}'" in refused.stderr


def test_sizes_and_times_in_units_people_read() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1 kB", 31_245: "31.2 kB", 1_850_000: "1.85 MB", 2e9: "2 GB"}
    assert {n: str(console.Size(n)) for n in sizes} == sizes
    times = {0.0123: "12.3 ms", 0.9999: "1 s", 12.34: "12.3 s", 61: "1 min 1 s", 7300: "2 h 1 min"}
    assert {n: str(console.Seconds(n)) for n in times} == times
    assert json.dumps([console.Size(5), console.Seconds(0.5)]) == "[5, 0.5]"


def test_shells_complete_models() -> None:
    environment = {
        **os.environ,
        "_RDQUANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "rdquant ev",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['rdquant']; from rdquant.cli import main; main()"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "evaluate" in shown.stdout
    assert common.zoo_names("mean-scale-s-0130")[0] == "mean-scale-s-0130"
