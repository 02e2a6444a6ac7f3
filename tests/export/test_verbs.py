"""export, finetune and decode --engine on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import small_codec
from rdquant import cli
from rdquant.errors import RdquantError
from rdquant.files.float_models import save_float
from rdquant.files.images import read_image, write_image
from rdquant.files.integer_models import load_integer
from rdquant.graph.operations import Compensate, Requantize


def invoke(*arguments: object) -> None:
    cli.app([str(a) for a in arguments], standalone_mode=False)


def test_models_for_other_engines(photo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, pictures, picture = tmp_path / "m.safetensors", tmp_path / "pictures", tmp_path / "photo.png"
    save_float(small_codec("mbt2018-mean"), model, {"lambda": 0.01})
    pictures.mkdir()
    for i in range(2):
        write_image(pictures / f"{i}.png", photo[100 * i : 100 * i + 64, :64])
    write_image(picture, photo[40:140, 200:330])
    plain, tuned, file = tmp_path / "p.rdqm", tmp_path / "t.rdqm", tmp_path / "f.rdq"
    invoke("quantize", model, "--calib", pictures, "-o", plain, "--profile", "portable")
    codec = load_integer(plain)
    assert codec.description["quantize"]["mixing"] == "plain"
    # mixed, and then rounded as every engine does
    synthesis = codec.networks["synthesis"]
    assert isinstance(synthesis["g_s.1~mixed.out"].op, Requantize) and not synthesis.names(Compensate)
    capsys.readouterr()
    (pictures / "list.csv").write_text("file,split\n0.png,train\n1.png,val\n")
    options = "--minutes", 0.01, "--side", 64, "--profile", "portable", "--json"
    invoke("finetune", model, "--data", pictures, "-o", tuned, *options)
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] > 0 and "J percent" in report
    assert load_integer(tuned).description["finetune"]["steps"] == report["steps"]
    with pytest.raises(RdquantError, match="--to must be onnx or openvino"):
        invoke("export", plain, "--to", "tflite", "-o", tmp_path / "x")
    with pytest.raises(RdquantError, match="the profile must be"):
        invoke("quantize", model, "--calib", pictures, "-o", tmp_path / "x", "--profile", "small")
    pytest.importorskip("onnx")
    invoke("export", tuned, "--to", "onnx", "-o", tmp_path / "onnx")
    assert "g_s.6" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "onnx").iterdir()} == {
        "analysis.onnx", "synthesis.onnx", "report.json"
    }  # fmt: skip
    pytest.importorskip("onnxruntime")
    invoke("encode", picture, "-m", tuned, "-o", file)
    for engine in ("exact", "onnx"):
        invoke("decode", file, "-m", tuned, "-o", tmp_path / f"{engine}.png", "--engine", engine)
    exact, near = (read_image(tmp_path / f"{e}.png").astype(int) for e in ("exact", "onnx"))
    assert (np.abs(exact - near) <= 1).mean() >= 0.999
