"""Stage three over a run folder: plan, teacher jobs, students, export, abstention, quantised variants.

Torch takes seconds to import, so this module imports it only when there is something to train or export.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.answer_thresholds import add_abstention, store_abstention
from ensemble.distillation.model_card import student_card
from ensemble.distillation.plan import StudentPlan, cross_fitted_temperature, plan_student
from ensemble.distillation.teacher_jobs import NestedJob, teacher_jobs
from ensemble.stacking.calibration import shrunk_temperature
from ensemble.stacking.stage import predictions_frame, read_predictions
from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.scores import scores
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.common.steps import UNFINISHED, Step
from oof.config import Config
from oof.distributed.gpus import prepare_gpu
from oof.jobs.base_check import check_bases
from oof.jobs.commits import needs_commit, record_commit
from oof.jobs.finished_training import Training, losses, refuse_to_replace
from oof.jobs.run_preparation import trainings
from oof.jobs.source_files import remember
from oof.metrics import row_log_loss

logger = logging.getLogger(__name__)


def run_distill(config: Config, redo: bool = False, asked: bool = False) -> bool:
    """Train and export the student and its variants unless they are up to date; return whether anything ran.

    Args:
        config: of the command.
        redo: replace finished training of other settings.
        asked: the command line itself names other settings of the student or its teacher: it is trained without asking,
            and the students of other settings are kept beside it.

    Raises:
        UserError: settings conflict, an earlier stage is missing or out of date, finished training would be replaced,
            or the exported student does not compute the trained one's logits.
    """
    plan = plan_student(config)
    step = _step(plan)
    if not step.done:
        restore_students(step)
    stale = not step.done
    if stale:
        students = [] if asked else [Training("student", "all folds", step, plan.depends)]
        refuse_to_replace(config, [*needed_trainings(plan), *students], "make distill", redo)
        plan = _pinned_plan(plan, config)
        step = _step(plan)
        check_bases({"student": plan.config.distill.student}, config.jobs)
    remember(config, ("distill", "jobs"))
    if stale:
        if asked and not redo:
            keep_students(step)
        _distill(plan, step)
    added = add_abstention(plan, step)
    variants = [Step(step.folder / f"student-{name}", f"{plan.key}/{name}") for name in config.distill.variants]
    missing = [variant for variant in variants if not variant.done]
    for variant in missing:
        from ensemble.distillation.quantize import export_variant

        export_variant(plan, step.folder / "student", variant)
    return stale or added or bool(missing)


def needed_trainings(plan: StudentPlan) -> list[Training]:
    """Return the trainings before the students: their pretraining, and members without two of the folds."""
    nested = [job for job in teacher_jobs(plan) if isinstance(job, NestedJob)]
    teachers = [
        Training(f"teacher {job.name}", "without folds {} and {}".format(*job.without), job.step) for job in nested
    ]
    return [*trainings([] if plan.pretrain is None else [plan.pretrain]), *teachers]


def keep_students(step: Step) -> None:
    """Move finished students of other settings to ``RUN/earlier``, where :func:`restore_students` finds them again."""
    if not losses([Training("student", "all folds", step)]):
        return
    manifest = step.earlier() or {}
    folder = _earlier(step.folder, str(manifest.get("key") or (step.folder / UNFINISHED).read_text("utf-8")))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    step.folder.rename(folder)
    logger.info("the students of other settings are kept in %s; delete it if you do not need them", folder)


def restore_students(step: Step) -> None:
    """Bring students of these settings back that :func:`keep_students` moved away; those in their place are moved."""
    kept = Step(_earlier(step.folder, step.key), step.key)
    if kept.folder.is_dir() and kept.earlier() is None:
        keep_students(step)
        shutil.rmtree(step.folder, ignore_errors=True)
        kept.folder.rename(step.folder)
        logger.info("the students of these settings are back from %s", kept.folder)


def _earlier(folder: Path, key: str) -> Path:
    return folder.parent / "earlier" / f"{folder.name}-{key[:8]}"


def _step(plan: StudentPlan) -> Step:
    return Step(Path(plan.config.run) / "distill", plan.key)


def _pinned_plan(plan: StudentPlan, config: Config) -> StudentPlan:
    """Return the plan; the run first records the commit of the student's base if it has yet to load that."""
    run, student = Path(config.run), config.distill.student
    if not needs_commit(run, student):
        return plan
    begun = _step(plan).begun or (plan.pretrain is not None and plan.pretrain.step.begun)
    record_commit(run, student, begun)
    return plan_student(config)


def _distill(plan: StudentPlan, step: Step) -> None:
    prepare_gpu(plan.config.jobs)  # before the imports below, which initialise CUDA
    from ensemble.distillation.average_temperature import average_temperature
    from ensemble.distillation.export import CHECKED, export_student
    from ensemble.distillation.run_teacher_jobs import run_teacher_jobs
    from ensemble.distillation.train import load_final, pretrain_student, train_students
    from oof.jobs.encoded_battles import EncodedBattles

    pretrain_student(plan)
    run_teacher_jobs(plan)
    step.begin()
    logits = train_students(plan, step.folder)
    inputs, ids, mean_logits = plan.inputs, plan.inputs.table["id"], logits.mean(axis=1)
    probs, fold_temperatures = cross_fitted_temperature(mean_logits, inputs.labels, inputs.folds, inputs.groups)
    of_students = shrunk_temperature(mean_logits, inputs.labels, inputs.groups)
    temperatures: dict[str, Any] = {"temperature": of_students, "fold_temperatures": fold_temperatures}
    stage_two = read_predictions(Path(plan.config.run) / "stack" / "predictions.parquet", ids)
    metrics = student_metrics(plan, probs, stage_two["calibrated"])
    texts = EncodedBattles(plan.config.distill.student, plan.table.head(CHECKED), plan.config.for_student())
    final = load_final(plan, step.folder, texts)
    if plan.config.distill.final == "fold_average":
        own = average_temperature(plan, final, logits, of_students, step.folder / "partial")
        temperatures |= {"temperature": own, "fold_students_temperature": of_students}
    card = student_card(plan, temperatures, metrics)
    export_student(final, texts, temperatures["temperature"], step.folder / "student", card)
    store_abstention(plan, step.folder, probs)
    write_parquet(step.folder / "logits.parquet", logits_frame(ids, logits, inputs.folds))
    write_parquet(step.folder / "predictions.parquet", predictions_frame(ids, {"student": probs}))
    loss = metrics["scores"]["log_loss"]
    logger.info("student: out-of-fold log loss %.4f; saved to %s", loss, step.folder / "student")
    step.finish({**metrics, "log_loss": loss, **temperatures, "depends": plan.depends})


def student_metrics(plan: StudentPlan, probs: NDArray[np.float64], calibrated: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fold students' scores, their log loss, that of ``calibrated`` and the difference, with intervals.

    The names and numbers are those of the run's table and report.

    Args:
        plan: n scored battles.
        probs: (n, 3) calibrated probabilities, each battle's by the student that did not see its fold.
        calibrated: (n, 3) cross-fitted probabilities of stage two, with a modelled position bias, which the teacher
            lacks.
    """
    inputs, seed = plan.inputs, plan.config.seed
    losses, of_calibrated = (row_log_loss(p, inputs.labels) for p in (probs, calibrated))
    return {
        "scores": scores(probs, inputs.labels),
        "interval": group_interval(losses, inputs.groups, seed),
        "calibrated": group_interval(of_calibrated, inputs.groups, seed),
        "student_minus_calibrated": group_interval(losses - of_calibrated, inputs.groups, seed),
    }
