"""The cells of a study, made by processes and stored one by one: what is stored is not made again.

A study is built in every process from a recipe. A process that dies takes only its running cell with it,
which another process tries once more. What cannot be made is an error once everything else is stored.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, cast

from .. import threads
from ..errors import RdquantError, StudyError, UsageError
from ..files.atomic import atomic_write

#: of a cell whose process died
TRIES = 2


class Study(Protocol):
    """What makes cells. Cells are picklable."""

    def path(self, cell: Any) -> Path:
        """Where the result is stored: a JSON file named by all that decides it."""

    def label(self, cell: Any) -> str:
        """The cell, for people."""

    def preparation(self, cell: Any) -> Any:
        """What is prepared for it first: a process prefers cells whose preparation it has."""

    def make(self, cell: Any) -> dict[str, Any]:
        """The result, which JSON can hold."""


#: what builds the study in another process; picklable: `functools.partial` of a function and its arguments
Recipe = Callable[[], Study]
#: done, total, what was done last
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Lost:
    """Why there is no result."""

    why: str


@dataclass(frozen=True)
class Taken:
    """What processes of this machine took to make cells. (Windows does not say what they computed.)"""

    cells: int
    jobs: int  #: processes at a time
    threads: int  #: of all processes together
    seconds: float  #: of the clock
    busy: float  #: share of the threads' seconds in which processes computed

    def __str__(self) -> str:
        return (
            f"{self.cells} cells took {self.seconds:.0f} s, of which {self.threads} threads computed "
            f"{100 * self.busy:.0f} %"
        )


#: what became of each cell, named by its path, as it comes
Outcomes = Generator[tuple[Path, dict[str, Any] | Lost], None, None]


def run(
    study: Study,
    recipe: Recipe,
    cells: Sequence[Any],
    jobs: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    say: Callable[[Taken], None] | None = None,
) -> list[dict[str, Any]]:
    """The results of ``cells``, in their order; ``study`` is what ``recipe`` builds.

    ``jobs``: processes at a time, each with its share of the threads that `rdquant.threads.allowed` counts;
    default: as many as threads. ``ray``: address of a cluster that makes the cells (`rdquant.study.cluster`).
    ``say`` is told in the end how long processes of this machine took, and how busy they kept its cores,
    unless nothing was left to make.

    Raises `UsageError` for no jobs, and `StudyError`, once all else is made, with the cells that cannot be.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"there must be at least 1 job, got {jobs}")
    paths = [study.path(cell) for cell in cells]
    left = {path: cell for path, cell in zip(paths, cells, strict=True) if not path.exists()}
    lost: dict[Path, Lost] = {}

    def report(note: str = "") -> None:
        if progress:
            progress(sum(path not in left for path in paths), len(cells), note)

    report()
    made, started, before = len(left), time.perf_counter(), os.times()
    processes = max(1, min(jobs or threads.allowed(), made))
    if left and ray is not None:
        from .cluster import on_ray

        outcomes = on_ray(ray, recipe, _by_preparation(study, left), jobs)
    else:
        outcomes = _in_processes(study, recipe, left, processes)
    with closing(outcomes):
        for path, outcome in outcomes:
            if isinstance(outcome, Lost):
                lost[path] = outcome
            else:
                with atomic_write(path) as handle:
                    handle.write(json.dumps(outcome, indent=1).encode())
            report(study.label(left.pop(path)))
    if say and made and ray is None:
        say(_taken(made, processes, started, before))
    if lost:
        missing = [(study.label(c), lost[p].why) for p, c in zip(paths, cells, strict=True) if p in lost]
        raise StudyError(
            f"{len(missing)} of {len(cells)} cells could not be made; the others are stored, and running the "
            f"same again makes only these: {'; '.join(f'{label} ({why})' for label, why in missing)}"
        )
    return [json.loads(path.read_text()) for path in paths]


def _taken(cells: int, jobs: int, started: float, before: os.times_result) -> Taken:
    """What ended processes took since then."""
    seconds, now, cores = time.perf_counter() - started, os.times(), threads.allowed()
    computed = now.children_user + now.children_system - before.children_user - before.children_system
    return Taken(cells, jobs, cores, seconds, computed / (seconds * cores))


def attempt(study: Study, cell: Any) -> dict[str, Any] | Lost:
    """The cell's result, or what was raised. `MemoryError` ends the process: another may have enough."""
    try:
        return study.make(cell)
    except MemoryError:
        raise
    except RdquantError as error:
        return Lost(str(error))
    except Exception as error:
        traceback.print_exc()
        return Lost(f"{type(error).__name__}: {error}")


def _by_preparation(study: Study, left: Mapping[Path, Any]) -> dict[Path, Any]:
    """Cells of one preparation after each other."""
    return dict(sorted(left.items(), key=lambda item: str(study.preparation(item[1]))))


def _in_processes(study: Study, recipe: Recipe, left: Mapping[Path, Any], jobs: int) -> Outcomes:
    """Every cell of ``left`` and what became of it, as it comes."""
    context, cores = multiprocessing.get_context("spawn"), threads.allowed()
    waiting, tried = dict(left), Counter[Path]()
    preparations = {path: study.preparation(cell) for path, cell in left.items()}
    processes: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, Path] = {}  # the cell that a process makes

    def start() -> Connection:
        ours, theirs = context.Pipe()
        processes[ours] = context.Process(target=_work, args=(theirs, max(1, cores // jobs)))
        processes[ours].start()
        theirs.close()
        _send(ours, recipe)
        return ours

    def give(connection: Connection, before: Path | None = None) -> None:
        taken = [preparations[path] for path in busy.values()]

        def rank(path: Path) -> int:
            if before is not None and preparations[path] == preparations[before]:
                return 0
            return 1 + (preparations[path] in taken)

        busy[connection] = path = min(waiting, key=rank)
        tried[path] += 1
        _send(connection, waiting.pop(path))

    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                give(start())
            for connection in cast(list[Connection], wait(list(busy))):
                path = busy.pop(connection)
                outcome: dict[str, Any] | Lost
                try:
                    outcome = connection.recv()
                except (EOFError, OSError):
                    processes[connection].join()
                    if tried[path] < TRIES:
                        waiting[path] = left[path]
                        continue
                    outcome = Lost(
                        f"its process died {TRIES} times, {_death(processes[connection].exitcode)}"
                    )
                else:
                    if waiting:
                        give(connection, path)
                    else:
                        connection.close()  # which ends the process
                yield path, outcome
    finally:
        for connection, process in processes.items():
            if connection in busy:
                process.kill()
            process.join(10)
            process.kill()


def _send(connection: Connection, item: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # of a process that died, which receiving notices
        connection.send(item)


def _death(code: int | None) -> str:
    memory = ", as if memory ran out: try fewer jobs" if code == -getattr(signal, "SIGKILL", 9) else ""
    return f"exit code {code}{memory}"


def _work(connection: Connection, count: int) -> None:
    """A process: its study, then one cell after the other until nobody sends one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this, and ends it
    threads.limit(count)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    study = connection.recv()()
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        connection.send(attempt(study, cell))


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
