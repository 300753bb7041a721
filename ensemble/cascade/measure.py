"""Measured cost of a cascade's work: seconds a battle of the student in one order, and of each member's fold jobs.

A sample of the run's battles is scored twice by the student and by one fold job of each member; the second pass counts,
so that reading weights and warming up do not. All fold jobs of a member cost the same. ``RUN/cascade/costs.json`` keeps
the result. Only ratios matter for a budget; a time limit corrects the seconds as it goes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble.cascade.policy import AB, BA
from ensemble.distillation.plan import finished_jobs
from oof.common.atomic_files import read_json, write_json
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.config import Config
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import FoldJob, by_member

logger = logging.getLogger(__name__)

SAMPLE = 64  # battles
COSTS = "costs.json"


def costs_of_run(config: Config) -> dict[str, float]:
    """Return the seconds a battle of each piece of work, measured once in a run.

    Raises:
        UserError: a fold job or the student is missing.
    """
    run = Path(config.run)
    battles = load_battles(run, unlabelled=False)
    jobs = finished_jobs(config, battles, "run 'make oof' with this RUN")
    student = run / "distill" / "manifest.json"
    if not student.is_file():
        raise UserError(f"{student}: a cascade needs the student; run 'make distill' with this RUN first")
    key = digest("costs", [job.step.key for job in jobs], read_json(student)["key"])
    path = run / "cascade" / COSTS
    if path.is_file() and (saved := read_json(path)).get("key") == key:
        return {name: float(seconds) for name, seconds in saved["seconds"].items()}
    scored = battles.filter(pl.col("role") == "train")
    rows = np.random.default_rng(config.seed).permutation(scored.height)[:SAMPLE]
    sample = scored[np.sort(rows)]
    seconds = _measured_student(config, sample)
    seconds |= {name: _measured_member(config, of_member, sample) for name, of_member in by_member(jobs).items()}
    write_json(path, {"key": key, "battles": sample.height, "seconds": seconds})
    logger.info("cascade: seconds a battle: %s", ", ".join(f"{name} {value:.3g}" for name, value in seconds.items()))
    return seconds


def _measured_student(config: Config, sample: pl.DataFrame) -> dict[str, float]:
    from ensemble.distillation.student import Student

    student = Student.of_run(config)
    seconds = _second_pass(lambda: student.logits(sample, ("ab",))) / sample.height
    return {AB: seconds, BA: seconds}


def _measured_member(config: Config, jobs: list[FoldJob], sample: pl.DataFrame) -> float:
    from oof.jobs.encoded_battles import EncodedBattles
    from oof.model.shared_base import release_base, saved_classifier
    from oof.training.inference import predict_logits

    job = jobs[0]
    battles = EncodedBattles(replace(job.member, frozen="recompute"), sample, config)
    encoded, pad_id = battles.scoring, battles.tokenizer.pad_token_id
    try:
        with saved_classifier(battles.member, job.folder / "adapter", battles.tokenizer) as model:
            label = f"{job.name}: cost"
            seconds = _second_pass(lambda: predict_logits(model, battles.member, encoded, pad_id, label))
    finally:
        release_base()
    return len(jobs) * seconds / sample.height


def _second_pass(score: Callable[[], Any]) -> float:
    score()
    started = time.perf_counter()
    score()
    return time.perf_counter() - started
