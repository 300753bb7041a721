"""Fold jobs on a Ray cluster: one task a job, tried again when its worker dies, on a run folder that all share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oof.common import interrupts
from oof.common.errors import UserError
from oof.config import Jobs
from oof.jobs.process_pool import failure


def run_on_ray(function: Callable[[Any], object], tasks: Sequence[Any], names: Sequence[str], jobs: Jobs) -> None:
    """Call ``function`` on every task, each in a Ray worker with the CPUs and GPUs that ``jobs`` reserves.

    A task whose worker dies begins again, up to ``jobs.retries`` times, from the job's last checkpoint. A job that
    fails by itself is not tried again.

    Raises:
        UserError: Ray is not installed or not reachable; a job failed (by name).
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("jobs.backend=ray needs Ray; run 'make setup EXTRAS=dev,cluster'") from error
    try:
        ray.init(
            address=jobs.address or "local", log_to_driver=True, logging_level=logging.ERROR, include_dashboard=False
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"jobs.address={jobs.address!r}: no Ray cluster there ({error})") from error
    here = str(Path.cwd())
    options = {"num_cpus": jobs.cpus_per_job, "num_gpus": jobs.gpus_per_job, "max_retries": jobs.retries}
    task = ray.remote(_in_worker).options(retry_exceptions=False, **options)
    threads = max(1, int(jobs.cpus_per_job))
    try:
        pending = {task.remote(function, item, here, threads): name for item, name in zip(tasks, names, strict=True)}
        while pending:
            interrupts.check()
            done, _ = ray.wait(list(pending), timeout=1.0)
            for reference in done:
                _collect(ray, reference, pending.pop(reference))
    finally:
        ray.shutdown()


def _collect(ray: Any, reference: Any, name: str) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, UserError) else failure(name, cause) from error
    except ray.exceptions.RayError as error:
        raise failure(name, error) from error


def _in_worker(function: Callable[[Any], object], item: Any, here: str, threads: int) -> None:
    import torch

    from oof.common.logging_setup import quiet_libraries

    os.chdir(here)  # relative paths of the configuration start where the command was given
    quiet_libraries()
    torch.set_num_threads(threads)
    function(item)
