"""Fold students of one setting on a finished run, kept in RUN/students; all stages of a part of ``students.py``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.students_settings import Part
from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.plan import StudentPlan, cross_fitted_temperature, plan_student
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common import interrupts
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame, logits_of
from oof.common.steps import Step, locked


def plan_of(settings: Sequence[str]) -> StudentPlan:
    """Return the plan of a configuration's students; its path comes first, overrides after it."""
    return plan_student(configuration.load(settings[0], settings[1:]))


def students_step(plan: StudentPlan) -> Step:
    """Return the step of a plan's fold students, which settings of the same effect share; stage three's, if done."""
    run = Path(plan.config.run)
    stage_three = Step(run / "distill", plan.key)
    return stage_three if stage_three.done else Step(run / "students" / plan.key[:12], plan.key)


def student_probs(plan: StudentPlan) -> NDArray[np.float64]:
    """Return (n, 3) calibrated probabilities of a plan's finished fold students."""
    logits = logits_of(read_parquet(students_step(plan).folder / "logits.parquet"))
    inputs = plan.inputs
    mean_logits = logits.astype(np.float64).mean(axis=1)
    return cross_fitted_temperature(mean_logits, inputs.labels, inputs.folds, inputs.groups)[0]


def train(settings: Sequence[str]) -> None:
    """Train the fold students of a configuration that are missing."""
    plan = plan_of(settings)
    step = students_step(plan)
    if not step.done:
        from ensemble.distillation.run_teacher_jobs import run_teacher_jobs
        from ensemble.distillation.train import train_students

        run_teacher_jobs(plan)
        step.begin()
        logits = train_students(plan, step.folder, final=False)
        frame = logits_frame(plan.inputs.table["id"], logits, plan.inputs.folds)
        write_parquet(step.folder / "logits.parquet", frame)
        step.finish()


def measure(part: Part, names: Sequence[str], deadline: float, finish: str = "") -> None:
    """Run stages one and two of a part, then train the fold students of each setting; finished ones are skipped.

    Args:
        part: of the benchmark.
        names: of its settings.
        deadline: of the monotonic clock; infinite = none.
        finish: setting with which stage three of the run is done first; "" = of none.

    Raises:
        interrupts.Stopped: by a signal or at the deadline; the next call goes on.
    """

    def seconds_left() -> float:
        return 0.0 if deadline == float("inf") else max(1.0, deadline - time.monotonic())

    stages = [(oof_main, "oof", []), (ensemble_main, "stack", [])]
    if finish:
        stages.append((ensemble_main, "distill", part.settings[finish]))
    for program, subcommand, changes in stages:
        limit = f"jobs.time_limit={seconds_left():.0f}"
        status = program([subcommand, str(part.path), *part.overrides, *changes, limit])
        if status == interrupts.EXIT_STATUS:
            raise interrupts.Stopped("a signal or the time limit")
        if status:
            raise UserError(f"{subcommand} failed; see above")
    interrupts.set_time_limit(seconds_left())  # the stages set their own
    for name in names:
        interrupts.check()
        print(f"{part.section} {part.seed}: {name} …", file=sys.stderr, flush=True)
        with locked(Path(part.config.run)):
            train([str(part.path), *part.overrides, *part.settings[name]])
