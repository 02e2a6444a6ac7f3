from __future__ import annotations

import os
from pathlib import Path

import pytest

from rdquant.errors import UsageError
from rdquant.files.atomic import atomic_write


def test_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as handle:
        handle.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with atomic_write(path) as handle:
        handle.write(b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "f") as handle:
        handle.write(b"new")
    assert (tmp_path / "a" / "b" / "f").read_bytes() == b"new"
    with pytest.raises(UsageError, match="cannot write"), atomic_write(tmp_path / "a" / "b" / "f" / "g"):
        pass


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="not a file"), atomic_write(path):
            pass
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as handle:
        handle.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_long_names(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 250)) as handle:
        handle.write(b"x")
    assert [len(p.name) for p in tmp_path.iterdir()] == [250]
