"""Stage three over a run folder: plan, teacher jobs, students, export, quantised variants.

Torch takes seconds to import, so this module imports it only when there is something to train or export.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.model_card import student_card
from ensemble.distillation.plan import StudentPlan, cross_fitted_temperature, plan_student
from ensemble.stacking.calibration import fit_temperature
from ensemble.stacking.stage import predictions_frame
from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.scores import scores
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.common.steps import Step
from oof.config import Config
from oof.distributed.gpus import prepare_gpu
from oof.jobs.commits import needs_commit, record_commit
from oof.metrics import row_log_loss

logger = logging.getLogger(__name__)


def run_distill(config: Config) -> bool:
    """Train and export the student and its variants unless they are up to date; return whether anything ran.

    Raises:
        UserError: settings conflict, an earlier stage is missing or out of date, or the exported student does not
            compute the trained one's logits.
    """
    plan = _pinned_plan(config)
    step = _step(plan)
    stale = not step.done
    if stale:
        _distill(plan, step)
    variants = [Step(step.folder / f"student-{name}", f"{plan.key}/{name}") for name in config.distill.variants]
    missing = [variant for variant in variants if not variant.done]
    for variant in missing:
        from ensemble.distillation.quantize import export_variant

        export_variant(plan, step.folder / "student", variant)
    return stale or bool(missing)


def _step(plan: StudentPlan) -> Step:
    return Step(Path(plan.config.run) / "distill", plan.key)


def _pinned_plan(config: Config) -> StudentPlan:
    """Return the plan; the run first records the commit of the student's base if it has yet to load that."""
    plan, run, student = plan_student(config), Path(config.run), config.distill.student
    if not needs_commit(run, student):
        return plan
    begun = _step(plan).begun or (plan.pretrain is not None and plan.pretrain.step.begun)
    record_commit(run, student, begun)
    return plan_student(config)


def _distill(plan: StudentPlan, step: Step) -> None:
    prepare_gpu(plan.config.jobs)  # before the imports below, which initialise CUDA
    from ensemble.distillation.export import CHECKED, export_student
    from ensemble.distillation.run_teacher_jobs import run_teacher_jobs
    from ensemble.distillation.train import load_final, pretrain_student, train_students
    from oof.jobs.encoded_battles import EncodedBattles

    pretrain_student(plan)
    run_teacher_jobs(plan)
    step.begin()
    logits = train_students(plan, step.folder)
    inputs, ids, mean_logits = plan.inputs, plan.inputs.table["id"], logits.mean(axis=1)
    probs, fold_temperatures = cross_fitted_temperature(mean_logits, inputs.labels, inputs.folds)
    temperature = fit_temperature(mean_logits, inputs.labels)
    metrics = student_metrics(plan, probs)
    texts = EncodedBattles(plan.config.distill.student, plan.table.head(CHECKED), plan.config)
    card = student_card(plan, temperature, metrics)
    export_student(load_final(plan, step.folder, texts), texts, temperature, step.folder / "student", card)
    write_parquet(step.folder / "logits.parquet", logits_frame(ids, logits, inputs.folds))
    write_parquet(step.folder / "predictions.parquet", predictions_frame(ids, {"student": probs}))
    loss = metrics["scores"]["log_loss"]
    logger.info("student: out-of-fold log loss %.4f; saved to %s", loss, step.folder / "student")
    temperatures = {"temperature": temperature, "fold_temperatures": fold_temperatures}
    step.finish({**metrics, "log_loss": loss, **temperatures})


def student_metrics(plan: StudentPlan, probs: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fold students' scores, and their log loss and its difference from the ensemble's with intervals.

    Args:
        plan: n scored battles.
        probs: (n, 3) calibrated probabilities, each battle's by the student that did not see its fold.
    """
    inputs, seed = plan.inputs, plan.config.seed
    losses = row_log_loss(probs, inputs.labels)
    ensemble_losses = row_log_loss(plan.ensemble_probs, inputs.labels)
    return {
        "scores": scores(probs, inputs.labels),
        "interval": group_interval(losses, inputs.groups, seed),
        "student_minus_ensemble": group_interval(losses - ensemble_losses, inputs.groups, seed),
    }
