"""Ray backend for fold jobs: one Ray task per job, retried when its worker dies, on a shared run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.progress import heartbeat, progress
from oof.config import Jobs
from oof.distributed.gpus import hide_gpus, see_one_gpu
from oof.distributed.process_group import ignore_stray_environment
from oof.jobs.process_pool import failure


def run_on_ray(function: Callable[[Any], object], tasks: Sequence[Any], jobs: Jobs) -> None:
    """Call ``function`` on every task, each in a Ray worker with the CPUs and GPUs that ``jobs`` reserves.

    A task whose worker dies is retried up to ``jobs.retries`` times, from the job's last checkpoint. A job that raises
    an error is not retried.

    Raises:
        UserError: Ray is not installed or not reachable; a job failed (by name).
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("jobs.backend=ray needs Ray; run 'make setup EXTRAS=cluster'") from error
    try:
        ray.init(
            address=jobs.address or "local", log_to_driver=True, logging_level=logging.ERROR, include_dashboard=False
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"jobs.address={jobs.address!r}: no Ray cluster there ({error})") from error
    working_folder = str(Path.cwd())
    cards = 0.0 if jobs.device == "cpu" else float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    gpus = gpus_of_a_job(jobs.gpus_per_job, cards)
    options = {"num_cpus": jobs.cpus_per_job, "num_gpus": gpus, "max_retries": jobs.retries}
    task = ray.remote(_in_worker).options(retry_exceptions=False, **options)
    threads = max(1, int(jobs.cpus_per_job))
    try:
        pending = {task.remote(function, item, working_folder, threads, jobs.device): item.label for item in tasks}
        with progress("jobs on Ray", len(tasks), "jobs") as shown:
            while pending:
                interrupts.check()
                done, _ = ray.wait(list(pending), timeout=1.0)
                for reference in done:
                    _collect(ray, reference, pending.pop(reference))
                    shown.update()
    finally:
        ray.shutdown()


def gpus_of_a_job(requested: float | None, gpus: float) -> float:
    """Return the number of GPUs that Ray reserves for each job.

    Args:
        requested: ``jobs.gpus_per_job``; None = one where the cluster has GPUs.
        gpus: of the whole cluster.

    Raises:
        UserError: 0 on a cluster with GPUs, where Ray would start all jobs on the same card.
    """
    if requested is None:
        return 1.0 if gpus else 0.0
    if requested == 0 and gpus:
        raise UserError(
            f"jobs.gpus_per_job=0, but the Ray cluster has {gpus:g} GPUs, which its jobs would share unseen; leave it "
            "out for one GPU per job, or start Ray without GPUs"
        )
    return requested


def _collect(ray: Any, reference: Any, name: str) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, UserError) else failure(name, cause) from error
    except ray.exceptions.RayError as error:
        raise failure(name, error) from error


def _in_worker(function: Callable[[Any], object], item: Any, working_folder: str, threads: int, device: str) -> None:
    import torch

    from oof.common.logging_setup import quiet_libraries

    os.chdir(working_folder)  # relative paths in the configuration start there
    quiet_libraries()
    ignore_stray_environment()
    if device == "cpu":
        hide_gpus()
    else:
        see_one_gpu(0)
    torch.set_num_threads(threads)
    with heartbeat("fold job"):
        function(item)
