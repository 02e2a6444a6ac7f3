"""How many threads compute, and what threads that code different pictures must not do at once."""

from __future__ import annotations

import os
import sys
import threading

#: held while networks or searches run. They use all cores by themselves; two at once would need the memory of
#: two, and not every threading layer of numba survives it.
PARALLEL = threading.RLock()


def allowed() -> int:
    """As many threads as `limit` or ``OMP_NUM_THREADS`` allow, else one for each core of this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit(count: int) -> None:
    """At most so many for networks and kernels, whether their libraries are imported or not yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        if name != "NUMBA_NUM_THREADS" or "numba" not in sys.modules:
            os.environ[name] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    if (numba := sys.modules.get("numba")) is not None:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
