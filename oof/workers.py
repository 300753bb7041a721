"""Independent training jobs on one machine, in this process or several at a time in processes of their own.

Small models gain more from two processes with one thread each than from one process with two threads.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

import torch

from oof.errors import UserError
from oof.log import quiet_libraries


def run_all(function: Callable[[Any], object], tasks: Sequence[Any], names: Sequence[str], workers: int) -> None:
    """Call ``function`` on every task, ``workers`` at a time.

    The number of threads per job depends on ``workers`` alone, so a job's result does not depend on how many
    others were left to do.

    Args:
        function: a module-level function; it stores its own result.
        tasks: its arguments, picklable where ``workers`` is more than 1.
        names: what an error calls them.
        workers: processes.

    Raises:
        UserError: a job failed; those that had not begun are left for the next call.
    """
    if workers == 1:
        for task, name in zip(tasks, names, strict=True):
            try:
                function(task)
            except (UserError, OSError):
                raise
            except Exception as error:
                raise _failure(name, error) from error
        return
    spawn = multiprocessing.get_context("spawn")  # a forked torch hangs in its thread pools
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(workers,)) as pool:
        futures = {pool.submit(function, task): name for task, name in zip(tasks, names, strict=True)}
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            failure = future.exception()
            if failure is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                raise failure if isinstance(failure, UserError) else _failure(futures[future], failure)


def _failure(name: str, error: BaseException) -> UserError:
    return UserError(f"{name} failed: {type(error).__name__}: {error}; finished jobs are kept, run again to go on")


def _start_worker(workers: int) -> None:
    quiet_libraries()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
