"""Run teacher jobs: finished fold jobs score more battles, nested members are trained and score two folds."""

from __future__ import annotations

import logging
import shutil
from functools import partial

import numpy as np
import polars as pl

from ensemble.distillation.plan import StudentPlan
from ensemble.distillation.stored_scores import LOGITS
from ensemble.distillation.targets import nested_stack
from ensemble.distillation.teacher_jobs import NestedJob, ScoringJob, teacher_jobs
from ensemble.distillation.text_digests import battle_hashes
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.data.targets import training_targets
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.process_pool import run_all, run_alone
from oof.jobs.run_fold_job import fit_classifier, job_seed
from oof.model.cpu_limit import refuse_too_large_for_cpu
from oof.model.shared_base import release_base, saved_classifier
from oof.training.losses import cross_entropy

logger = logging.getLogger(__name__)

CHUNK = 20_000  # battles whose token ids are in memory at a time: some 300 MB at 2,048 tokens


def run_teacher_jobs(plan: StudentPlan) -> None:
    """Run every unfinished teacher job of the plan, then fit the nested stacks that read their scores."""
    n_seen = int(((plan.table["role"] == "extra").to_numpy() & (plan.folds < 0)).sum())
    if n_seen:
        logger.warning(
            "%d extra battles are in no fold, so every member has trained on them and their teacher probabilities are "
            "in-sample; they get folds in a run that is made anew, in another RUN",
            n_seen,
        )
    todo = [job for job in teacher_jobs(plan) if not job.done]
    # Nested jobs train, and need the memory of the base that the others scored with.
    for kind, run in ((ScoringJob, run_scoring_job), (NestedJob, run_nested_job)):
        jobs = [job for job in todo if isinstance(job, kind)]
        try:
            run_all(partial(run_alone, run), jobs, plan.config.jobs.workers)
        finally:
            release_base()
    if plan.config.distill.teacher == "nested" and plan.teachers == ["stack"]:
        for fold in range(plan.config.folds.k):
            nested_stack(plan, fold)


def run_scoring_job(job: ScoringJob) -> None:
    """Score those of the job's battles that its fold job has not scored yet, ``CHUNK`` at a time, and keep all."""
    plan, fold_job, step = job.plan, job.fold_job, job.step
    table, scores = plan.table[job.rows], job.scores
    battles = battle_hashes(table)
    pieces = list(scores.pieces(battles, CHUNK))
    if pieces:
        refuse_too_large_for_cpu(fold_job.member, plan.config.jobs, job.label)
        tokenizer = EncodedBattles(fold_job.member, table, plan.config).tokenizer
        with saved_classifier(fold_job.member, fold_job.folder / "adapter", tokenizer) as model:
            for rows, piece in pieces:
                piece.begin()
                texts = EncodedBattles(fold_job.member, table[rows], plan.config)
                logits = texts.logits(model, np.arange(len(rows)), job.label, piece.folder / "partial")
                frame = logits_frame(battles.gather(rows), logits, fold_job.fold, texts.scoring.counts)
                write_parquet(piece.folder / LOGITS, frame.rename({"id": battles.name}))
                piece.finish()
    step.begin()
    write_parquet(step.folder / "logits.parquet", scores.of(table["id"], battles))
    step.finish({"member": fold_job.name, "fold": fold_job.fold, "n": table.height, **_for_audit(job)})
    logger.info("%s: %d battles, %d of them scored now", job.label, table.height, sum(len(rows) for rows, _ in pieces))


def _for_audit(job: ScoringJob | NestedJob) -> dict[str, object]:
    """Return what the audit of extra battles needs to know of a job; nothing in a plan without such battles."""
    if not (job.plan.table["role"] == "extra").any():
        return {}
    return {"teacher": job.plan.config.distill.teacher, "fold_job": job.fold_job.step.key}


def run_nested_job(job: NestedJob) -> None:
    """Train a member without two folds, and store its scores of both."""
    plan, step = job.plan, job.step
    step.begin()
    # Unlabelled battles, the last ones of the table, are neither trained on nor scored.
    texts = EncodedBattles(job.member, plan.table.filter(pl.col("role") != "unlabelled"), plan.config)
    rows = np.flatnonzero(~np.isin(plan.folds, job.without) & (plan.labels >= 0) & (plan.weights > 0))
    held_out = job.rows
    targets = training_targets(plan.table[rows]).astype(np.float32)
    seed = job_seed(plan.config.seed, job.name, *job.without)
    pretrain = job.fold_job.pretrain
    start = None if pretrain is None else pretrain.start
    model, summary = fit_classifier(
        texts, rows, targets, plan.weights[rows], cross_entropy, step.folder, seed, job.label, start
    )
    model, drift = texts.scorer(model, held_out, step.folder / "adapter", job.label)
    logits = texts.logits(model, held_out, f"{job.label}: predict", step.folder / "partial")
    frame = logits_frame(plan.table["id"][held_out], logits, plan.folds[held_out])
    write_parquet(step.folder / "logits.parquet", frame)
    if _for_audit(job):
        write_parquet(step.folder / "trained.parquet", plan.table[rows].select("id"))
    shutil.rmtree(step.folder / "adapter")  # its scores are all that is needed
    step.finish({**summary, **drift, "member": job.name, "without": list(job.without), **_for_audit(job)})
    logger.info("%s: trained on %d battles, %.0f s", job.label, len(rows), summary["seconds"])
