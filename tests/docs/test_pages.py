"""Every command and every code block of the documents, as a reader would run them.

The quick start runs with the other tests; the tutorials, which quantize, by ``make docs-test``. In a page,
``<!-- test: A -> B -->`` before a block makes something smaller, ``<!-- not run: why -->`` leaves it out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import typer
from PIL import Image

from rdquant import cli, zoo

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"((?:<!-- (?:test|not run): [^\n]* -->\n)?)```(sh|python)\n(.*?)```", re.S)
#: run whole, in order; others have commands that are only read
FAST = ("docs/index.md",)
SLOW = (
    "README.md",
    "docs/pictures.md",
    *(f"docs/tutorials/{name}.md" for name in ("checkpoint", "size", "tcq", "ship")),
)
#: run by tests of their own
ELSEWHERE = ("docs/own-codec.md",)


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages speak of: photo.png, photos, test-photos, checkpoint.pth.tar, shards of pictures."""
    for name, side, count in (("photos", 96, 6), ("test-photos", 176, 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            at = 60 * i
            Image.fromarray(photo[at : at + side, at : at + side]).save(tmp_path / name / f"{i}.png")
    Image.fromarray(photo[80:240, 160:320]).save(tmp_path / "photo.png")
    (tmp_path / "shards").mkdir()
    for shard in ("train-000.tar", "train-001.tar", "shards/a.tar", "shards/b.tar"):
        with tarfile.open(tmp_path / shard, "w") as written:
            written.add(tmp_path / "photo.png", "0.png")
    table = pyarrow.table({"image": [(tmp_path / "photo.png").read_bytes()]})
    pyarrow.parquet.write_table(table, tmp_path / "val.parquet")
    from rdquant.files.float_models import load_float

    state = load_float(zoo.model_path("mean-scale-s-0130")).state_dict()
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pth.tar")
    commands = tmp_path / ".commands"
    commands.mkdir()
    script = commands / "rdquant"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rdquant "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(path: Path) -> int:
    """Every block in order, Python in one namespace; returns how many ran."""
    names: dict[str, Any] = {"__name__": "page"}
    count = 0
    for note, language, code in BLOCK.findall(path.read_text()):
        if "not run" in note:
            continue
        if change := re.match(r"<!-- test: (.*) -> (.*) -->", note):
            assert change[1] in code, note
            code = code.replace(change[1], change[2])
        count += 1
        if language == "python":
            exec(compile(code, str(path), "exec"), names)
            continue
        code = "\n".join(line for line in code.splitlines() if not line.startswith("pip install"))
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
    return count


@pytest.mark.parametrize("page", FAST)
def test_quick_pages_run(page: str, folder: Path) -> None:
    assert run_page(ROOT / page) >= 3
    same = [np.asarray(Image.open(folder / name)) for name in ("back.png", "again.png")]
    assert np.array_equal(*same) and len(list((folder / "coded").iterdir())) == 6


@pytest.mark.docs
@pytest.mark.parametrize("page", SLOW)
def test_tutorials_run(page: str, folder: Path) -> None:
    if page.endswith("ship.md"):
        pytest.importorskip("openvino")
        pytest.importorskip("onnxruntime")
    assert run_page(ROOT / page) >= 1


@pytest.mark.docs
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "rdquant.front.encode" in page and "<p>::</p>" not in page


def test_every_block_of_code_has_a_test() -> None:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if BLOCK.search(page.read_text()) and name not in (*FAST, *SLOW):
            assert name in ELSEWHERE, f"nothing runs the code of {name}"


def commands() -> list[tuple[str, str]]:
    """``(page, command)`` of every line of code that begins with "rdquant", in any page and any block."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for block in re.findall(
            r"(?:```\w*\n(.*?)```|((?:^    \S[^\n]*\n)+))", page.read_text(), re.S | re.M
        ):
            text = "".join(block).replace("\\\n", " ")
            for line in text.splitlines():
                line = line.strip()
                if line.startswith("rdquant "):
                    found += [
                        (name, part.strip()) for part in line.split("#")[0].split(" | ") if "rdquant" in part
                    ]
        found += [(name, c) for c in re.findall(r"`(rdquant [a-z]+ [^`]*--[^`]*)`", page.read_text())]
    return found


def test_every_command_of_the_documents_is_one() -> None:
    """Verbs and options exist, and values are of their types."""
    root = typer.main.get_command(cli.app)
    assert len(commands()) > 40
    for page, command in commands():
        words = shlex.split(re.sub(r"\s[<>]\s*\S+", "", command))[1:]
        group = root
        while words and words[0] in getattr(group, "commands", {}):
            group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert not hasattr(group, "commands"), f"{page}: {command}: no such verb"
        known = {o for p in group.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in words:
            option = word.split("=")[0]
            if option.startswith("-") and not re.fullmatch(r"-\d.*|-", option):
                assert option in known, f"{page}: {command}: no option {option}"
