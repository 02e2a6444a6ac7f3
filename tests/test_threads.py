from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdquant.threads import PARTS, allowed, share


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 40))
def test_every_part_is_done_once(count: int, threads: int, least: int) -> None:
    done = np.zeros(count, int)
    parts = []

    def run(first: int, last: int) -> None:
        done[first:last] += 1
        parts.append(last - first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(threads))
        assert allowed() == threads
        share(count, run, least)
    assert (done == 1).all()
    assert len(parts) <= PARTS * threads and (len(parts) == 1 or min(parts) >= least)


@pytest.mark.parametrize("bad", [0, 5, 9])
def test_an_error_of_any_part_is_raised_when_all_have_ended(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    ended = []

    def run(first: int, last: int) -> None:
        if first <= bad < last:
            raise ValueError(bad)
        ended.append(first)

    with pytest.raises(ValueError, match=str(bad)):
        share(12, run)
    assert len(ended) == min(12, 4 * PARTS) - 1


def test_what_is_shared_within_a_part_is_done_by_its_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    inner: list[tuple[int, int]] = []
    share(6, lambda first, last: share(50, lambda a, b: inner.append((a, b))))
    assert inner == [(0, 50)] * 6


def test_threads_that_share_at_once_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    sums = np.zeros(16, int)

    def work(i: int) -> None:
        share(30, lambda first, last: np.add.at(sums, np.full(last - first, i), 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16), timeout=60))
    assert (sums == 30).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    code = """
import os
from rdquant.threads import share
share(4, lambda a, b: None)
if (child := os.fork()) == 0:
    share(4, lambda a, b: None)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
