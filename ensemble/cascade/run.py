"""Cascade of a run: its levels' out-of-fold predictions, its curve, and the policy for a budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble.cascade.curve import SHOWN_BUDGET, SHOWN_SHARE, Battles, curve
from ensemble.cascade.levels import LevelFunctions, Scored, levels_of
from ensemble.cascade.policy import AB, BA, STUDENT, Levels
from ensemble.cascade.policy_choice import Candidates, unused
from ensemble.cascade.prediction import Cascade
from ensemble.cascade.request import Request
from ensemble.cascade.scores import Output
from ensemble.features.design_matrix import join_logits
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, load_predictions, load_stack
from ensemble.statistics.interval_words import in_words
from oof.classes import class_counts
from oof.common.atomic_files import read_json, read_parquet, verified, write_json
from oof.common.errors import UserError
from oof.config import Config
from oof.jobs.dataset import ONLY_LOGITS

CURVE = "curve.json"


@dataclass(frozen=True)
class CascadeOfRun:
    """The scored battles of a run, with the out-of-fold predictions of every level's work.

    Attributes:
        config: of the run.
        inputs: battles, labels, folds and groups.
        scored: all out-of-fold logits and the stack's probabilities.
        levels: with their measured costs.
    """

    config: Config
    inputs: Inputs
    scored: Scored
    levels: Levels

    def functions(self, rows: NDArray[np.int64]) -> LevelFunctions:
        """Return the levels' functions, fitted on the battles at ``rows``."""
        labels, groups = self.inputs.labels[rows], self.inputs.groups[rows]
        return LevelFunctions.fit(self.levels, self.scored.take(rows), labels, groups, self.config.seed)

    def outputs(self, functions: LevelFunctions) -> list[Output]:
        """Return every level's output for all battles."""
        return [functions.output(name, self.scored) for name in self.levels.names]

    def fitted(self) -> tuple[LevelFunctions, Candidates]:
        """Return the functions and the policies that decide on new battles, fitted on all scored ones."""
        inputs, everything = self.inputs, np.arange(len(self.inputs.labels))
        fit = self.battles().fit
        candidates = Candidates.fit(self.levels, fit, everything, inputs.labels, inputs.groups, self.config.seed)
        return self.functions(everything), candidates

    def battles(self) -> Battles:
        """Return the battles for :func:`ensemble.cascade.curve.curve`."""
        inputs, student = self.inputs, self.levels.names.index(STUDENT)

        def fit(rows: NDArray[np.int64]) -> list[Output]:
            return self.outputs(self.functions(rows))

        return Battles(self.levels, fit, inputs.labels, inputs.folds, inputs.groups, student)


def load_cascade(config: Config) -> CascadeOfRun:
    """Return the cascade of a run whose three stages are done.

    Raises:
        UserError: a stage is missing or out of date, or the run has only logits.
    """
    if config.stack.logits:
        raise UserError(f"{config.run}: {ONLY_LOGITS}; a cascade needs a RUN with a student of its own")
    from ensemble.cascade.measure import costs_of_run

    run, inputs = Path(config.run), load_inputs(config)
    ensemble = load_predictions(config, inputs)["calibrated"]
    path = run / "distill" / "logits.parquet"
    if not path.is_file():
        raise UserError(f"{path}: a cascade needs the student; run 'make distill' with this RUN first")
    frame = read_parquet(verified(path, "manifest.json", "make distill"))
    temperatures = read_json(run / "distill" / "manifest.json")["fold_temperatures"]
    of_battle = np.asarray(temperatures)[np.unique(inputs.folds, return_inverse=True)[1]]
    student = join_logits(inputs.table["id"].to_list(), frame, str(path)).astype(np.float64)
    scored = Scored(student / of_battle[:, None, None], inputs.scaled_logits, ensemble)
    return CascadeOfRun(config, inputs, scored, levels_of(costs_of_run(config)))


def run_cascade(config: Config) -> dict[str, Any]:
    """Write ``RUN/cascade/curve.json`` and return its content."""
    content = curve(load_cascade(config).battles(), config.seed)
    write_json(Path(config.run) / "cascade" / CURVE, content)
    return content


def cascade_at_work(config: Config, request: Request, folder: Path) -> Cascade:
    """Return the prediction of new battles by the cascade of a run; its stages are checked here.

    Raises:
        UserError: as :func:`load_cascade`.
    """
    from ensemble.cascade.work import RunModels
    from oof.jobs.score_test_battles import MIN_BATTLES_FOR_WORKERS

    started = time.monotonic()
    cascade = load_cascade(config)
    if request.seconds is not None and config.predict.cascade.piece >= MIN_BATTLES_FOR_WORKERS:
        side_by_side = min(config.jobs.workers, config.folds.k)  # fold jobs of a member, not the student
        costs = {unit: s if unit in (AB, BA) else s / side_by_side for unit, s in cascade.levels.seconds.items()}
        cascade = replace(cascade, levels=levels_of(costs))
    models = RunModels(config, load_stack(config, cascade.inputs))
    rows = config.predict.chunk if request.seconds is None else config.predict.cascade.piece
    shares = class_counts(cascade.inputs.labels) / len(cascade.inputs.labels)
    return Cascade(request, cascade.levels, cascade.fitted, shares, models, folder, rows, time.monotonic, started)


def print_curve(content: dict[str, Any]) -> None:
    """Print loss against cost, and what of the gain is kept at which cost."""
    console, points = Console(highlight=False), content["policies"]["best"]
    table = Table(title=f"cascade out of fold, {content['n']:,} battles (95 % intervals by groups)")
    for column in ("", "cost", "log loss", "accuracy", "random"):
        table.add_column(column, justify="right" if column else "left")
    random = {point["budget"]: point for point in content["policies"]["random"]}
    ends = content["ends"]
    table.add_row("student alone", *_cells(ends["student"]), "")
    for point in points:
        by_chance = f"{random[point['budget']]['log_loss']['value']:.4f}" if point["budget"] in random else ""
        table.add_row(f"budget {point['budget']:.2f}", *_cells(point), by_chance)
    table.add_row("ensemble alone", *_cells(ends["ensemble"]), "")
    console.print(table)
    levels = ", ".join(f"{level['name']} {level['cost_share']:.3f}" for level in content["levels"])
    console.print(f"cost of each level alone, in ensembles: {levels}", markup=False)
    console.print(f"student - ensemble: {in_words(content['gain'])}", markup=False)
    by_budget = {point["budget"]: unused(point["cost"], point["budget"]) for point in points}
    if left := by_budget.get(SHOWN_BUDGET) or by_budget[max(by_budget)]:
        console.print(left, markup=False)
    for name, kept in content["gain_kept"].items():
        if kept["share"] is None:
            console.print("no gain of the ensemble over the student is established, so no share of it is given")
            break
        cost = "no cost below 1" if kept["cost_of_95"] is None else f"cost {kept['cost_of_95']:.2f}"
        share = in_words(kept["share"], ".2f")
        console.print(f"{name}: {share} of it at {SHOWN_BUDGET:.2f}; {SHOWN_SHARE:.0%} at {cost}", markup=False)


def _cells(point: dict[str, Any]) -> list[str]:
    loss, accuracy = in_words(point["log_loss"], ".4f"), f"{point['accuracy']['value']:.3f}"
    return [f"{point['cost']:.3f}", loss, accuracy]
