"""Held-out logits of a distillation recipe's final student, and of the ensemble beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.students_table import Logits
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.features.design_matrix import with_counts
from ensemble.stacking.stage import load_ensemble
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame, logits_of
from oof.common.steps import Step
from oof.config import Config
from oof.jobs import fold_job
from oof.jobs.dataset import load_battles, read_test


@dataclass(frozen=True)
class HeldOutJob:
    """A recipe's final student, to be trained and scored on the held-out battles."""

    plan: StudentPlan

    @property
    def step(self) -> Step:
        folder = Path(self.plan.config.run) / "students" / self.plan.key[:12]
        return Step(folder / "heldout", digest(self.plan.key, FINAL))


def train_and_score(job: HeldOutJob) -> None:
    """Store (n, 2, 3) logits of the held-out battles, scored in both orders."""
    from ensemble.distillation.train import StudentJob, run_student_job
    from oof.jobs.encoded_battles import EncodedBattles
    from oof.model.classifier import load_classifier

    config, step = job.plan.config, job.step
    student = StudentJob(job.plan, step.folder.parent, FINAL)
    if not student.step.done:
        run_student_job(student)
    test = read_test(config)
    texts = EncodedBattles(config.distill.student, test, config.for_student())
    model = load_classifier(texts.member, student.folder / "adapter", texts.tokenizer, seed=0)
    logits = texts.logits(model, np.arange(test.height), "held out", student.folder.with_name("partial"))
    step.clear()
    write_parquet(step.folder / "logits.parquet", logits_frame(test["id"], logits, -1))
    step.finish()


def read_logits(step: Step) -> NDArray[np.float64]:
    frame = read_parquet(step.folder / "logits.parquet")
    return mean_of_orders(frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3))


def mean_of_orders(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(logits.astype(np.float64).mean(axis=1))


def ensemble_logits(config: Config) -> Logits:
    """Return the logits of the calibrated ensemble, of each member's fold average and of each fold job alone."""
    test = read_test(config)
    jobs = fold_job.fold_jobs(config, load_battles(Path(config.run)))
    frames = fold_job.test_frames(jobs, test)
    if frames is None:
        raise UserError("the members' held-out logits are missing; rerun the script")
    _, result = load_ensemble(config)
    by_job = fold_job.test_logits_by_job(jobs, test)
    scaled = {name: result.job_scales.mean_over_jobs(name, of_jobs) for name, of_jobs in by_job.items()}
    read = with_counts(test, frames[next(iter(config.members))])
    calibrated = np.log(np.maximum(result.predict(result.design(read, scaled)), 1e-12))
    average = {f"member {name}": mean_of_orders(logits_of(frame)) for name, frame in frames.items()}
    alone: Logits = {}
    for name, of_jobs in by_job.items():
        alone |= {f"{name}, fold job {fold} alone": mean_of_orders(z) for fold, z in of_jobs.items()}
    return {"calibrated": calibrated, **average, **alone}
