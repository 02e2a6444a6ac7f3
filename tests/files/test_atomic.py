from __future__ import annotations

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


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"), atomic_write(tmp_path / "no" / "f"):
        pass
