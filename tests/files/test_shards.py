"""Shards: pictures change, what is beside them stays, and what is broken is named."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rdquant
from rdquant.bulk import CodingStudy, Encoding, target_name
from rdquant.errors import ImageError, UsageError
from rdquant.files import images
from rdquant.files.shards import open_shard, pictures_at
from rdquant.study import executor

MODEL = str(Path(__file__).parent.parent / "golden" / "factorized-w8.rdqm")
OTHER = str(Path(__file__).parent.parent / "golden" / "factorized-loud-w8.rdqm")
LABELS = [{"label": i} for i in range(3)]


@pytest.fixture
def pngs(photo: np.ndarray) -> list[bytes]:
    found = []
    for i in range(3):
        whole = io.BytesIO()
        Image.fromarray(photo[40 * i : 40 * i + 33, :48]).save(whole, "PNG")
        found.append(whole.getvalue())
    return found


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as written:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return path


def in_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]


def web_dataset(path: Path, pictures: list[bytes]) -> Path:
    members: list[tuple[str, bytes]] = []
    for i, picture in enumerate(pictures):
        members += [(f"{i:04}.png", picture), (f"{i:04}.json", json.dumps(LABELS[i]).encode())]
    return tar(path, members)


def parquet(path: Path, pictures: list[bytes | None], struct: bool) -> Path:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": p, "path": f"{i:04}.png"} for i, p in enumerate(pictures)] if struct else pictures
    written.write_table(arrow.table({"image": cells, "label": list(range(len(pictures)))}), path)
    return path


def run(*args: object, code: int = 0) -> str:
    words = [sys.executable, "-m", "rdquant", *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def singly(pngs: list[bytes]) -> Iterator[bytes]:
    """The files that the pictures become one by one."""
    for png in pngs:
        yield rdquant.encode(np.asarray(Image.open(io.BytesIO(png))), MODEL)


def test_a_tar_is_coded_and_decoded_with_what_is_beside(tmp_path: Path, pngs: list[bytes]) -> None:
    source = web_dataset(tmp_path / "a.tar", pngs)
    run("encode", source, "-m", MODEL, "-o", tmp_path / "coded")
    coded = in_tar(tmp_path / "coded" / "a.tar")
    assert list(coded) == [f"{i:04}.{s}" for i in range(3) for s in ("rdq", "json")]
    assert [coded[f"{i:04}.rdq"] for i in range(3)] == list(singly(pngs))
    assert [json.loads(coded[f"{i:04}.json"]) for i in range(3)] == LABELS
    run("decode", tmp_path / "coded", "-m", MODEL, "-o", tmp_path / "back")
    back = in_tar(tmp_path / "back" / "a.tar")
    for i in range(3):
        pixels = np.asarray(Image.open(io.BytesIO(back[f"{i:04}.png"])))
        assert np.array_equal(pixels, rdquant.decode(coded[f"{i:04}.rdq"], MODEL))
    assert "1 there already" in run("decode", tmp_path / "coded", "-m", MODEL, "-o", tmp_path / "back")


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_keeps_its_columns(tmp_path: Path, pngs: list[bytes], struct: bool) -> None:
    source = parquet(tmp_path / "a.parquet", [*pngs[:2], b"broken", pngs[2]], struct)
    output = run("encode", source, "-m", MODEL, "-o", tmp_path / "coded", code=1)
    assert ("0002.png" if struct else "000002") in output and "3 pictures" in output
    from pyarrow import parquet as read

    before, after = (read.read_table(p) for p in (source, tmp_path / "coded" / "a.parquet"))
    assert after.schema.equals(before.schema) and after["label"].to_pylist() == [0, 1, 3]
    cells = after["image"].to_pylist()
    assert [c["bytes"] if struct else c for c in cells] == list(singly(pngs))
    assert not struct or [c["path"] for c in cells] == ["0000.rdq", "0001.rdq", "0003.rdq"]
    run("decode", tmp_path / "coded" / "a.parquet", "-m", MODEL, "-o", tmp_path / "back")
    assert len(pictures_at(tmp_path / "back" / "a.parquet")) == 3


def test_a_bad_picture_is_left_out_and_named(tmp_path: Path, pngs: list[bytes]) -> None:
    source = web_dataset(tmp_path / "a.tar", [pngs[0], b"no picture", pngs[2]])
    output = run("encode", source, "-m", MODEL, "-o", tmp_path / "coded", "--json", code=1)
    found = json.loads(output[: output.rindex("}") + 1])
    assert found["done"][0]["pictures"] == 2 and "0001.png" in found["failed"][0]["error"]
    assert list(in_tar(tmp_path / "coded" / "a.tar")) == ["0000.rdq", "0000.json", "0002.rdq", "0002.json"]


def test_shards_are_measured_as_folders_are(tmp_path: Path, pngs: list[bytes]) -> None:
    (tmp_path / "folder").mkdir()
    for i, png in enumerate(pngs):
        (tmp_path / "folder" / f"{i:04}.png").write_bytes(png)
    (tmp_path / "shards").mkdir()
    web_dataset(tmp_path / "shards" / "a.tar", pngs[:2])
    tar(tmp_path / "shards" / "b.tar", [("0002.png", pngs[2])])
    points = [rdquant.evaluate(MODEL, tmp_path / name).points[0] for name in ("folder", "shards")]
    rows = [[(i.name, i.bytes, i.psnr) for i in p.images] for p in points]
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_processes_measure_the_same_and_resume(tmp_path: Path, pngs: list[bytes]) -> None:
    (tmp_path / "folder").mkdir()
    for i, png in enumerate(pngs):
        (tmp_path / "folder" / f"{i:04}.png").write_bytes(png)
    web_dataset(tmp_path / "a.tar", pngs)
    plain = rdquant.evaluate([MODEL, OTHER], tmp_path / "folder")
    for place in ("folder", "a.tar"):
        curve = rdquant.evaluate([MODEL, OTHER], tmp_path / place, run=tmp_path / "run", jobs=2)
        for point, expected in zip(curve.points, plain.points, strict=True):
            assert (point.label, point.model) == (expected.label, expected.model)
            rows = [[(i.name, i.bytes, i.psnr) for i in p.images] for p in (point, expected)]
            assert rows[0] == rows[1] and len(rows[0]) == 3
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    assert len(stored) == 2 * (3 + 1)
    rdquant.evaluate([MODEL, OTHER], tmp_path / "folder", run=tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == stored
    with pytest.raises(UsageError, match="must be files"):
        rdquant.evaluate(MODEL, [np.zeros((8, 8, 3), np.uint8)], jobs=2)


def test_cells_of_coding_are_files_and_shards(tmp_path: Path, pngs: list[bytes]) -> None:
    """As a cluster makes them, by processes here."""
    sources = [web_dataset(tmp_path / "a.tar", [pngs[0], b"bad"]), tmp_path / "b.png", tmp_path / "c.png"]
    sources[1].write_bytes(pngs[1])
    sources[2].write_bytes(b"bad")
    (tmp_path / "records").mkdir()
    coding = Encoding(MODEL)
    recipe = functools.partial(CodingStudy, coding, tmp_path / "records")
    cells = [(s, tmp_path / "records" / target_name(coding, s)) for s in sources]
    shard, picture, bad = executor.run(recipe(), recipe, cells, jobs=2)
    assert shard["pictures"] == 1 and "0001.png" in shard["lost"][0] and "not a picture" in bad["error"]
    assert cells[1][1].read_bytes() == list(singly(pngs))[1] and picture["width"] == 48
    assert not cells[2][1].exists()


def test_a_cluster_codes_what_threads_code(tmp_path: Path, pngs: list[bytes]) -> None:
    pytest.importorskip("ray")
    source = web_dataset(tmp_path / "a.tar", pngs)
    (tmp_path / "b.png").write_bytes(pngs[0])
    words = ["encode", source, tmp_path / "b.png", "-m", MODEL, "-o"]
    run(*words, tmp_path / "threads")
    run(*words, tmp_path / "ray", "--ray", "local")
    assert in_tar(tmp_path / "ray" / "a.tar") == in_tar(tmp_path / "threads" / "a.tar")
    assert "2 there already" in run(
        "encode", source, tmp_path / "b.png", "-o", tmp_path / "ray", "--ray", "local"
    )


def test_what_is_no_shard_is_an_error(tmp_path: Path, pngs: list[bytes]) -> None:
    broken = tmp_path / "b.tar"
    broken.write_bytes(web_dataset(tmp_path / "a.tar", pngs).read_bytes()[:700])
    for path, message in ((broken, "not a tar"), (tmp_path / "none.tar", "no such file")):
        with pytest.raises((ImageError, UsageError), match=message):
            list(open_shard(path, images.SUFFIXES).pictures())
    with pytest.raises(UsageError, match="no pictures"):
        pictures_at(tar(tmp_path / "c.tar", [("a.txt", b"text")]))
    twice = tar(tmp_path / "d.tar", [("0.png", pngs[0]), ("0.jpg", pngs[1])])
    with pytest.raises(ImageError, match=r"two pictures would be written as 0\.rdq"):
        open_shard(twice, images.SUFFIXES).rewrite(tmp_path / "e.tar", ".rdq", lambda _, content: content)
    assert not (tmp_path / "e.tar").exists()
    assert "over itself" in run("encode", tmp_path / "a.tar", "-m", MODEL, code=2)
    assert "b.tar" in run("encode", broken, "-m", MODEL, "-o", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_parquet_without_pictures_is_an_error(tmp_path: Path, pngs: list[bytes]) -> None:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    other = tmp_path / "a.parquet"
    written.write_table(arrow.table({"photo": pngs}), other)
    with pytest.raises(ImageError, match="no column 'image': photo"):
        pictures_at(other)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImageError, match="not a Parquet file"):
        pictures_at(tmp_path / "b.parquet")
    empty = open_shard(parquet(tmp_path / "c.parquet", [pngs[0], None], True), images.SUFFIXES)
    with pytest.raises(ImageError, match="row 1 has no bytes"):
        list(empty.pictures())
