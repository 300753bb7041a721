"""Targets of each student: teacher probabilities and labels per battle. Imports no torch.

``distill.teacher`` chooses the teacher of the scored battles for fold student k, which never trains on fold k:

* ``oof``: the cross-fitted ensemble. Its probabilities for fold j come from members that did not see fold j but did see
  fold k.
* ``nested``: members trained without folds j *and* k, stacked and calibrated without fold k, so that no label of fold k
  has any influence. The model without {j, k} serves students j and k: K (K - 1) / 2 trainings a member.
* ``fold_matched``: the members' fold job k, which trained on these very battles. Free of fold k and cheap, but
  over-confident. A stacker fitted on out-of-fold logits does not suit in-sample ones, so the log-linear pool of the
  members replaces it.

The average of a member's fold jobs, through the final stack, labels the unlabelled battles. For a fold student with
``nested`` or ``fold_matched``, fold job k alone labels them: with ``nested`` through the stack without fold k, or where
members are the teachers at temperatures of the models without {j, k}; with ``fold_matched`` uncalibrated, as the scored
battles, because all held-out logits that could give a temperature come from members that saw fold k or its labels.

Extra battles have folds of their own, and student k does not train on those of fold k. With ``oof``, and for the final
student in every mode, the fold job that held an extra battle out labels it. With ``nested`` the model without {j, k}
labels one of fold j: it saw neither that battle's label nor a label of fold k. With ``fold_matched`` fold job k labels
it, in-sample as the scored battles: no fold job is free of both. Runs that were made before have extra battles in no
fold; the rule of unlabelled battles applies to these, whose probabilities are in-sample.

Sources: the winning solution of Kaggle's LMSYS competition (fold_matched); WSDM Cup 2025, first place (oof).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.plan import FINAL, StudentPlan, cross_fitted_temperature
from ensemble.distillation.teacher_jobs import NestedJob, scoring_job, teacher_folder, teaching_members
from ensemble.distillation.text_digests import texts_key
from ensemble.features.design_matrix import add_terms, build_design, join_logits, with_counts
from ensemble.stacking import STACKING_VERSION
from ensemble.stacking.calibration import shrunk_temperature
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.job_scales import JobScales, fit_job_scales
from ensemble.stacking.stack_result import StackResult
from ensemble.stacking.stage import load_stack, predictions_frame, read_predictions
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.steps import Step
from oof.config import without_speed_settings
from oof.data.targets import training_targets
from oof.jobs.dataset import FORMAT
from oof.metrics import log_softmax, mean_of_orders, softmax

ROWS = 20_000  # battles whose design is in memory at a time

Floats = NDArray[np.float64]
Logits = dict[str, NDArray[np.floating]]  # member -> (n, 2, 3)


def student_targets(plan: StudentPlan, fold: int) -> Floats:
    """Return the (n, 3 (t + 1)) targets of one student: each teacher's probabilities, then the label, one-hot or soft.

    The label's block is zero for a battle without a label. The probabilities of ``fold`` itself, on which its student
    does not train, are NaN where every available model trained on that fold.

    Args:
        plan: n battles and t teachers.
        fold: the fold that the student does not see; ``FINAL`` for the final student.
    """
    n, n_scored, mode = len(plan.labels), plan.n_scored, plan.config.distill.teacher
    probs = np.full((n, len(plan.teachers), 3), np.nan)
    if mode == "oof" or (mode == "nested" and fold == FINAL):
        probs[:n_scored] = plan.teacher_probs
    elif mode == "nested":
        probs[:n_scored] = _nested(plan, fold)
    else:
        probs[:n_scored] = _in_sample(plan, fold)
    if n > n_scored:
        probs[n_scored:] = _unscored(plan, fold)
    labels = np.where(plan.labels[:, None] >= 0, training_targets(plan.table), 0.0)
    return np.concatenate([probs.reshape(n, -1), labels], axis=1)


def _read_logits(step: Step, ids: pl.Series) -> NDArray[np.float32]:
    """Return the (m, 2, 3) logits that a teacher job stored for these battles."""
    frame = read_parquet(step.folder / "logits.parquet")
    return join_logits(ids.to_list(), frame.filter(pl.col("id").is_in(ids.to_list())))


def _teacher_probs(plan: StudentPlan, logits: Logits, stacked: Floats | None, temperatures: dict[str, float]) -> Floats:
    """Return (m, t, 3) probabilities of the plan's teachers from the members' logits.

    Args:
        plan: names the teachers.
        logits: of the members, (m, 2, 3) each.
        stacked: (m, 3) of the ensemble; None = the log-linear pool of the members replaces it.
        temperatures: of the members; 1 where there is none.
    """
    means = {name: mean_of_orders(z) / temperatures.get(name, 1.0) for name, z in logits.items()}
    if plan.teachers == ["stack"]:
        pool = softmax(np.mean([log_softmax(z) for z in means.values()], axis=0)) if stacked is None else stacked
        return pool[:, None]
    return np.stack([softmax(means[name]) for name in plan.teachers], axis=1)


# --- fold_matched ----------------------------------------------------------------------------------------


def _in_sample(plan: StudentPlan, fold: int) -> Floats:
    """Return (n_scored, t, 3) by fold job ``fold``; for the final student by all jobs that trained on the battle."""
    folds, ids = plan.folds[: plan.n_scored], plan.table["id"][: plan.n_scored]
    job_folds = range(plan.config.folds.k) if fold == FINAL else [fold]
    logits = {}
    for name in teaching_members(plan):
        total, n_jobs = np.zeros((plan.n_scored, 2, 3)), np.zeros(plan.n_scored)
        for k in job_folds:
            rows = np.flatnonzero(folds != k)
            total[rows] += _read_logits(scoring_job(plan, name, k).step, ids[rows])
            n_jobs[rows] += 1
        logits[name] = np.where(n_jobs[:, None, None] > 0, total / np.maximum(n_jobs, 1)[:, None, None], np.nan)
    return _teacher_probs(plan, logits, None, {})


# --- nested ----------------------------------------------------------------------------------------------


def _outside(plan: StudentPlan, fold: int) -> NDArray[np.int64]:
    """Return the positions of the scored battles outside ``fold``."""
    return np.flatnonzero(plan.folds[: plan.n_scored] != fold)


def _nested_logits(plan: StudentPlan, fold: int) -> Logits:
    """Return (m, 2, 3) logits of the m scored battles outside ``fold``, by members that saw neither fold."""
    rows, ids = _outside(plan, fold), plan.table["id"]
    logits = {name: np.empty((len(rows), 2, 3), dtype=np.float32) for name in teaching_members(plan)}
    for other in range(plan.config.folds.k):
        if other != fold:
            at = np.flatnonzero(plan.folds[rows] == other)
            for name, values in logits.items():
                step = NestedJob(plan, name, (min(fold, other), max(fold, other))).step
                values[at] = _read_logits(step, ids[rows[at]])
    return logits


def _nested(plan: StudentPlan, fold: int) -> Floats:
    """Return (n_scored, t, 3) by models that saw no label of ``fold``; NaN for the battles of ``fold``."""
    out, rows = np.full((plan.n_scored, len(plan.teachers), 3), np.nan), _outside(plan, fold)
    if plan.teachers == ["stack"]:
        predictions = nested_stack(plan, fold).folder / "predictions.parquet"
        out[rows, 0] = read_predictions(predictions, plan.table["id"][rows])["teacher"]
        return out
    logits, of_rows = _nested_logits(plan, fold), (plan.labels[rows], plan.folds[rows], plan.inputs.groups[rows])
    for i, name in enumerate(plan.teachers):
        out[rows, i] = cross_fitted_temperature(mean_of_orders(logits[name]), *of_rows)[0]
    return out


def nested_stack(plan: StudentPlan, fold: int) -> Step:
    """Return the finished step of the stack that is fitted without ``fold``; it is fitted here if it is missing."""
    rows, logits, config = _outside(plan, fold), _nested_logits(plan, fold), plan.config
    table, labels, folds, groups = plan.table[rows], plan.labels[rows], plan.folds[rows], plan.inputs.groups[rows]
    logits_keys = [digest(logits[name]) for name in sorted(logits)]
    battles_key = [digest(labels, folds, groups), texts_key(table)]
    settings = without_speed_settings(config.stack), config.seed, STACKING_VERSION
    key = digest("nested stack", FORMAT, *settings, logits_keys, *battles_key)
    step = Step(teacher_folder(plan) / "nested" / f"stack-{fold}", key)
    if step.done:
        return step
    step.begin()
    scales = fit_job_scales(logits, folds, groups)
    design = add_terms(build_design(plan.inputs.table[rows], scales.out_of_fold(logits, folds)), table)
    studies = step.folder / "studies"
    result = cross_fit(design, labels, folds, groups, config.stack, config.seed, studies)
    result.job_scales = scales
    result.save(step.folder / "model")
    frame = predictions_frame(table["id"], {"teacher": result.predictions["teacher"]})
    write_parquet(step.folder / "predictions.parquet", frame)
    step.finish()
    return step


# --- extra and unlabelled battles ------------------------------------------------------------------------


def _unscored(plan: StudentPlan, fold: int) -> Floats:
    """Return (n - n_scored, t, 3) of the extra and unlabelled battles; NaN for those that no job may score."""
    own = plan.extra_folds[plan.n_scored :]
    nested = plan.config.distill.teacher == "nested" and fold != FINAL
    stack = _stack_of_unscored(plan, fold)
    scales = JobScales() if stack is None else stack.job_scales
    out = np.full((len(own), len(plan.teachers), 3), np.nan)
    for rows in (np.flatnonzero(own < 0), np.flatnonzero((own >= 0) & ~(nested & (own == fold)))):
        if len(rows):
            at = rows + plan.n_scored
            logits = {name: _logits_of_unscored(plan, name, at, fold, scales) for name in teaching_members(plan)}
            out[rows] = _unscored_probs(plan, fold, at, logits, stack)
    return out


def _stack_of_unscored(plan: StudentPlan, fold: int) -> StackResult | None:
    """Return the final stack, or with ``nested`` that without ``fold``; None where no stack is the teacher."""
    if plan.teachers != ["stack"] or plan.config.distill.teacher == "fold_matched":
        return None
    if plan.config.distill.teacher == "nested" and fold != FINAL:
        return StackResult.load(nested_stack(plan, fold).folder / "model")
    return load_stack(plan.config, plan.inputs)


def _logits_of_unscored(
    plan: StudentPlan, name: str, rows: NDArray[np.int64], fold: int, scales: JobScales
) -> NDArray[np.floating]:
    """Return a member's (m, 2, 3) logits for student ``fold`` of m battles that stage one does not score.

    Args:
        plan: of the students.
        name: of the member.
        rows: (m,) positions in the plan's table: extra battles that some fold holds out, or none of these.
        fold: as in :func:`student_targets`.
        scales: constants of the jobs that the teaching stack was fitted on; any other job's logits stay as they are.
    """
    mode, ids, own = plan.config.distill.teacher, plan.table["id"][rows], plan.extra_folds[rows]
    one_job = mode != "oof" and fold != FINAL
    if (own < 0).all() or (one_job and mode == "fold_matched"):
        job_folds = [fold] if one_job else range(plan.config.folds.k)
        return scales.mean_over_jobs(name, {k: _read_logits(scoring_job(plan, name, k).step, ids) for k in job_folds})
    logits = np.empty((len(rows), 2, 3), dtype=np.float32)
    for k in np.unique(own).tolist():
        job = NestedJob(plan, name, (min(k, fold), max(k, fold))) if one_job else scoring_job(plan, name, k)
        logits[own == k] = _read_logits(job.step, ids.filter(own == k))
    return scales.out_of_fold({name: logits}, own)[name]


def _unscored_probs(
    plan: StudentPlan, fold: int, rows: NDArray[np.int64], logits: Logits, stack: StackResult | None
) -> Floats:
    """Return (m, t, 3) calibrated probabilities; ``rows`` as in :func:`_logits_of_unscored`."""
    mode, inputs, outside = plan.config.distill.teacher, plan.inputs, _outside(plan, fold)
    if mode == "fold_matched":
        return _teacher_probs(plan, logits, None, {})
    if stack is not None:
        return _teacher_probs(plan, logits, _stacked(plan, stack, plan.table[rows], logits), {})
    # Of the battles outside fold k, ordinary out-of-fold logits come from members that were trained on fold k.
    nested = mode == "nested" and fold != FINAL
    fitted_on = _nested_logits(plan, fold) if nested else {name: inputs.logits[name][outside] for name in logits}
    temperatures = {
        name: shrunk_temperature(mean_of_orders(values), inputs.labels[outside], inputs.groups[outside])
        for name, values in fitted_on.items()
    }
    return _teacher_probs(plan, logits, None, temperatures)


def _stacked(plan: StudentPlan, stack: StackResult, table: pl.DataFrame, logits: Logits) -> Floats:
    """Return the stack's (m, 3) probabilities, of ``ROWS`` battles at a time: a design has hundreds of columns."""
    jobs = [scoring_job(plan, next(iter(plan.config.members)), k) for k in range(plan.config.folds.k)]
    frames = [read_parquet(job.step.folder / "logits.parquet") for job in jobs if len(job.rows)]
    counts = pl.concat(frames).unique("id", keep="first", maintain_order=True)
    probs = []
    for start in range(0, table.height, ROWS):
        rows = slice(start, start + ROWS)
        design = stack.design(with_counts(table[rows], counts), {name: z[rows] for name, z in logits.items()})
        probs.append(stack.calibrator.symmetric().apply(stack.combiner.logits(design)))
    return np.concatenate(probs)
