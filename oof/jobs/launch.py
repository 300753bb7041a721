"""Launch of fold jobs: in this process, in several processes, under torchrun, or on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from oof.common import interrupts
from oof.common.atomic_files import write_json
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.config import Config, to_dict
from oof.distributed.process_group import LAUNCHER
from oof.jobs.fold_job import FoldJob
from oof.jobs.pretrain import PretrainJob
from oof.jobs.process_pool import run_all, run_alone
from oof.jobs.run_fold_job import run_fold_job, run_pretrain

Job = FoldJob | PretrainJob
RESOLVED = "config.json"  # the run's resolved configuration, read by ``python -m oof job`` under torchrun


def run_jobs(config: Config, todo: Sequence[Job]) -> None:
    """Run the jobs in ``todo`` on the backend that ``config.jobs`` sets.

    Raises:
        UserError: a checkpoint cannot be opened; a job failed (by name).
        interrupts.Stopped: asked to stop; run again to go on.
    """
    if not todo:
        return
    if config.jobs.backend == "ray":
        from oof.jobs.ray_cluster import run_on_ray

        run_on_ray(partial(run_alone, run_one), todo, config.jobs)
    elif config.jobs.nproc > 1:
        write_json(Path(config.run) / RESOLVED, to_dict(config))
        run_all(_run_under_torchrun, todo, workers=1, one_gpu=False)
    else:
        run_all(partial(run_alone, run_one), todo, config.jobs.workers)


def run_one(job: Job) -> None:
    """Run one job of a prepared run in this process."""
    if isinstance(job, PretrainJob):
        run_pretrain(job)
    else:
        run_fold_job(job)


def _run_under_torchrun(job: Job) -> None:
    """Run one job in ``jobs.nproc`` processes, each calling ``python -m oof job``."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={job.config.jobs.nproc}",
    ]
    command += ["-m", "oof", "job", str(Path(job.config.run) / RESOLVED), *job.arguments]
    threads = max(1, (os.cpu_count() or 1) // job.config.jobs.nproc)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    job.step.begin()  # clears what an attempt with other settings left
    status = _call(command, environment)
    interrupts.check()
    if not job.step.done:
        raise UserError(f"{job.label} failed (status {status}); see its output above; finished jobs are kept")


def _call(command: list[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)  # noqa: S603  # our own interpreter and module
    try:
        with progress("torchrun", silent=True):  # its first process writes lines of its own
            return process.wait()
    except (interrupts.Stopped, KeyboardInterrupt):
        process.terminate()  # torchrun passes the signal on, and each process writes its checkpoint
        process.wait()
        raise
