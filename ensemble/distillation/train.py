"""Training of the students: K fold students and the final one, each a step that is resumed on its own."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.merge import fold_average, load_to_merge, save_average
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.distillation.targets import student_targets
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.logits_format import logits_frame, logits_of
from oof.common.steps import TRAINED, Step
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.process_pool import run_all, run_alone
from oof.jobs.run_fold_job import fit_classifier, job_seed, run_pretrain
from oof.metrics import log_loss, softmax
from oof.model.precision import device
from oof.training.inference import predict_logits
from oof.training.losses import distill_loss

logger = logging.getLogger(__name__)

START = "start"  # folder of the final student's first weights while it trains


@dataclass(frozen=True)
class StudentJob:
    """Train the student without ``fold`` and predict that fold; with ``FINAL``, train it on every battle.

    Of several rounds (``distill.rounds``), the earlier ones predict the unlabelled battles instead, for the next.
    """

    plan: StudentPlan
    parent: Path
    fold: int
    round: int = 0  # 0 = the last one, whose students are the run's; the earlier ones are 1, 2 …

    @property
    def label(self) -> str:
        name = "student" if self.fold == FINAL else f"student fold {self.fold}"
        return f"{name} round {self.round}" if self.round else name

    @property
    def folder(self) -> Path:
        parent = self.parent / f"round-{self.round}" if self.round else self.parent
        return parent / ("final" if self.fold == FINAL else f"fold-{self.fold}")

    @property
    def before(self) -> StudentJob | None:
        """The job of the round before, whose predictions are targets of this one; None in the first round."""
        earlier = (self.round or self.plan.config.distill.rounds) - 1
        return replace(self, round=earlier) if earlier else None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Positions of the battles to predict: those of the fold, or in earlier rounds the unlabelled ones."""
        return self.plan.pseudo_labelled if self.round else np.flatnonzero(self.plan.inputs.folds == self.fold)

    @property
    def trainings(self) -> list[Path]:
        """Folders of the student's trainings, each with an adapter; with one seed, the student's own folder."""
        n = self.plan.config.distill.seeds
        return [self.folder] if n == 1 else [self.folder / f"seed-{i}" for i in range(n)]

    @property
    def step(self) -> Step:
        rounds = [self.round] if self.round else []
        return Step(self.folder, digest(self.plan.key, self.fold, *rounds), manifest="job.json")


def fold_student_jobs(plan: StudentPlan, folder: Path) -> list[StudentJob]:
    return [StudentJob(plan, folder, fold) for fold in range(plan.config.folds.k)]


def pretrain_student(plan: StudentPlan) -> None:
    """Run the pretraining that every student starts from, if it is configured and not done."""
    if plan.pretrain is not None and not plan.pretrain.step.done:
        run_all(run_pretrain, [plan.pretrain], plan.config.jobs.workers)


def train_students(plan: StudentPlan, folder: Path, final: bool = True) -> NDArray[np.float32]:
    """Train the unfinished students of the plan; return the fold students' (n_scored, 2, 3) held-out logits.

    Args:
        plan: battles, targets and recipe.
        folder: the students' folders are made in it.
        final: whether to train the final student, too, if it is not the average of the fold students.
    """
    jobs = fold_student_jobs(plan, folder)
    also = [StudentJob(plan, folder, FINAL)] if final and plan.config.distill.final != "fold_average" else []
    for number in (*range(1, plan.config.distill.rounds), 0):
        todo = [job for job in (replace(job, round=number) for job in (*jobs, *also)) if not job.step.done]
        run_all(partial(run_alone, run_student_job), todo, plan.config.jobs.workers)
    logits = np.empty((plan.n_scored, 2, 3), dtype=np.float32)
    for job in jobs:
        logits[plan.inputs.folds == job.fold] = logits_of(read_parquet(job.folder / "logits.parquet"))
    return logits


def load_final(plan: StudentPlan, folder: Path, texts: EncodedBattles) -> Any:
    """Return the trained final student, or the average of the trained fold students' weights."""
    fold_students = plan.config.distill.final == "fold_average"
    jobs = fold_student_jobs(plan, folder) if fold_students else [StudentJob(plan, folder, FINAL)]
    adapters = [path / "adapter" for job in jobs for path in job.trainings]
    if len(adapters) > 1:
        return fold_average(texts.member, adapters, texts.tokenizer)
    return load_to_merge(texts.member, adapters[0], texts.tokenizer)


def _start(job: StudentJob, tokenizer: Any) -> Path | None:
    """Return the folder of the weights that a student starts from; None = a fresh head and fresh adapters.

    The average of the member's fold jobs, from which the final student starts, is written here first.
    """
    plan = job.plan
    if not plan.start:
        return None if plan.pretrain is None else plan.pretrain.start
    if job.fold != FINAL:
        (fold_job,) = (start for start in plan.start if start.fold == job.fold)
        return fold_job.folder / "adapter"
    member, adapters = plan.config.distill.student, [fold_job.folder / "adapter" for fold_job in plan.start]
    save_average(member, adapters, tokenizer, job.folder / START)
    return job.folder / START


def _start_record(job: StudentJob) -> dict[str, object]:
    """Return the fold jobs behind a student's first weights for its manifest, which the audit reads."""
    starts = [start for start in job.plan.start if job.fold in (FINAL, start.fold)]
    return {"start": [{"member": s.name, "fold": s.fold, "key": s.step.key} for s in starts]} if starts else {}


def _targets(job: StudentJob) -> NDArray[np.float64]:
    """Return the targets of :func:`student_targets`; from the second round on, unlabelled battles have the student's.

    These are uncalibrated: the only battles that could give a fold student a temperature are of the fold that the next
    student must not know either.
    """
    targets = student_targets(job.plan, job.fold)
    if job.before is not None:
        logits = logits_of(read_parquet(job.before.folder / "logits.parquet"))
        probs = softmax(logits.astype(np.float64).mean(axis=1))
        targets[job.plan.pseudo_labelled, :-3] = np.tile(probs, len(job.plan.teachers))
    return targets


@dataclass(frozen=True)
class _StudentTexts:
    """The encoded battles that one student reads: not those of weight 0, which may be many.

    Attributes:
        battles: encoded.
        rows: (m,) their positions in the plan's table, in ascending order.
    """

    battles: EncodedBattles
    rows: NDArray[np.int64]

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions among the encoded battles of ``rows`` of the plan's table."""
        return np.searchsorted(self.rows, rows)


def _logits(job: StudentJob, model: Any, texts: _StudentTexts) -> NDArray[np.float32]:
    """Return the student's (m, 2, 3) logits of the battles that it is to predict."""
    label, scores, battles = f"{job.label}: predict", job.folder / "partial", texts.battles
    if len(job.trainings) == 1:
        return battles.logits(model, texts.at(job.predicted), label, scores)
    # Stored hidden states are those below adapters, which an average has merged into its weights.
    encoded = battles.scoring.take(texts.at(job.predicted))
    return predict_logits(model, battles.member, encoded, battles.tokenizer.pad_token_id, label, scores)


def _trained(
    job: StudentJob, texts: _StudentTexts, rows: NDArray[np.int64], held_out: NDArray[np.int64]
) -> tuple[Any, dict[str, object]]:
    """Return the trained student, and the summary of its training; of several, of the first."""
    plan, distill, battles, summaries = job.plan, job.plan.config.distill, texts.battles, []
    targets, start = _targets(job)[rows], _start(job, battles.tokenizer)
    row_loss = partial(distill_loss, weights=distill.losses, temperature=distill.temperature)
    first_weights = job_seed(plan.config.seed, job.label)
    for i, folder in enumerate(job.trainings):
        model = None  # one in memory at a time
        model, summary = fit_classifier(
            battles,
            texts.at(rows),
            targets,
            plan.weights[rows],
            row_loss,
            folder,
            job_seed(plan.config.seed, job.label, i) if i else first_weights,
            f"{job.label} seed {i}" if distill.seeds > 1 else job.label,
            start=start,
            held_out=(texts.at(held_out), plan.labels[held_out]),
            first_weights=first_weights,
        )
        summaries.append(summary)
    if distill.seeds == 1:
        return model, summaries[0]
    seconds = round(sum(float(str(summary["seconds"])) for summary in summaries), 1)
    seeds = {"seeds": [summary["seed"] for summary in summaries], "seconds": seconds}
    adapters = [folder / "adapter" for folder in job.trainings]
    model = None
    if len(job.predicted):
        model = fold_average(battles.member, adapters, battles.tokenizer).to(device()).eval()
    return model, summaries[0] | seeds


def run_student_job(job: StudentJob) -> None:
    """Train, predict and store one student."""
    plan = job.plan
    # FINAL is also the fold number of battles that no fold holds out, and those belong to every training set.
    rows = np.flatnonzero(((plan.folds != job.fold) | (job.fold == FINAL)) & (plan.weights > 0))
    held_out = np.flatnonzero(plan.inputs.folds == job.fold)
    read, config = np.unique(np.concatenate([rows, held_out, job.predicted])), plan.config
    texts = _StudentTexts(EncodedBattles(config.distill.student, plan.table[read], config.for_student()), read)
    job.step.begin()
    model, summary = _trained(job, texts, rows, held_out)
    shutil.rmtree(job.folder / START, ignore_errors=True)
    summary |= _start_record(job)
    message = f"trained on {len(rows)} battles of all folds"
    if len(job.predicted):
        logits = _logits(job, model, texts)
        ids, counts = plan.table["id"][job.predicted], texts.battles.scoring.counts[texts.at(job.predicted)]
        write_parquet(job.folder / "logits.parquet", logits_frame(ids, logits, job.fold, counts))
        message = f"trained on {len(rows)} battles, {len(job.predicted)} unlabelled ones predicted"
    if len(held_out) and not job.round:
        loss = log_loss(softmax(logits.mean(axis=1)), plan.labels[held_out])
        summary |= {"log_loss": loss}
        message = f"log loss {loss:.4f} on {len(held_out)} held-out battles"
    for folder in job.trainings:
        (folder / TRAINED).unlink(missing_ok=True)
    job.step.finish({**summary, "fold": job.fold, "n_trained": len(rows)})
    logger.info("%s: %s, %.0f s", job.label, message, summary["seconds"])
