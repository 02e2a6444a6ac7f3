"""How many threads compute, how kernels share their work, and what pictures must not do at once.

Kernels run in the caller's thread and in helpers of this process, each on its own part of the rows, without
Python's lock. Nothing is computed by more than one, so that results do not depend on how many there are.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

#: held while networks or searches run: they use all cores by themselves, and two at once would need the
#: memory of two
PARALLEL = threading.RLock()
#: whether a thread does part of a `share`
_here = threading.local()
#: that work is cut into for each thread: cores are not all as fast, and may be wanted by others
PARTS = 2


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
    """``run(first, last)`` for parts of ``range(count)``, each of ``least`` or more, by all threads.

    ``run`` calls kernels compiled with ``nogil``; what it shares in turn, its thread does alone. What it
    raises is raised once all have ended.
    """
    whole, most = count // max(least, 1), 1 if getattr(_here, "within", False) else allowed()
    threads = min(whole, most)
    if threads <= 1:
        run(0, count)
        return
    n = min(whole, PARTS * threads)
    ends = [count * i // n for i in range(n + 1)]
    # the same part of the rows to each thread, kernel after kernel: they are in its core's cache
    shares = [
        deque((ends[i], ends[i + 1]) for i in range(n * t // threads, n * (t + 1) // threads))
        for t in range(threads)
    ]
    jobs = [_Job(run, shares[t:] + shares[:t]) for t in range(threads)]
    for queue, job in zip(_helpers(most - 1)[: threads - 1], jobs[1:], strict=True):
        queue.put(job)
    jobs[0].do()
    for job in jobs:
        job.ended.acquire()
    for job in jobs:
        if job.error is not None:
            raise job.error


class _Job:
    """What one thread does: its own share, then the last parts of the others'. Handing over a `Future` takes
    longer.
    """

    def __init__(self, run: Callable[[int, int], object], shares: list[deque[tuple[int, int]]]) -> None:
        self.run, self.shares = run, shares
        self.error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    def do(self) -> None:
        _here.within = True
        try:
            for i, parts in enumerate(self.shares):
                while parts:
                    try:
                        part = parts.pop() if i else parts.popleft()
                    except IndexError:  # another thread was faster
                        break
                    self.run(*part)
        except BaseException as error:  # the caller's to raise
            self.error = error
        _here.within = False
        self.ended.release()


@functools.cache
def _helpers(count: int) -> list[SimpleQueue[_Job]]:
    """A queue for each of ``count`` threads that live as long as the process."""

    def work(queue: SimpleQueue[_Job]) -> None:
        while True:
            job = queue.get()
            job.do()
            del job  # or its arrays would live on until the next

    queues: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(count)]
    for queue in queues:
        threading.Thread(target=work, args=(queue,), name="rdquant", daemon=True).start()
    return queues


if hasattr(os, "register_at_fork"):  # threads do not live on in a child
    os.register_at_fork(after_in_child=_helpers.cache_clear)
