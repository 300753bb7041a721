"""The students' targets: who labels which battle, for which student. Imports no torch.

``distill.teacher`` for the scored battles that fold student k trains on (its fold's own are never trained on):

* ``oof``: the cross-fitted stack; fold j's labels come from members that did not see fold j, but did see fold k.
* ``nested``: members trained without folds j *and* k, stacked and calibrated without fold k: no label of fold k
  anywhere. The model without {j, k} serves student j and student k, so it takes K (K - 1) / 2 jobs a member.
* ``fold_matched``: the members' fold job k, which trained on these very battles. Clean, cheap, over-confident.
  A stacker fitted on out-of-fold logits does not suit in-sample ones, so their plain log-pool stands in for it.

Unlabelled battles are labelled by the average of a member's fold jobs and the final stack; for a fold student of the
two clean modes by fold job k alone (``nested``: and the stack without k). An extra battle, which members train on,
is labelled by the job that held it out, where one did. :mod:`ensemble.distillation.teacher_jobs` computes the logits that this reads.

Sources: the winning solution of Kaggle's LMSYS competition (fold_matched); WSDM Cup 2025, first place (oof).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.plan import FINAL, StudentPlan, cross_fitted_temperature, texts_key
from ensemble.features.design_matrix import build_design, join_logits, with_counts
from ensemble.stacking.calibration import fit_temperature
from ensemble.stacking.cross_fit import StackResult, cross_fit
from ensemble.stacking.stage import load_stack, predictions_frame, read_predictions
from ensemble.stacking.tfidf_baseline import count_terms
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.steps import Step
from oof.config import Member
from oof.jobs.dataset import FORMAT
from oof.jobs.fold_job import FoldJob
from oof.metrics import log_softmax, softmax

Floats = NDArray[np.float64]
Logits = dict[str, NDArray[np.float32]]  # member -> (n, 2, 3)


@dataclass(frozen=True)
class Scoring:
    """Score the battles ``rows`` of the plan's table with a finished fold job."""

    plan: StudentPlan
    job: FoldJob

    @property
    def label(self) -> str:
        return f"teacher {self.job.label}"

    @property
    def rows(self) -> NDArray[np.int64]:
        plan = self.plan
        wanted = np.arange(len(plan.folds)) >= plan.n_scored
        if plan.config.distill.teacher == "fold_matched":
            wanted |= plan.folds != self.job.fold
        return np.flatnonzero(wanted)

    @property
    def step(self) -> Step:
        key = digest("teacher", FORMAT, self.job.step.key, texts_key(self.plan.table[self.rows]))
        # The key in the name: recipes whose students learn from other battles do not replace each other's scores.
        return Step(_folder(self.plan) / self.job.name / f"fold-{self.job.fold}-{key[:8]}", key)

    @property
    def done(self) -> bool:
        return not len(self.rows) or self.step.done


@dataclass(frozen=True)
class PairJob:
    """Train a member without two folds and score both: the inner model of nested targets."""

    plan: StudentPlan
    name: str
    without: tuple[int, int]

    @property
    def member(self) -> Member:
        return self.plan.config.members[self.name]

    @property
    def label(self) -> str:
        return f"teacher {self.name} without folds {self.without[0]} and {self.without[1]}"

    @property
    def step(self) -> Step:
        first = next(job for job in self.plan.jobs if job.name == self.name)
        folder = _folder(self.plan) / "nested" / self.name / "without-{}-{}".format(*self.without)
        return Step(folder, digest("nested", FORMAT, first.step.key, self.without))

    @property
    def done(self) -> bool:
        return self.step.done


def _folder(plan: StudentPlan) -> Path:
    # Beside RUN/distill, not in it: another student's recipe needs the same teachers.
    return Path(plan.config.run) / "teacher"


def work(plan: StudentPlan) -> list[Scoring | PairJob]:
    """Return what has to be computed before ``targets`` can be read, done or not."""
    jobs: list[Scoring | PairJob] = [Scoring(plan, job) for job in plan.jobs if job.name in _used(plan)]
    if plan.config.distill.teacher == "nested":
        pairs = list(combinations(range(plan.config.folds.k), 2))
        jobs += [PairJob(plan, name, pair) for name in _used(plan) for pair in pairs]
    return jobs


def _used(plan: StudentPlan) -> list[str]:
    return list(plan.config.members) if plan.teachers == ["stack"] else plan.teachers


def targets(plan: StudentPlan, fold: int) -> Floats:
    """Return (n, 3 (t + 1)): each teacher's probabilities, then the one-hot label (zeros where there is none).

    Rows of ``fold`` itself, which its student never trains on, are NaN where no model may label them.
    """
    n, scored, mode = len(plan.labels), plan.n_scored, plan.config.distill.teacher
    blocks = np.full((n, len(plan.teachers), 3), np.nan)
    if mode == "oof" or (mode == "nested" and fold == FINAL):
        blocks[:scored] = plan.oof
    elif mode == "nested":
        blocks[:scored] = _nested(plan, fold)
    else:
        blocks[:scored] = _in_sample(plan, fold)
    if n > scored:
        blocks[scored:] = _pseudo(plan, fold)
    one_hot = np.where(plan.labels[:, None] == np.arange(3), 1.0, 0.0)
    return np.concatenate([blocks.reshape(n, -1), one_hot], axis=1)


# --- fold_matched ----------------------------------------------------------------------------------------


def _read(step: Step, ids: pl.Series) -> NDArray[np.float32]:
    frame = read_parquet(step.folder / "logits.parquet")
    return join_logits(ids.to_list(), frame.filter(pl.col("id").is_in(ids.to_list())))


def _job(plan: StudentPlan, name: str, fold: int) -> Scoring:
    return Scoring(plan, next(job for job in plan.jobs if (job.name, job.fold) == (name, fold)))


def _in_sample(plan: StudentPlan, fold: int) -> Floats:
    """Return (n_scored, t, 3) by fold job ``fold``; for the final student by the jobs that trained on the battle."""
    folds, ids = plan.folds[: plan.n_scored], plan.table["id"][: plan.n_scored]
    used = range(plan.config.folds.k) if fold == FINAL else [fold]
    logits = {}
    for name in _used(plan):
        total, times = np.zeros((plan.n_scored, 2, 3)), np.zeros(plan.n_scored)
        for k in used:
            rows = np.flatnonzero(folds != k)
            total[rows] += _read(_job(plan, name, k).step, ids[rows])
            times[rows] += 1
        logits[name] = np.where(times[:, None, None] > 0, total / np.maximum(times, 1)[:, None, None], np.nan)
    return _probabilities(plan, logits, None, {})


def _probabilities(plan: StudentPlan, logits: Logits, pooled: Floats | None, temperatures: dict[str, float]) -> Floats:
    """Return (n, t, 3): each teacher's, or ``pooled``, or (where None) the log-pool of all members."""
    means = {name: z.astype(np.float64).mean(axis=1) / temperatures.get(name, 1.0) for name, z in logits.items()}
    if plan.teachers == ["stack"]:
        pool = softmax(np.mean([log_softmax(z) for z in means.values()], axis=0)) if pooled is None else pooled
        return pool[:, None]
    return np.stack([softmax(means[name]) for name in plan.teachers], axis=1)


# --- nested ----------------------------------------------------------------------------------------------


def _nested_logits(plan: StudentPlan, fold: int) -> tuple[NDArray[np.int64], Logits]:
    """Return the scored battles outside ``fold`` and their logits by members that saw neither fold."""
    folds, ids = plan.folds[: plan.n_scored], plan.table["id"]
    rows = np.flatnonzero(folds != fold)
    logits = {name: np.empty((len(rows), 2, 3), dtype=np.float32) for name in _used(plan)}
    for other in range(plan.config.folds.k):
        if other != fold:
            at = np.flatnonzero(folds[rows] == other)
            for name, values in logits.items():
                step = PairJob(plan, name, (min(fold, other), max(fold, other))).step
                values[at] = _read(step, ids[rows[at]])
    return rows, logits


def _nested(plan: StudentPlan, fold: int) -> Floats:
    out = np.full((plan.n_scored, len(plan.teachers), 3), np.nan)
    rows, logits = _nested_logits(plan, fold)
    if plan.teachers == ["stack"]:
        predictions = nested_stack(plan, fold).folder / "predictions.parquet"
        out[rows, 0] = read_predictions(predictions, plan.table["id"][rows])["teacher"]
    else:
        labels, folds = plan.labels[rows], plan.folds[rows]
        for i, name in enumerate(plan.teachers):
            out[rows, i] = cross_fitted_temperature(logits[name].astype(np.float64).mean(axis=1), labels, folds)[0]
    return out


def nested_stack(plan: StudentPlan, fold: int) -> Step:
    """Return the finished step of the stack that knows nothing of ``fold``, fitting it if need be."""
    rows, logits = _nested_logits(plan, fold)
    config = plan.config
    digests = [digest(logits[name]) for name in sorted(logits)]
    facts = digest(plan.labels[rows], plan.folds[rows], plan.inputs.groups[rows])
    key = digest("nested stack", FORMAT, config.stack, config.seed, digests, facts, texts_key(plan.table[rows]))
    step = Step(_folder(plan) / "nested" / f"stack-{fold}", key)
    if step.done:
        return step
    step.begin()
    design = build_design(plan.inputs.table[rows], logits)
    parts = plan.labels[rows], plan.folds[rows], plan.inputs.groups[rows]
    texts = count_terms(plan.table[rows]) if config.stack.text_member else None
    result = cross_fit(design, *parts, config.stack, config.seed, step.folder / "studies", texts)
    result.save(step.folder / "model")
    frame = predictions_frame(plan.table["id"][rows], {"teacher": result.predictions["teacher"]})
    write_parquet(step.folder / "predictions.parquet", frame)
    step.finish()
    return step


# --- battles that are not scored -------------------------------------------------------------------------


def _pseudo(plan: StudentPlan, fold: int) -> Floats:
    """Return (n - n_scored, t, 3) for the extra and unlabelled battles."""
    mode, table = plan.config.distill.teacher, plan.table[plan.n_scored :]
    one_job = mode != "oof" and fold != FINAL
    held = np.where((table["role"] == "extra").to_numpy(), plan.folds[plan.n_scored :], -1)
    logits: Logits = {}
    for name in _used(plan):
        each = [_read(_job(plan, name, k).step, table["id"]) for k in range(plan.config.folds.k)]
        mean: Floats = np.stack(each).mean(axis=0, dtype=np.float64)
        for k, values in enumerate(each):
            mean[held == k] = values[held == k]
        logits[name] = (each[fold] if one_job else mean).astype(np.float32)
    if plan.teachers == ["stack"] and mode != "fold_matched":
        return _probabilities(plan, logits, _stacked(plan, fold, table, logits), {})
    outside = plan.folds[: plan.n_scored] != fold
    inputs = plan.inputs
    temperatures = {
        name: fit_temperature(inputs.logits[name].astype(np.float64).mean(axis=1)[outside], inputs.labels[outside])
        for name in logits
    }
    return _probabilities(plan, logits, None, temperatures)


def _stacked(plan: StudentPlan, fold: int, table: pl.DataFrame, logits: Logits) -> Floats:
    if plan.config.distill.teacher == "nested" and fold != FINAL:
        result = StackResult.load(nested_stack(plan, fold).folder / "model")
    else:
        result = load_stack(plan.config, plan.inputs)
    first = _job(plan, next(iter(plan.config.members)), 0).step.folder / "logits.parquet"
    table = with_counts(table, read_parquet(first))
    return result.calibrator.apply_symmetric(result.combiner.logits(result.design(table, logits)))
