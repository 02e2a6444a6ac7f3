"""How many threads compute, how kernels share their work, and what pictures must not do at once.

Kernels run in the caller's thread and in helpers of this process, each on its own part of the rows, without
Python's lock. Nothing is computed by more than one, so that results do not depend on how many there are.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

#: held while networks or searches run: they use all cores by themselves, and two at once would need the
#: memory of two
PARALLEL = threading.RLock()


def allowed() -> int:
    """As many threads as `limit` or ``OMP_NUM_THREADS`` allow, else one for each core of this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit(count: int) -> None:
    """At most so many for networks and kernels, whether their libraries are imported or not yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


def share(count: int, run: Callable[[int, int], object], least: int = 1) -> None:
    """``run(first, last)`` for parts that make up ``range(count)``, each in a thread of its own, and of
    ``least`` or more.

    ``run`` calls a kernel compiled with ``nogil``, and nothing that calls `share`. What it raises is raised
    once all have ended.
    """
    parts = min(count // max(least, 1), allowed())
    if parts <= 1:
        run(0, count)
        return
    ends = [count * i // parts for i in range(parts + 1)]
    jobs = [_Job(run, *ends[i : i + 2]) for i in range(1, parts)]
    for queue, job in zip(_helpers(allowed() - 1), jobs, strict=False):
        queue.put(job)
    try:
        run(0, ends[1])
    finally:
        for job in jobs:
            job.ended.acquire()
    for job in jobs:
        if job.error is not None:
            raise job.error


class _Job:
    """A part for a helper. A `Future` would do, at ten times the cost of handing a part over."""

    def __init__(self, run: Callable[[int, int], object], first: int, last: int) -> None:
        self.run, self.first, self.last = run, first, last
        self.error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()


@functools.cache
def _helpers(count: int) -> list[SimpleQueue[_Job]]:
    """A queue for each of ``count`` threads that live as long as the process."""

    def work(queue: SimpleQueue[_Job]) -> None:
        while True:
            job = queue.get()
            try:
                job.run(job.first, job.last)
            except BaseException as error:  # the caller's to raise
                job.error = error
            job.ended.release()
            del job  # or its arrays would live on until the next

    queues: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(count)]
    for queue in queues:
        threading.Thread(target=work, args=(queue,), name="rdquant", daemon=True).start()
    return queues


if hasattr(os, "register_at_fork"):  # threads do not live on in a child
    os.register_at_fork(after_in_child=_helpers.cache_clear)
