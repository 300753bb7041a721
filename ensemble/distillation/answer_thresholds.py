"""Thresholds of abstention beside the exported student, from the fold students' held-out predictions, and their card.

They are made without training, also for a student that was finished by an older version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.abstention.observed import Observed, answered_interval
from ensemble.abstention.stored import ABSTENTION, Abstention
from ensemble.abstention.thresholds import DELTA, calibrate
from ensemble.abstention.training_ranges import TrainingRanges
from ensemble.distillation.card_section import write_section
from ensemble.distillation.hub import CARD
from ensemble.distillation.plan import StudentPlan
from ensemble.stacking.stage import read_predictions
from oof.common.atomic_files import read_parquet
from oof.common.logits_format import COUNT_COLUMNS
from oof.common.steps import Step

SHOWN = (0.05, 0.10, 0.20, 0.30)  # levels in the card
HEADING = "## Abstention"


def store_abstention(plan: StudentPlan, folder: Path, probs: NDArray[np.float64]) -> None:
    """Write ``abstention.json`` into the exported student's folder, and its section into the model card.

    Args:
        plan: n scored battles.
        folder: of stage three.
        probs: (n, 3) calibrated probabilities, each battle's by the student that did not see its fold.
    """
    inputs, student = plan.inputs, folder / "student"
    thresholds = calibrate(probs, inputs.labels, inputs.groups, plan.config.seed)
    abstention = Abstention(thresholds, TrainingRanges.of(inputs.table, *_token_counts(plan, folder)))
    abstention.write(student)
    write_section(student / CARD, HEADING, _section(plan, probs, abstention))


def add_abstention(plan: StudentPlan, step: Step) -> bool:
    """Store the abstention of a finished student that has none, and of its variants; return whether it had none."""
    folder, student = step.folder, step.folder / "student"
    manifest, names = step.manifest(), [f"student/{name}" for name in (ABSTENTION, CARD)]
    added = manifest is not None and not set(names) <= manifest["files"].keys()
    if added:
        probs = read_predictions(folder / "predictions.parquet", plan.inputs.table["id"])["student"]
        with step.amended(names):
            store_abstention(plan, folder, probs)
    for variant in folder.glob("student-*"):
        if (variant / CARD).is_file() and not (variant / ABSTENTION).is_file():
            shutil.copy2(student / ABSTENTION, variant / ABSTENTION)
    return added


def _token_counts(plan: StudentPlan, folder: Path) -> list[NDArray[np.int64]]:
    """Return (n, 3) tokens of each battle's texts before and after truncation; nothing of students without counts."""
    frames = [read_parquet(folder / f"fold-{fold}" / "logits.parquet") for fold in range(plan.config.folds.k)]
    if not all(set(COUNT_COLUMNS) <= set(frame.columns) for frame in frames):
        return []
    counts = pl.concat([frame.select("id", *COUNT_COLUMNS) for frame in frames])
    joined = pl.DataFrame({"id": plan.inputs.table["id"]}).join(counts, on="id", how="left", maintain_order="left")
    return np.split(joined.select(COUNT_COLUMNS).to_numpy().astype(np.int64), 2, axis=1)


def _section(plan: StudentPlan, probs: NDArray[np.float64], abstention: Abstention) -> str:
    inputs, thresholds = plan.inputs, abstention.thresholds
    observed = Observed.of(probs, inputs.labels, inputs.groups)
    rows = []
    for level in SHOWN:
        chosen, naive = thresholds.at(level), observed.naive_threshold(level)
        interval = answered_interval(probs, inputs.groups, chosen, plan.config.seed)
        bounds = "" if interval["low"] is None else f" [{interval['low']:.1%}, {interval['high']:.1%}]"
        share, error = observed.at(chosen)
        ours = "none | 0 % | -" if chosen is None else f"{chosen:.3f} | {share:.1%}{bounds} | {error:.1%}"
        share, error = observed.at(naive)
        rows.append(f"| {level:.0%} | {ours} | " + ("0 % | - |" if naive is None else f"{share:.1%} | {error:.1%} |"))
    table = "\n".join(rows)
    return f"""
`judge.compare(..., max_error=0.2)` answers only where the verdict's probability reaches a threshold. The guarantee,
with probability {1 - DELTA:.0%} over the {thresholds.groups} groups of these battles: take a random group of
near-duplicate prompts like those of training and a random battle of it; if it is answered, its verdict is wrong with at
most the probability asked for. A verdict is wrong where the person's was another one, ties included. With "none"
nothing is answered. The thresholds come from exact binomial tests of one battle per group in a fixed sequence
(`abstention.json`).

| wrong at most | threshold | answered | wrong, of the answered | naive: answered | naive: wrong |
|---|---|---|---|---|---|
{table}

Out of fold, groups counted equally, with a 95 % interval. The naive threshold is the smallest whose error rate on these
very battles is at most the level; it promises nothing. The scores are those of the fold students: for these weights the
guarantee is approximate. For other prompts, languages or lengths than in training nothing is promised."""
