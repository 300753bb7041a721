"""Stage three, what is to be done: the student's targets, its key and its honest score. Imports no torch.

K fold students, each trained without its fold, give the honest score and the temperature; the final student is
trained on every scored battle. What "honest" means: a fold student never sees its fold's labels or texts. Its
targets, ordinary out-of-fold probabilities, come from stackers that did see those labels, which makes the score
slightly optimistic (see docs/leak-safety.md). :mod:`ensemble.student` does the training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble import stack
from ensemble.calibrate import fit_temperature
from oof import store
from oof.config import Config, Distill
from oof.dataset import FORMAT
from oof.errors import UserError
from oof.metrics import softmax


@dataclass(frozen=True)
class StudentPlan:
    """All that the students' training reads.

    Attributes:
        table: (n) scored battles; labels, folds and weights in its order.
        targets: (n, 6): the teacher's out-of-fold probabilities, then the one-hot label.
        key: digest of everything that the result depends on.
    """

    config: Config
    table: pl.DataFrame
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    weights: NDArray[np.float64]
    targets: NDArray[np.float64]
    key: str


def plan_student(config: Config) -> StudentPlan:
    """Return the plan of stage three.

    Raises:
        UserError: no student is configured, or an earlier stage is missing or out of date.
    """
    if not config.distill.student.checkpoint:
        raise UserError("distill.student.checkpoint is empty; set a Hugging Face folder or hub name")
    inputs = stack.load_inputs(config)
    targets = np.concatenate([stack.load_teacher(config, inputs), np.eye(3)[inputs.labels]], axis=1)
    weights = inputs.table["weight"].to_numpy()
    student = config.distill.student
    recipe: Distill = replace(config.distill, student=replace(student, score_tokens_per_batch=0))
    turns = [inputs.table[part].to_list() for part in ("prompt", "response_a", "response_b")]
    data = [inputs.table["id"].to_list(), turns, store.digest(targets.round(9), inputs.folds, weights)]
    checkpoint = store.checkpoint_digest(student.checkpoint)
    key = store.digest("distill", FORMAT, recipe, checkpoint, config.prompts, config.seed, data)
    return StudentPlan(config, inputs.table, inputs.labels, inputs.folds, weights, targets, key)


def run_distill(config: Config) -> bool:
    """Train and export the student unless it is up to date; return whether anything ran."""
    plan = plan_student(config)
    step = store.Step(Path(config.run) / "distill", plan.key)
    if step.done:
        return False
    from ensemble.student import train_students

    step.begin()
    train_students(plan, step)
    return True


def cross_fitted_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer], folds: NDArray[np.integer]
) -> tuple[NDArray[np.float64], list[float]]:
    """Return (n, 3) probabilities, each fold's at the temperature fitted on the other folds, and those temperatures."""
    probs, temperatures = np.empty((len(labels), 3)), []
    for fold in range(int(folds.max()) + 1):
        temperature = fit_temperature(logits[folds != fold], labels[folds != fold])
        probs[folds == fold] = softmax(logits[folds == fold] / temperature)
        temperatures.append(temperature)
    return probs, temperatures
