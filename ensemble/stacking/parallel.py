"""Parallel map over tasks, in this process or in several; results do not depend on the number of processes.

Unlike :mod:`oof.jobs.process_pool` this imports no torch, and returns results.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from threadpoolctl import threadpool_limits

from oof.common import interrupts
from oof.common.logging_setup import quiet_libraries

_shared: Any = None  # in a worker process: the data of all tasks, sent once


def map_tasks(
    function: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any]]:
    """Yield (position of the task, ``function(shared, task)``) in the order in which they finish.

    Args:
        function: a module-level function.
        shared: data of all calls; sent to each process once.
        tasks: picklable.
        workers: processes; 1 = this one.
    """
    if min(workers, len(tasks)) <= 1:
        for i, task in enumerate(tasks):
            with threadpool_limits(1):  # with more BLAS threads, sums are added in another order
                result = function(shared, task)
            yield i, result
        return
    spawn = multiprocessing.get_context("spawn")  # a forked OpenMP hangs
    pool = ProcessPoolExecutor(min(workers, len(tasks)), spawn, initializer=_start, initargs=(os.getpid(), shared))
    with pool:
        futures = {pool.submit(_call, function, task): i for i, task in enumerate(tasks)}
        children = list((pool._processes or {}).values())
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # a failure, Ctrl-C or SIGTERM: the other tasks end too, and their studies are on disk
            for child in children:
                child.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(parent: int, shared: Any) -> None:
    global _shared
    interrupts.end_after(parent)
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    quiet_libraries()


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    with threadpool_limits(1):
        return function(_shared, task)
