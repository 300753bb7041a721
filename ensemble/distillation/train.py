"""Train the fold students and the final one on the teacher's targets, each resumable on its own; export the last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.export import export_student
from ensemble.distillation.merge import fold_average
from ensemble.distillation.model_card import student_card
from ensemble.distillation.plan import FINAL, StudentPlan, cross_fitted_temperature
from ensemble.distillation.targets import targets
from ensemble.distillation.teacher_jobs import prepare_teacher
from ensemble.stacking.calibration import fit_temperature
from ensemble.stacking.stage import load_teacher, predictions_frame
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.logits_format import logits_frame, logits_of
from oof.common.steps import Step
from oof.jobs.pretrain import start_of
from oof.jobs.process_pool import run_all, run_alone
from oof.jobs.run_fold_job import Texts, fit_classifier, job_seed, run_pretrain
from oof.metrics import group_interval, log_loss, row_log_loss, scores, softmax
from oof.model.classifier import load_classifier
from oof.training.losses import distill_loss

logger = logging.getLogger(__name__)


def train_students(plan: StudentPlan, step: Step, variants: Sequence[Step] = ()) -> None:
    """Do stage three in ``step``'s folder and finish it; then the quantised ``variants`` that are missing."""
    if not step.done:
        if plan.pretrain is not None and not plan.pretrain.step.done:
            run_all(run_pretrain, [plan.pretrain], [plan.pretrain.label], plan.config.jobs.workers)
        prepare_teacher(plan)
        step.begin()
        _train_and_export(plan, step)
    for variant in variants:
        if not variant.done:
            from ensemble.distillation.quantize import export_variant

            export_variant(plan, step.folder / "student", variant)


def _train_and_export(plan: StudentPlan, step: Step) -> None:
    final = StudentJob(plan, step.folder, FINAL)
    average = plan.config.distill.final == "fold_average"
    logits = fold_students(plan, step.folder, also=[] if average else [final])
    ids, mean = plan.inputs.table["id"], logits.mean(axis=1)
    probs, temperatures = cross_fitted_temperature(mean, plan.inputs.labels, plan.inputs.folds)
    temperature = fit_temperature(mean, plan.inputs.labels)
    texts = Texts(plan.config.distill.student, plan.table, plan.config)
    if average:
        folders = [job.folder / "adapter" for job in fold_jobs(plan, step.folder)]
        model = fold_average(texts.member, folders, texts.tokenizer)
    else:
        model = load_classifier(texts.member, final.folder / "adapter", texts.tokenizer, seed=0)
    facts = student_facts(plan, probs)
    card = student_card(plan, temperature, facts)
    export_student(model, texts, temperature, step.folder / "student", card)
    write_parquet(step.folder / "logits.parquet", logits_frame(ids, logits, plan.inputs.folds))
    write_parquet(step.folder / "predictions.parquet", predictions_frame(ids, {"student": probs}))
    logger.info("student: log loss %.4f out of fold; saved to %s", facts["scores"]["log_loss"], step.folder / "student")
    loss = {"log_loss": facts["scores"]["log_loss"]}
    step.finish({**facts, **loss, "temperature": temperature, "fold_temperatures": temperatures})


def student_facts(plan: StudentPlan, probs: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fold students' metrics with intervals, and their distance from the calibrated ensemble."""
    inputs, seed = plan.inputs, plan.config.seed
    losses = row_log_loss(probs, inputs.labels)
    ensemble = row_log_loss(load_teacher(plan.config, inputs), inputs.labels)
    return {
        "scores": scores(probs, inputs.labels),
        "interval": group_interval(losses, inputs.groups, seed),
        "student_minus_ensemble": group_interval(losses - ensemble, inputs.groups, seed),
    }


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
    def step(self) -> Step:
        return Step(self.folder, digest(self.plan.key, self.fold), manifest="job.json")


def fold_jobs(plan: StudentPlan, folder: Path) -> list[StudentJob]:
    return [StudentJob(plan, folder, fold) for fold in range(plan.config.folds.k)]


def fold_students(plan: StudentPlan, folder: Path, also: Sequence[StudentJob] = ()) -> NDArray[np.float32]:
    """Train the K fold students (and ``also``) and return their (n_scored, 2, 3) held-out logits."""
    jobs = fold_jobs(plan, folder)
    todo = [job for job in (*jobs, *also) if not job.step.done]
    run_all(partial(run_alone, run_job), todo, [job.label for job in todo], plan.config.jobs.workers)
    out = np.empty((plan.n_scored, 2, 3), dtype=np.float32)
    for job in jobs:
        frame = read_parquet(job.folder / "logits.parquet")
        out[plan.inputs.folds == job.fold] = logits_of(frame)
    return out


def run_job(job: StudentJob) -> None:
    """Train, predict and store one student."""
    plan, recipe = job.plan, job.plan.config.distill
    texts = Texts(recipe.student, plan.table, plan.config)
    # The final student's FINAL is also the fold of free battles, which belong into every training set.
    rows = np.flatnonzero((plan.folds != job.fold) | (job.fold == FINAL))
    held_out = np.flatnonzero(plan.inputs.folds == job.fold)
    row_loss = partial(distill_loss, weights=recipe.losses, temperature=recipe.temperature)
    seed = job_seed(plan.config.seed, job.label)
    job.step.begin()
    parts = rows, targets(plan, job.fold)[rows], plan.weights[rows]
    compared = recipe.losses.consistency > 0
    model, facts = fit_classifier(
        texts, *parts, row_loss, job.folder, seed, job.label, start=start_of(plan.pretrain), whole_battles=compared
    )
    if len(held_out):
        logits = texts.logits(model, held_out, f"{job.label}: predict", job.folder / "partial")
        frame = logits_frame(plan.table["id"][held_out], logits, job.fold)
        write_parquet(job.folder / "logits.parquet", frame)
        loss = log_loss(softmax(logits.mean(axis=1)), plan.labels[held_out])
        facts |= {"log_loss": loss}
        said = f"log loss {loss:.4f} on {len(held_out)} held-out battles"
    else:
        said = f"trained on all {len(rows)} battles"
    job.step.finish({**facts, "fold": job.fold, "n_trained": len(rows)})
    logger.info("%s: %s, %.0f s", job.label, said, facts["seconds"])
