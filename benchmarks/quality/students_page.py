"""Table of ``benchmarks.quality.students``: settings beside the plain student, the ensemble and the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.quality.choice_page import Outcome
from benchmarks.quality.students_runs import plan_of, student_probs, students_step
from benchmarks.quality.students_settings import ARENA, FROM_MEMBER, HARD, PLAIN, Part
from benchmarks.quality.vote_noise import lowest_loss
from ensemble.evaluation.run_table import true_probabilities
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, read_predictions
from ensemble.statistics.bootstrap import Interval, group_interval
from ensemble.statistics.interval_words import below_zero, in_words
from ensemble.statistics.resamples import Resamples, percentiles
from ensemble.statistics.standard_errors import effective_groups, half_width, jackknife_error
from oof.common.atomic_files import read_json, read_parquet
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS
from oof.data.verdicts import VOTE_COLUMNS
from oof.metrics import row_log_loss

ENSEMBLE = ("prior", "length_only", "text", "mean", "stack", "calibrated")  # rows of stage two beside the members
MOST_BEHIND = 0.03  # nats that the student of real battles may lose
GROUPS_OF_A_PART = 10_000_000  # more than a part has, so that parts share no group


@dataclass(frozen=True)
class Measured:
    """What is finished of a part.

    Attributes:
        part: of the benchmark.
        losses: name -> (n,) losses out of fold, with the battles' "groups".
        floor: (n,) lowest possible losses, NaN where they are not known.
        minutes: setting -> minutes of training its fold students.
        cut: (n,) whether the members read less than the whole battle.
    """

    part: Part
    losses: dict[str, NDArray[np.float64]]
    floor: NDArray[np.float64]
    minutes: dict[str, float]
    cut: NDArray[np.bool_]


def measured(part: Part) -> Measured | None:
    """Return what is finished of a part; None before its stage two is."""
    config = part.config
    run = Path(config.run)
    try:
        inputs = load_inputs(config)
        stage_two = read_predictions(run / "stack" / "predictions.parquet", inputs.table["id"])
    except UserError:
        return None
    probs = {name: p for name, p in stage_two.items() if name in ENSEMBLE or name.startswith("member:")}
    minutes = {}
    for name, changes in part.settings.items():
        plan = plan_of([str(part.path), *part.overrides, *changes])
        step = students_step(plan)
        if step.done:
            probs[name] = student_probs(plan)
            seconds = [read_json(path)["seconds"] for path in step.folder.glob("fold-*/job.json")]
            minutes[name] = sum(seconds) / 60
    losses = {name: row_log_loss(p, inputs.labels) for name, p in probs.items()}
    losses["groups"] = inputs.groups + part.seed * GROUPS_OF_A_PART
    cut = cut_battles(run, next(iter(config.members)), inputs.table["id"])
    return Measured(part, losses, floor_of(part, inputs), minutes, cut)


def floor_of(part: Part, inputs: Inputs) -> NDArray[np.float64]:
    """Return the (n,) lowest possible losses; NaN for a battle of unknown probabilities that has not several votes."""
    ids = inputs.table["id"]
    truth = true_probabilities(Path(part.config.run), ids)
    if truth is not None:
        return row_log_loss(truth, inputs.labels)
    if part.votes is None:
        return np.full(len(ids), np.nan)
    votes = pl.read_csv(part.votes, schema_overrides={"id": pl.String})
    counts = pl.DataFrame({"id": ids}).join(votes, on="id", how="left", maintain_order="left")
    numbers = counts.select(pl.col(VOTE_COLUMNS).fill_null(0)).to_numpy()
    several = numbers.sum(axis=1) > 1
    return np.where(several, lowest_loss(numbers[several]), np.nan)


def cut_battles(run: Path, member: str, ids: pl.Series) -> NDArray[np.bool_]:
    """Return (n,) whether a member read less than the whole of each of n battles."""
    frame = read_parquet(run / "oof" / member / "logits.parquet").select("id", *COUNT_COLUMNS)
    of_ids = pl.DataFrame({"id": ids}).join(frame, on="id", how="left", maintain_order="left", validate="1:1")
    counts = of_ids.select(COUNT_COLUMNS).to_numpy()
    return np.asarray((counts[:, :3] > counts[:, 3:]).any(axis=1))


def section(name: str, parts: Sequence[Measured]) -> list[str]:
    """Return a section of the page: what was measured on which battles, the table, and what is missing."""
    outcome = Outcome(name, [part.losses for part in parts])
    rows = list(dict.fromkeys(row for part in parts for row in part.losses if row != "groups"))
    best = min((row for row in rows if row.startswith("member:")), key=outcome.mean)
    head = ["student", "log loss", "minus plain", "minus calibrated", f"minus {best}", "above the floor", "minutes"]
    lines = [f"## {name[0].upper()}{name[1:]}", "", _battles(parts), "", f"| {' | '.join(head)} |"]
    lines.append("|---" * len(head) + "|")
    for row in rows:
        differences = [
            in_words(outcome.difference(row, other)) if other != row and _both(parts, row, other) else ""
            for other in (PLAIN, "calibrated", best)
        ]
        of_row = [part for part in parts if row in part.losses]
        of_all = "" if len(of_row) == len(parts) else f" ({len(of_row)} of {len(parts)} seeds)"
        minutes = sum(part.minutes.get(row, 0.0) for part in of_row)
        cells = [f"{row}{of_all}", f"{outcome.mean(row):.4f}", *differences, above_floor(of_row, row)]
        lines.append(f"| {' | '.join([*cells, f'{minutes:.1f}' if minutes else ''])} |")
    if parts[0].part.section != ARENA:
        lines += ["", *claims(outcome, parts, best), "", *what_remains(outcome, parts[0], best)]
    if missing := [setting for setting in parts[0].part.settings if setting not in rows]:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    return lines


def claims(outcome: Outcome, parts: Sequence[Measured], best: str) -> list[str]:
    """Return the table of what is claimed of the stack and of the default student, each with its verdict."""
    wanted = [("calibrated", other, 0.0) for other in (best, "text")]
    wanted += [(FROM_MEMBER, other, 0.0) for other in (best, HARD, "text")]
    wanted.append((FROM_MEMBER, "calibrated", MOST_BEHIND))
    lines = ["| claim | holds |", "|---|---|"]
    for one, other, limit in wanted:
        words = "not measured"
        if _both(parts, one, other):
            interval = outcome.difference(one, other)
            holds = (interval["value"] or 0.0) <= limit if limit else below_zero(interval)
            words = in_words(interval)
            words = words if "groups" in interval else f"{'yes' if holds else '**no**'}: {words}"
        claim = f"at most {limit} behind" if limit else "better, interval below 0"
        lines.append(f"| {one} beside {other}: {claim} | {words} |")
    return lines


def what_remains(outcome: Outcome, part: Measured, best: str) -> list[str]:
    """Return sentences: which settings help, what is left beside the stack, on which battles, and what is kept."""
    losses = part.losses
    students = [name for name in part.part.settings if {name, PLAIN, "calibrated"} <= losses.keys()]
    if not students:
        return []
    helping = [name for name in students if name != PLAIN and below_zero(outcome.difference(name, PLAIN))]
    nearest = min(students, key=outcome.mean)
    left = in_words(outcome.difference(nearest, "calibrated"))
    lines = [f"Better than the plain student, interval below 0: {', '.join(helping) or 'none'}. Nearest to calibrated"]
    lines.append(f"is *{nearest}*; it leaves {left}.")
    if FROM_MEMBER in students and 0 < part.cut.sum() < len(part.cut):
        behind, sides = losses[FROM_MEMBER] - losses["calibrated"], []
        for rows, words in ((~part.cut, "were read whole"), (part.cut, "were cut")):
            interval = in_words(group_interval(behind[rows], losses["groups"][rows], 0))
            sides.append(f"{interval} on the {rows.sum():,} battles that {words}")
        lines.append(f"*{FROM_MEMBER}* beside calibrated: {sides[0]}, {sides[1]}.")
    if FROM_MEMBER in students and below_zero(outcome.difference("calibrated", best)):
        kept = in_words(share_kept(losses, best), ".2f")
        members, k = len(part.part.config.members), part.part.config.folds.k
        lines.append(f"It keeps {kept} of what calibrated gains on {best}. A new battle costs it one model, and")
        lines.append(f"calibrated {members * k}: {members} members with {k} fold jobs each.")
    return ["\n".join(lines)]


def share_kept(losses: dict[str, NDArray[np.float64]], best: str) -> Interval:
    """Return the share of calibrated's gain on the best member that the default student keeps, with its interval."""
    groups = losses["groups"].astype(np.int64)
    resampled = Resamples.draw(groups, 0)
    kept = resampled.sums(losses[best] - losses[FROM_MEMBER]) / resampled.sums(losses[best] - losses["calibrated"])
    value = float(kept[0])
    if resampled.few:
        half = half_width(jackknife_error(kept[1:], value), effective_groups(np.unique(groups, return_counts=True)[1]))
        return {"value": value, "low": value - half, "high": value + half}
    low, high = percentiles(kept[1:])
    return {"value": value, "low": low, "high": high}


def _both(parts: Sequence[Measured], row: str, other: str) -> bool:
    return any(row in part.losses and other in part.losses for part in parts)


def above_floor(parts: Sequence[Measured], row: str) -> str:
    """Return the mean distance from the lowest possible loss of the battles whose floor is known; "" without any."""
    distances = np.concatenate([part.losses[row] - part.floor for part in parts])
    return "" if np.isnan(distances).all() else f"{np.nanmean(distances):+.4f}"


def _battles(parts: Sequence[Measured]) -> str:
    """Return a sentence about the battles of a section, with the noise floor and the share that was cut."""
    groups = np.concatenate([part.losses["groups"] for part in parts])
    floor = np.concatenate([part.floor for part in parts])
    config, cut = parts[0].part.config, parts[0].cut.mean()
    epochs, known = config.distill.student.train.epochs, ~np.isnan(floor)
    seeds = f" of {len(parts)} seeds" if len(parts) > 1 else ""
    words = (
        f"{len(groups):,} battles in {len(np.unique(groups)):,} groups{seeds}; epochs of the plain student: {epochs:g}"
    )
    words += f"; texts of at most {config.prompts.max_tokens} tokens, which cut {cut:.0%} of the battles. "
    if not known.any():
        return words + "The floor is not known: there are no votes on these battles."
    which = "all battles" if known.all() else f"the {known.sum():,} battles with several votes"
    return words + f"Floor: a log loss of {floor[known].mean():.4f} on {which}."
