"""Compute the logits behind the students' targets: finished fold jobs score more battles; nested jobs train."""

from __future__ import annotations

import logging
import shutil
from functools import partial

import numpy as np

from ensemble.distillation.plan import StudentPlan
from ensemble.distillation.targets import PairJob, Scoring, nested_stack, work
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.jobs.pretrain import start_of
from oof.jobs.process_pool import run_all, run_alone
from oof.jobs.run_fold_job import Texts, fit_classifier, job_seed
from oof.model.classifier import load_classifier
from oof.training.losses import cross_entropy

logger = logging.getLogger(__name__)


def prepare_teacher(plan: StudentPlan) -> None:
    """Do what ``ensemble.distillation.targets.targets`` reads, each piece resumable on its own."""
    todo = [piece for piece in work(plan) if not piece.done]
    run_all(partial(run_alone, run_piece), todo, [piece.label for piece in todo], plan.config.jobs.workers)
    if plan.config.distill.teacher == "nested" and plan.teachers == ["stack"]:
        for fold in range(plan.config.folds.k):
            nested_stack(plan, fold)


def run_piece(piece: Scoring | PairJob) -> None:
    """Compute and store one piece."""
    if isinstance(piece, Scoring):
        _score(piece)
    else:
        _train_and_score(piece)


def _score(piece: Scoring) -> None:
    plan, job, step = piece.plan, piece.job, piece.step
    step.begin()
    table = plan.table[piece.rows]
    texts = Texts(job.member, table, plan.config)
    model = load_classifier(job.member, job.folder / "adapter", texts.tokenizer, seed=0)
    logits = texts.logits(model, np.arange(table.height), piece.label, step.folder / "partial")
    frame = logits_frame(table["id"], logits, job.fold, texts.scoring.counts)
    write_parquet(step.folder / "logits.parquet", frame)
    step.finish({"member": job.name, "fold": job.fold, "n": table.height})
    logger.info("%s: %d battles scored", piece.label, table.height)


def _train_and_score(piece: PairJob) -> None:
    plan, step = piece.plan, piece.step
    step.begin()
    texts = Texts(piece.member, plan.table, plan.config)
    out = np.isin(plan.folds, piece.without)
    rows = np.flatnonzero(~out & (plan.labels >= 0))
    held_out = np.flatnonzero(out[: plan.n_scored])
    seed = job_seed(plan.config.seed, piece.name, *piece.without)
    parts = rows, np.eye(3, dtype=np.float32)[plan.labels[rows]], plan.weights[rows]
    start = start_of(next(job.pretrain for job in plan.jobs if job.name == piece.name))
    model, facts = fit_classifier(texts, *parts, cross_entropy, step.folder, seed, piece.label, start)
    logits = texts.logits(model, held_out, f"{piece.label}: predict", step.folder / "partial")
    frame = logits_frame(plan.table["id"][held_out], logits, plan.folds[held_out])
    write_parquet(step.folder / "logits.parquet", frame)
    shutil.rmtree(step.folder / "adapter")  # nothing asks this model again
    step.finish({**facts, "member": piece.name, "without": list(piece.without)})
    logger.info("%s: trained on %d battles, %.0f s", piece.label, len(rows), facts["seconds"])
