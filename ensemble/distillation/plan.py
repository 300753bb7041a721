"""Stage three, what is to be done: the students' battles, their key and their honest score. Imports no torch.

K fold students, each trained without its fold, give the honest score and the temperature; the final student is
trained on every battle, or is the fold students' average. A fold student never sees its fold's labels or texts.
Whether its *targets* do is ``distill.teacher``'s choice (see docs/distillation.md and :mod:`ensemble.distillation.targets`).
:mod:`ensemble.distillation.train` does the training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.stacking.calibration import fit_temperature
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, load_teacher
from oof.common.digests import checkpoint_digest, digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Distill, to_dict
from oof.jobs.dataset import FORMAT, load_battles
from oof.jobs.fold_job import FoldJob, check_frozen, fold_jobs
from oof.jobs.pretrain import PretrainJob, pretrain_job
from oof.metrics import softmax

FINAL = -1  # in place of a fold: the student that is exported
VARIANTS = ("int8", "nf4")


@dataclass(frozen=True)
class StudentPlan:
    """All that the students' training reads.

    Attributes:
        inputs: the scored battles and the members' out-of-fold logits.
        table: (n) battles to train on: the scored ones in the order of ``inputs``, then extra, then unlabelled.
        labels: (n,) classes, -1 where there is none.
        folds: (n,) folds, -1 for a battle that no fold holds out.
        weights: (n,) loss weights.
        oof: (n_scored, t, 3) each teacher's calibrated out-of-fold probabilities of the scored battles.
        jobs: the members' fold jobs, where other battles than the scored ones need targets; else empty.
        key: digest of everything that the result depends on.
        pretrain: the training that every student starts from; None = each starts fresh.
    """

    config: Config
    inputs: Inputs
    table: pl.DataFrame
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    weights: NDArray[np.float64]
    oof: NDArray[np.float64]
    jobs: list[FoldJob]
    key: str
    pretrain: PretrainJob | None = None

    @property
    def n_scored(self) -> int:
        return len(self.inputs.labels)

    @property
    def teachers(self) -> list[str]:
        """The members that teach; the one name "stack" where it is their stack."""
        return teacher_names(self.config)


def teacher_names(config: Config) -> list[str]:
    """Return ["stack"], or the members whose targets are kept apart."""
    wanted = config.distill.teachers
    if wanted == "members":
        return list(config.members)
    if wanted != "stack" and wanted not in config.members:
        known = ", ".join(("stack", "members", *config.members))
        raise UserError(f"distill.teachers={wanted!r}; choose one of {known}")
    return [wanted]


def plan_student(config: Config) -> StudentPlan:
    """Return the plan of stage three.

    Raises:
        UserError: no student is configured, a setting does not fit, or an earlier stage is missing or out of date.
    """
    _check_settings(config)
    inputs = load_inputs(config)
    calibrated = load_teacher(config, inputs)
    battles = load_battles(Path(config.run))
    table = pl.concat([inputs.table.select(battles.columns), *_others(battles, config.distill)])
    unlabelled = (table["role"] == "unlabelled").to_numpy()
    labels = np.where(unlabelled, -1, table["label"].fill_null(-1).to_numpy()).astype(np.int64)
    weights = table["weight"].to_numpy() * np.where(unlabelled, config.distill.pseudo_weight, 1.0)
    folds = table["fold"].to_numpy().astype(np.int64)
    names = teacher_names(config)
    oof = np.stack([calibrated if name == "stack" else member_oof(inputs, name) for name in names], axis=1)
    asked = config.distill.teacher != "oof" or table.height > inputs.table.height
    jobs = _finished_jobs(config, battles) if asked else []
    student = config.distill.student
    recipe = to_dict(replace(config.distill, student=replace(student, score_tokens_per_batch=0), variants=[]))
    del recipe["student"]["frozen"]  # it changes nothing but speed
    sources = [[job.step.key for job in jobs], digest(calibrated.round(9)), config.stack if jobs else None]
    data = [texts_key(table), digest(labels, folds, weights, oof.round(9)), sources]
    checkpoint = checkpoint_digest(student.checkpoint)
    first = pretrain_job(config, None)
    parts = [checkpoint, config.prompts, config.seed, data, *([] if first is None else [first.step.key])]
    key = digest("distill", FORMAT, recipe, *parts)
    return StudentPlan(config, inputs, table, labels, folds, weights, oof, jobs, key, first)


def _check_settings(config: Config) -> None:
    distill = config.distill
    if not distill.student.checkpoint:
        raise UserError("distill.student.checkpoint is empty; set a Hugging Face folder or hub name")
    check_frozen("distill.student", distill.student, nproc=1)  # students train in one process each
    losses = distill.losses
    if not losses.ce + losses.kl + losses.cosine + losses.mse:
        raise UserError(
            "distill.losses: ce, kl, cosine and mse are all 0; give one of them a weight, for example kl: 1"
        )
    if losses.consistency and distill.student.train.swap != "paired":
        raise UserError(
            f"distill.losses.consistency compares the two orders of a battle, and distill.student.train.swap="
            f"{distill.student.train.swap} does not train on both in one step; set swap=paired, or consistency=0"
        )
    if distill.teacher == "nested" and config.folds.k < 3:
        raise UserError("distill.teacher=nested trains without two folds at a time; set folds.k to at least 3")
    if distill.final == "fold_average" and distill.student.lora.dora:
        raise UserError("distill.final=fold_average averages plain LoRA products; set lora.dora=false or final=all")
    unknown = [name for name in distill.variants if name not in VARIANTS]
    if unknown:
        raise UserError(f"distill.variants: {unknown[0]!r} is unknown; choose from {', '.join(VARIANTS)}")


def _others(battles: pl.DataFrame, distill: Distill) -> list[pl.DataFrame]:
    """Return the extra battles and, where a soft term can use them, the unlabelled ones."""
    soft = distill.losses.kl + distill.losses.cosine + distill.losses.mse
    roles = ("extra", "unlabelled") if soft and distill.pseudo_weight else ("extra",)
    return [battles.filter(pl.col("role") == role) for role in roles]


def _finished_jobs(config: Config, battles: pl.DataFrame) -> list[FoldJob]:
    jobs = fold_jobs(config, battles)
    for job in jobs:
        if not job.step.done:
            raise UserError(f"{job.folder}: its trained model is needed and missing; run 'make oof' with this RUN")
    return jobs


def texts_key(table: pl.DataFrame) -> str:
    """Return the digest of ids and texts, in the table's order."""
    return digest(*(table[name].to_list() for name in ("id", "prompt", "response_a", "response_b")))


def member_oof(inputs: Inputs, name: str) -> NDArray[np.float64]:
    """Return one member's (n, 3) out-of-fold probabilities, at the temperature of the other folds."""
    mean = inputs.logits[name].astype(np.float64).mean(axis=1)
    return cross_fitted_temperature(mean, inputs.labels, inputs.folds)[0]


def run_distill(config: Config) -> bool:
    """Train and export the student unless it is up to date; return whether anything ran."""
    plan = plan_student(config)
    step = Step(Path(config.run) / "distill", plan.key)
    variants = [Step(step.folder / f"student-{name}", f"{plan.key}/{name}") for name in config.distill.variants]
    if step.done and all(variant.done for variant in variants):
        return False
    from ensemble.distillation.train import train_students

    train_students(plan, step, variants)
    return True


def cross_fitted_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer], folds: NDArray[np.integer]
) -> tuple[NDArray[np.float64], list[float]]:
    """Return (n, 3) probabilities, each fold's at the temperature fitted on the other folds, and those temperatures."""
    probs, temperatures = np.empty((len(labels), 3)), []
    for fold in np.unique(folds):
        temperature = fit_temperature(logits[folds != fold], labels[folds != fold])
        probs[folds == fold] = softmax(logits[folds == fold] / temperature)
        temperatures.append(temperature)
    return probs, temperatures
