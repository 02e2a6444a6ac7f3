"""The executor on a study that costs nothing, whose cells kill their processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rdquant import threads
from rdquant.errors import RdquantError, StudyError, UsageError
from rdquant.study import executor


@dataclass(frozen=True)
class Cell:
    number: int
    model: str = "m"
    fails: str = ""
    """ "once" and "always" kill the process; "error", "bug" and "memory" raise; "busy" computes."""
    seconds: float = 0.0


class Squares:
    """Each cell's number squared, noted in a log of what was made where."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prepared = folder, 0
        self._last: str | None = None

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.model}-{cell.number}.json"

    def label(self, cell: Cell) -> str:
        return f"cell {cell.number}"

    def preparation(self, cell: Cell) -> str:
        return cell.model

    def make(self, cell: Cell) -> dict[str, Any]:
        (self.folder / "log").mkdir(exist_ok=True)
        marker = self.folder / "log" / f"{cell.model}-{cell.number}"
        with marker.open("a") as log:
            log.write(f"{os.getpid()}\n")
        if cell.fails == "busy":
            end = time.thread_time() + cell.seconds
            while time.thread_time() < end:
                pass
        else:
            time.sleep(cell.seconds)
        if cell.fails == "always" or (cell.fails == "once" and len(marker.read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.fails == "error":
            raise RdquantError("no square of this")
        if cell.fails == "bug":
            raise KeyError("typo")
        if cell.fails == "memory" and len(marker.read_text().split()) == 1:
            raise MemoryError
        if self._last != cell.model:
            self.prepared, self._last = self.prepared + 1, cell.model
        return {"square": cell.number**2, "prepared": self.prepared, "threads": threads.allowed()}


def run(folder: Path, cells: list[Cell], jobs: int | None = 2, **options: Any) -> list[dict[str, Any]]:
    recipe = functools.partial(Squares, folder)
    return executor.run(recipe(), recipe, cells, jobs, **options)


def tried(folder: Path) -> dict[str, int]:
    return {p.name: len(p.read_text().split()) for p in (folder / "log").iterdir()}


def squares(results: list[dict[str, Any]]) -> list[int]:
    return [r["square"] for r in results]


def test_a_killed_process_loses_its_cell_which_is_made_again(tmp_path: Path) -> None:
    cells = [Cell(i, fails={1: "once", 3: "memory"}.get(i, "")) for i in range(6)]
    seen: list[tuple[int, int]] = []
    found = run(tmp_path, cells, progress=lambda done, total, _: seen.append((done, total)))
    assert squares(found) == [0, 1, 4, 9, 16, 25]
    assert tried(tmp_path) == {f"m-{i}": 1 + (i in (1, 3)) for i in range(6)}
    assert seen == [(i, 6) for i in range(7)]


@pytest.mark.skipif(sys.platform == "win32", reason="does not say what processes computed")
def test_says_how_busy_cores_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    said: list[executor.Taken] = []
    cells = [Cell(i, seconds=4.0, fails="" if i else "busy") for i in range(2)]
    run(tmp_path, cells, say=said.append)  # one computes, one sleeps
    run(tmp_path, cells, say=said.append)  # and nothing is left to make
    (taken,) = said
    assert (taken.cells, taken.jobs, taken.threads) == (2, 2, 2)
    assert 0.3 < taken.busy < 0.8
    assert str(taken).startswith("2 cells took ") and "2 threads computed" in str(taken)


def test_cells_that_cannot_be_made_are_named_and_all_others_stored(tmp_path: Path) -> None:
    fails = {0: "always", 2: "error", 3: "bug"}
    cells = [Cell(i, fails=fails.get(i, "")) for i in range(6)]
    with pytest.raises(StudyError) as error:
        run(tmp_path, cells)
    message = str(error.value)
    assert "3 of 6 cells" in message and "running the same again" in message
    assert "cell 0 (its process died 2 times, exit code -9" in message
    assert "cell 2 (no square of this)" in message and "cell 3 (KeyError: 'typo')" in message
    assert tried(tmp_path) == {"m-0": 2, **{f"m-{i}": 1 for i in range(1, 6)}}
    assert {p.name for p in tmp_path.glob("*.json")} == {"m-1.json", "m-4.json", "m-5.json"}
    again = run(tmp_path, [Cell(i) for i in range(6)])  # now nothing fails
    assert squares(again) == [0, 1, 4, 9, 16, 25]
    assert tried(tmp_path) == {f"m-{i}": {0: 3, 2: 2, 3: 2}.get(i, 1) for i in range(6)}


def test_any_number_of_processes_makes_the_same_and_shares_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cells = [Cell(i, model) for i in range(2) for model in "ab"]
    found = {}
    for jobs in (1, 2, None):
        (folder := tmp_path / str(jobs)).mkdir()
        found[jobs] = run(folder, [*cells, cells[0]], jobs)  # one place twice: made once
        assert set(tried(folder).values()) == {1}
    assert squares(found[1]) == squares(found[2]) == squares(found[None]) == [0, 0, 1, 1, 0]
    assert {r["threads"] for r in found[1]} == {3} and {r["threads"] for r in found[2]} == {1}
    # one process makes all of a model before it prepares the next
    assert [r["prepared"] for r in found[1]] == [1, 2, 1, 2, 1]


def test_interrupting_keeps_what_is_made_and_leaves_no_process(tmp_path: Path) -> None:
    cells = [Cell(0), Cell(1), Cell(2, seconds=600), Cell(3, seconds=600)]
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background may not have
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_executor import Cell, run
if __name__ == "__main__":
    run(Path(sys.argv[1]), {cells!r})
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None and len(list((tmp_path / "log").glob("*"))) < 4:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count(b"Traceback") == 1 and b"KeyboardInterrupt" in errors
    assert {p.name for p in tmp_path.glob("*.json")} == {"m-0.json", "m-1.json"}
    for marker in (tmp_path / "log").iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(marker.read_text()), 0)


def test_no_jobs_and_no_ray_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="at least 1 job, got 0"):
        run(tmp_path, [Cell(0)], 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs ray.*rdquant\[scale\]"):
        run(tmp_path, [Cell(0)], ray="local")


def test_stored_cells_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m-3.json").write_text(json.dumps({"square": 9}))
    monkeypatch.setattr(executor.multiprocessing, "get_context", lambda _: None)
    assert run(tmp_path, [Cell(3)]) == [{"square": 9}]
    assert run(tmp_path, [Cell(3)], ray="auto") == [{"square": 9}]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A Ray cluster on this machine, and its second node."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


def test_ray_makes_again_what_was_killed(two_nodes: tuple[Any, Any], tmp_path: Path) -> None:
    fails = {1: "once", 2: "memory", 3: "error", 4: "always"}
    cells = [Cell(i, fails=fails.get(i, ""), seconds=0.3) for i in range(8)]
    with pytest.raises(StudyError) as error:
        run(tmp_path, cells, None, ray=two_nodes[0].address)
    assert "2 of 8 cells" in str(error.value) and "cell 3 (no square of this)" in str(error.value)
    assert "cell 4 (its process died 2 times" in str(error.value)
    assert tried(tmp_path) == {f"m-{i}": 1 + (i in (1, 2, 4)) for i in range(8)}
    found = {p.name: json.loads(p.read_text())["square"] for p in tmp_path.glob("*.json")}
    assert found == {f"m-{i}.json": i * i for i in (0, 1, 2, 5, 6, 7)}


def test_ray_makes_elsewhere_what_a_dead_node_had(two_nodes: tuple[Any, Any], tmp_path: Path) -> None:
    cluster, node = two_nodes

    def remove() -> None:
        while len(list(tmp_path.glob("log/*"))) < 2:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    assert squares(run(tmp_path, [Cell(i, seconds=5) for i in range(2)], ray=cluster.address)) == [0, 1]
    remover.join()
    assert sorted(tried(tmp_path).values()) == [1, 2]


def test_a_ray_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="no Ray cluster at 'auto'"):
        run(tmp_path, [Cell(0)], ray="auto")
