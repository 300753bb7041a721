"""Process pool for independent jobs on one machine: in this process, or several at a time in worker processes.

Small models gain more from two processes with one thread each than from one process with two threads. On a machine
with several GPUs each process sees one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any, Protocol

import torch

from oof.common import interrupts
from oof.common.errors import UserError, disk_problem
from oof.common.logging_setup import quiet_libraries
from oof.common.process_tuning import prepare_process
from oof.common.progress import heartbeat, progress
from oof.common.steps import ORPHAN_WAIT, Step, locked
from oof.distributed.gpus import see_one_gpu
from oof.distributed.process_group import ignore_stray_environment


class Task(Protocol):
    """A job that stores its result as a step of the run."""

    @property
    def step(self) -> Step: ...


def run_alone(function: Callable[[Any], object], task: Task) -> None:
    """Call ``function`` on a task that is not done, holding the lock of its folder, so that no other process runs it.

    Raises:
        UserError: another process has held the lock for too long.
    """
    prepare_process()
    folder = task.step.folder
    with locked(folder.parent, f".{folder.name}.lock", ORPHAN_WAIT):
        if not task.step.done:
            function(task)


def run_all(function: Callable[[Any], object], tasks: Sequence[Any], workers: int, one_gpu: bool = True) -> None:
    """Call ``function`` on every task, ``workers`` at a time.

    The number of threads per job depends on ``workers`` alone, so a job's result does not depend on how many
    others were left to do.

    Args:
        function: a module-level function; it stores its own result.
        tasks: its arguments, picklable where ``workers`` is more than 1; their ``label`` names them in errors.
        workers: processes.
        one_gpu: with one worker, hide all GPUs but one from this process; False where ``function`` starts processes.

    Raises:
        UserError: a job failed; jobs that had not begun are left for the next call.
        interrupts.Stopped: asked to stop; running jobs have written their checkpoints.
    """
    ignore_stray_environment()
    if workers == 1:
        if one_gpu:
            see_one_gpu(0)
        for task in tasks:
            interrupts.check()
            try:
                function(task)
            except (UserError, OSError):
                raise
            except Exception as error:
                raise failure(task.label, error) from error
        return
    spawn = multiprocessing.get_context("spawn")  # a forked torch hangs in its thread pools
    next_index = spawn.Value("i", 0)
    arguments = (os.getpid(), workers, next_index)
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=arguments)
    with progress("jobs", silent=True), pool:  # its processes write lines of their own
        futures = {pool.submit(_unless_due, function, task): task.label for task in tasks}
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except (interrupts.Stopped, KeyboardInterrupt):
            for process in multiprocessing.active_children():
                process.terminate()  # on SIGTERM each writes a checkpoint and ends
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        for future in finished:
            raised = future.exception()
            if raised is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                known = isinstance(raised, UserError | OSError | interrupts.Stopped)
                raise raised if known else failure(futures[future], raised)


def failure(name: str, error: BaseException) -> UserError:
    """Return the error message for a job that failed: a full disk by its remedy, anything else by its type."""
    problem = disk_problem(error)
    if problem:
        return UserError(f"{name}: {problem}; make room and run again, what is done is kept")
    return UserError(f"{name} failed: {type(error).__name__}: {error}; finished jobs are kept, run again to go on")


def _unless_due(function: Callable[[Any], object], task: Any) -> object:
    interrupts.check()
    with heartbeat("fold job"):
        return function(task)


def _start_worker(parent: int, workers: int, next_index: Any) -> None:
    interrupts.end_after(parent)
    quiet_libraries()
    interrupts.install()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    with next_index.get_lock():
        index, next_index.value = next_index.value, next_index.value + 1
    see_one_gpu(index)
