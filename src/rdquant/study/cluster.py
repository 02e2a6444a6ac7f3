"""The cells of a study on a Ray cluster, which starts a cell again whose process or machine died.

Every machine has rdquant, and what the recipe reads (pictures, models) at the same paths; results are stored
where the command runs.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import threads
from ..errors import UsageError
from ..lazy import extras
from .executor import TRIES, Lost, Outcomes, Recipe, Study, attempt


def on_ray(address: str, recipe: Recipe, left: Mapping[Path, Any], jobs: int | None) -> Outcomes:
    """Every cell of ``left`` and what became of it, as it comes.

    ``address``: "local" starts Ray on this machine, "auto" finds the cluster that runs here. ``jobs``: cells
    at a time; default: one for each core of the cluster. Raises `UsageError` without Ray or a cluster.
    """
    with extras():
        import ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": threads.allowed(), "include_dashboard": False}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None
    try:
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        jobs = jobs or max(1, sum(cores))
        count = max(1, min(sum(cores) // jobs, *filter(None, cores), sum(cores)))
        options: dict[str, Any] = {"max_retries": TRIES - 1, "retry_exceptions": [MemoryError]}
        task: Any = ray.remote(num_cpus=count, **options)(_make)
        shared, waiting = ray.put(pickle.dumps(recipe)), list(left)
        running: dict[Any, Path] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                path = waiting.pop(0)
                running[task.remote(shared, left[path], os.getcwd(), count)] = path
            (done,), _ = ray.wait(list(running))
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = Lost(f"its process died {TRIES} times, {str(error).splitlines()[0]}")
            yield running.pop(done), outcome
    finally:
        ray.shutdown()


def _make(recipe: bytes, cell: Any, folder: str, count: int) -> dict[str, Any] | Lost:
    threads.limit(count)
    os.chdir(folder)
    return attempt(_study(recipe), cell)


@functools.lru_cache(maxsize=1)
def _study(recipe: bytes) -> Study:
    study: Study = pickle.loads(recipe)()
    return study
