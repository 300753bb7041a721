"""Train the fold students and the final one on soft targets, each resumable on its own, and export the last."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ensemble import stack
from ensemble.calibrate import fit_temperature
from ensemble.distill import StudentPlan, cross_fitted_temperature
from ensemble.export import export_student
from oof import store
from oof.jobs import Texts, fit_classifier, job_seed
from oof.losses import cross_entropy, soft_kl
from oof.metrics import log_loss, softmax
from oof.models import load_classifier
from oof.predict import predict_logits
from oof.workers import run_all

logger = logging.getLogger(__name__)

FINAL = -1  # in place of a fold: the student that is exported


def distill_loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float, soft_weight: float) -> torch.Tensor:
    """Return (b,) ``w T^2 KL(teacher_T || student_T) + (1 - w) CE(label)``.

    Args:
        logits: (b, 3).
        targets: (b, 6): the teacher's probabilities, then the one-hot label.
        temperature: T.
        soft_weight: w.
    """
    soft, hard = targets[:, :3], targets[:, 3:]
    loss = soft_weight * soft_kl(logits, soft, temperature)
    return loss + (1.0 - soft_weight) * cross_entropy(logits, hard) if soft_weight < 1.0 else loss


def train_students(plan: StudentPlan, step: store.Step) -> None:
    """Do stage three in ``step``'s folder and finish it."""
    jobs = [StudentJob(plan, step.folder, fold) for fold in (*range(plan.config.folds.k), FINAL)]
    todo = [job for job in jobs if not job.step.done]
    run_all(run_job, todo, [job.label for job in todo], plan.config.jobs.workers)
    oof = np.empty((len(plan.labels), 2, 3), dtype=np.float32)
    for job in jobs[:-1]:
        frame = store.read_parquet(job.folder / "logits.parquet")
        oof[plan.folds == job.fold] = frame.select(store.LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3)
    mean, ids = oof.mean(axis=1), plan.table["id"]
    probs, temperatures = cross_fitted_temperature(mean, plan.labels, plan.folds)
    temperature, loss = fit_temperature(mean, plan.labels), log_loss(probs, plan.labels)
    texts = Texts(plan.config.distill.student, plan.table, plan.config)
    model = load_classifier(texts.member, jobs[-1].folder / "adapter", texts.tokenizer, seed=0)
    export_student(model, texts, temperature, step.folder / "student", loss)
    store.write_parquet(step.folder / "logits.parquet", store.logits_frame(ids, oof, plan.folds))
    store.write_parquet(step.folder / "predictions.parquet", stack.predictions_frame(ids, {"student": probs}))
    logger.info("student: log loss %.4f out of fold; saved to %s", loss, step.folder / "student")
    step.finish({"temperature": temperature, "fold_temperatures": temperatures, "log_loss": loss})


@dataclass(frozen=True)
class StudentJob:
    """Train the student without ``fold`` and predict that fold; ``FINAL``: train it on everything."""

    plan: StudentPlan
    parent: Path
    fold: int

    @property
    def label(self) -> str:
        return "student" if self.fold == FINAL else f"student fold {self.fold}"

    @property
    def folder(self) -> Path:
        return self.parent / ("final" if self.fold == FINAL else f"fold-{self.fold}")

    @property
    def step(self) -> store.Step:
        return store.Step(self.folder, store.digest(self.plan.key, self.fold), manifest="job.json")


def run_job(job: StudentJob) -> None:
    """Train, predict and store one student."""
    plan, recipe = job.plan, job.plan.config.distill
    texts = Texts(recipe.student, plan.table, plan.config)
    rows, held_out = np.flatnonzero(plan.folds != job.fold), np.flatnonzero(plan.folds == job.fold)
    row_loss = partial(distill_loss, temperature=recipe.temperature, soft_weight=recipe.soft_weight)
    seed = job_seed(plan.config.seed, job.label)
    job.step.begin()
    parts = rows, plan.targets[rows], plan.weights[rows]
    model, facts = fit_classifier(texts, *parts, row_loss, job.folder, seed, job.label)
    if len(held_out):
        encoded, pad = texts.scoring.take(held_out), texts.tokenizer.pad_token_id
        logits = predict_logits(model, texts.member, encoded, pad, f"{job.label}: predict")
        frame = store.logits_frame(plan.table["id"][held_out], logits, job.fold)
        store.write_parquet(job.folder / "logits.parquet", frame)
        loss = log_loss(softmax(logits.mean(axis=1)), plan.labels[held_out])
        facts |= {"log_loss": loss}
        said = f"log loss {loss:.4f} on {len(held_out)} held-out battles"
    else:
        said = f"trained on all {len(rows)} battles"
    job.step.finish({**facts, "fold": job.fold})
    logger.info("%s: %s, %.0f s", job.label, said, facts["seconds"])
