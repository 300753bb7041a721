"""Plan of stage three: the students' battles, labels, weights and content key. Imports no torch.

K fold students, each trained without its fold, give the reported score and the temperature. The final student is
trained on every battle, or is the average of the fold students' weights. A fold student never sees its fold's labels or
texts; ``distill.teacher`` chooses whether its *targets* come from models that did (see
:mod:`ensemble.distillation.targets`). :mod:`ensemble.distillation.stage` carries out the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.pseudo_labels import loss_weights, unscored_battles
from ensemble.distillation.start import start_jobs, start_pretraining
from ensemble.distillation.text_digests import texts_key
from ensemble.stacking.calibration import shrunk_temperature
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, load_predictions
from oof.common.digests import checkpoint_digest, digest
from oof.common.errors import UserError
from oof.config import Config, Distill, StudentPrompts, without_speed_settings
from oof.data.schemas import SOFT_COLUMNS
from oof.jobs.commits import with_recorded_commits
from oof.jobs.dataset import FORMAT, ONLY_LOGITS, load_battles
from oof.jobs.first_weights import first_weights
from oof.jobs.fold_job import FoldJob, check_frozen, fold_jobs
from oof.jobs.pretrain import PretrainJob
from oof.metrics import mean_of_orders, softmax

FINAL = -1  # in place of a fold number: the student that is exported
VARIANTS = ("int8", "nf4")


@dataclass(frozen=True)
class StudentPlan:
    """Everything that training the students reads.

    Attributes:
        config: the run's configuration.
        inputs: the scored battles and the members' out-of-fold logits.
        table: (n) battles to train on: the scored ones in the order of ``inputs``, then extra, then unlabelled ones.
        labels: (n,) classes, -1 for a battle without a label.
        folds: (n,) folds, -1 for a battle that no fold holds out.
        weights: (n,) loss weights.
        teacher_probs: (n_scored, t, 3) calibrated out-of-fold probabilities of each of the t teachers.
        jobs: the members' fold jobs, where battles besides the scored ones need targets; else empty.
        key: digest of everything that the students depend on.
        pretrain: the pretraining that every student starts from, its own or a member's; None = a fresh head and fresh
            adapters.
        start: the fold jobs, one per fold, that the students start from instead; none from the base.
        depends: digest of each thing that the students depend on; the manifest keeps them to name what changed.
    """

    config: Config
    inputs: Inputs
    table: pl.DataFrame
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    weights: NDArray[np.float64]
    teacher_probs: NDArray[np.float64]
    jobs: list[FoldJob]
    key: str
    pretrain: PretrainJob | None = None
    start: list[FoldJob] = field(default_factory=list)
    depends: dict[str, str] = field(default_factory=dict)

    @property
    def n_scored(self) -> int:
        return len(self.inputs.labels)

    @property
    def extra_folds(self) -> NDArray[np.int64]:
        """(n,) folds of the extra battles; -1 for all others, and for an extra battle that no fold holds out."""
        return np.where((self.table["role"] == "extra").to_numpy(), self.folds, -1)

    @property
    def pseudo_labelled(self) -> NDArray[np.int64]:
        """Positions of the unlabelled battles that students train on."""
        return np.flatnonzero((self.table["role"] == "unlabelled").to_numpy() & (self.weights > 0))

    def texts_key(self, rows: NDArray[np.integer]) -> str:
        """Return :func:`texts_key` of the battles at ``rows``; it reads all their texts, so each is computed once."""
        key = digest(rows)
        if key not in self._texts_keys:
            self._texts_keys[key] = texts_key(self.table[rows])
        return self._texts_keys[key]

    @cached_property
    def _texts_keys(self) -> dict[str, str]:
        return {}

    @property
    def teachers(self) -> list[str]:
        """The teachers' names: members, or the one name "stack" for the calibrated ensemble."""
        return teacher_names(self.config)


def teacher_names(config: Config) -> list[str]:
    """Return ["stack"] for the calibrated ensemble, or the members that are separate teachers.

    Raises:
        UserError: ``distill.teachers`` is no choice.
    """
    teachers = config.distill.teachers
    if teachers == "members":
        return list(config.members)
    if teachers != "stack" and teachers not in config.members:
        choices = ", ".join(("stack", "members", *config.members))
        raise UserError(f"distill.teachers={teachers!r}; choose one of {choices}")
    return [teachers]


def plan_student(config: Config) -> StudentPlan:
    """Return the plan of stage three.

    Raises:
        UserError: no student is configured, settings conflict, or an earlier stage is missing or out of date.
    """
    _check_settings(config)
    inputs = load_inputs(config)
    ensemble_probs = load_predictions(config, inputs)["teacher"]
    config = with_recorded_commits(config)
    battles = load_battles(Path(config.run))
    table = pl.concat([inputs.table.select(battles.columns), *unscored_battles(battles, config.distill)])
    unlabelled = (table["role"] == "unlabelled").to_numpy()
    labels = np.where(unlabelled, -1, table["label"].fill_null(-1).to_numpy()).astype(np.int64)
    weights = loss_weights(table, config)
    folds = table["fold"].to_numpy().astype(np.int64)
    teachers = [ensemble_probs if name == "stack" else member_probs(inputs, name) for name in teacher_names(config)]
    teacher_probs = np.stack(teachers, axis=1)
    needs_jobs = config.distill.teacher != "oof" or table.height > inputs.table.height
    first = first_weights(config)
    remedy = "run 'make oof' with this RUN" + ("" if needs_jobs else ", or set distill.start=base")
    finished = finished_jobs(config, battles, remedy) if needs_jobs or first == "member" else []
    jobs, start = finished if needs_jobs else [], start_jobs(config, finished)
    # The base, where all students of older versions started, adds nothing to the key.
    named = Distill.start if first == "base" else first
    recipe = without_speed_settings(replace(config.distill, start=named, variants=[], prompts=StudentPrompts()))
    prompts = without_speed_settings(config.for_student().prompts)
    stack_settings = without_speed_settings(config.stack) if jobs else None
    sources = [[job.step.key for job in jobs], digest(ensemble_probs.round(9)), stack_settings]
    data: list[object] = [texts_key(table), digest(labels, folds, weights, teacher_probs.round(9)), sources]
    data += [digest(table.select(SOFT_COLUMNS).rows())] if SOFT_COLUMNS[0] in table.columns else []
    data += _rules_since_older_runs(config.distill, table)
    checkpoint = checkpoint_digest(config.distill.student.checkpoint)
    pretrain = None if start else start_pretraining(config)  # the member has its own
    start_key = [["start", *(job.step.key for job in start)]] if start else []
    pretrain_key = [] if pretrain is None else [pretrain.step.key]
    key = digest("distill", FORMAT, recipe, checkpoint, prompts, config.seed, data, *(pretrain_key or start_key))
    parts = {"checkpoint": checkpoint, "seed": config.seed, "battles": data[0], "fold jobs": sources[0]}
    parts |= {"verdicts, folds and weights": digest(labels, folds, weights), "pretrain": pretrain_key}
    parts |= {"the member's fold jobs": start_key} if start else {}
    parts |= {"the stack's probabilities": [digest(teacher_probs.round(9)), *sources[1:]]}
    depends = {name: digest(value)[:16] for name, value in (_settings(config, recipe) | parts).items()}
    return StudentPlan(
        config, inputs, table, labels, folds, weights, teacher_probs, jobs, key, pretrain, start, depends
    )


def _rules_since_older_runs(distill: Distill, table: pl.DataFrame) -> list[str]:
    """Return the rules by which these students are trained and those of older versions were not."""
    extra, unlabelled = ((table["role"] == role).to_numpy() for role in ("extra", "unlabelled"))
    held_out, unscored = extra & (table["fold"] >= 0).to_numpy(), extra | unlabelled
    nested, stack = distill.teacher == "nested", distill.teachers == "stack"
    rules = {
        # Before, nested teachers of these battles were fold jobs that had trained on them.
        "nested jobs score extra battles": nested and held_out.any(),
        # Before, these temperatures came from logits of members that had seen the student's fold.
        "temperatures of nested jobs": nested and not stack and (unscored & ~held_out).any(),
        "fold-matched teachers have no temperature": distill.teacher == "fold_matched" and unscored.any(),
        # Before, it was the mean over all terms, of which such a battle lacks one.
        "the loss of a battle without a label is the mean of its terms": distill.losses.ce > 0 and unlabelled.any(),
    }
    return [rule for rule, applies in rules.items() if applies]


def _settings(config: Config, recipe: dict[str, Any]) -> dict[str, object]:
    """Return the settings that the students depend on, by their names in messages."""
    settings = {f"distill.{name}": value for name, value in recipe.items() if name != "student"}
    settings |= {f"distill.student.{name}": value for name, value in recipe["student"].items()}
    own = without_speed_settings(config.distill.prompts)
    settings |= {f"distill.prompts.{name}": value for name, value in own.items()}
    return settings | {"prompts": without_speed_settings(config.prompts)}


def _check_settings(config: Config) -> None:
    distill = config.distill
    if config.stack.logits:
        raise UserError(f"{config.run}: {ONLY_LOGITS}; a student needs a RUN of your own fold jobs")
    if not distill.student.checkpoint:
        raise UserError("distill.student.checkpoint is empty; set a Hugging Face folder or hub name")
    check_frozen("distill.student", distill.student, nproc=1)  # each student trains in one process
    if distill.student.score_quantise != "same":
        raise UserError(
            f"distill.student.score_quantise={distill.student.score_quantise}: a student is scored as it is exported; "
            f"set distill.variants=[{distill.student.score_quantise}] for a quantised copy with its measured drift"
        )
    losses = distill.losses
    if not losses.ce + losses.soft:
        raise UserError(
            "distill.losses: ce, kl, cosine and mse are all 0; give one of them a weight, for example kl: 1"
        )
    if distill.teacher == "nested" and config.folds.k < 3:
        raise UserError("distill.teacher=nested trains members without two of the folds; set folds.k to at least 3")
    averages = {"final=fold_average": distill.final == "fold_average", "start=member": distill.start == "member"}
    averages |= {f"seeds={distill.seeds}": distill.seeds > 1}
    if distill.student.lora.dora and any(averages.values()):
        setting = next(f"distill.{name}" for name, is_set in averages.items() if is_set)
        raise UserError(
            f"{setting} averages plain LoRA products; set distill.student.lora.dora=false, or do without {setting}"
        )
    unknown = [name for name in distill.variants if name not in VARIANTS]
    if unknown:
        raise UserError(f"distill.variants: {unknown[0]!r} is unknown; choose from {', '.join(VARIANTS)}")


def finished_jobs(config: Config, battles: pl.DataFrame, remedy: str) -> list[FoldJob]:
    """Return the run's fold jobs.

    Raises:
        UserError: one is not finished; the message ends with the ``remedy``.
    """
    jobs = fold_jobs(config, battles)
    for job in jobs:
        if not job.step.done:
            raise UserError(f"{job.folder}: this fold job's trained model is missing; {remedy}")
    return jobs


def member_probs(inputs: Inputs, name: str) -> NDArray[np.float64]:
    """Return a member's (n_scored, 3) out-of-fold probabilities, calibrated by a cross-fitted temperature."""
    logits = mean_of_orders(inputs.logits[name])
    return cross_fitted_temperature(logits, inputs.labels, inputs.folds, inputs.groups)[0]


def cross_fitted_temperature(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    folds: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> tuple[NDArray[np.float64], list[float]]:
    """Calibrate each fold by the shrunk temperature of the other folds.

    Args:
        logits: (n, 3) out-of-fold logits.
        labels: (n,) classes.
        folds: (n,) fold numbers.
        groups: (n,) battles that are not independent of each other.

    Returns:
        (n, 3) probabilities, and one temperature per fold in ascending order of folds.
    """
    probs, temperatures = np.empty((len(labels), 3)), []
    for fold in np.unique(folds):
        rest = folds != fold
        temperature = shrunk_temperature(logits[rest], labels[rest], groups[rest])
        probs[folds == fold] = softmax(logits[folds == fold] / temperature)
        temperatures.append(temperature)
    return probs, temperatures
