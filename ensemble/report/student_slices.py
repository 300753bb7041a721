"""Student against ensemble by slice of the battles, with the part of the loss that each slice has.

Both sets of predictions are out of fold, on the same battles. The loss of a slice is the student's log loss minus that
of ``calibrated``; its *part* is that times the slice's share of the battles. So the parts of a family that covers all
battles add up to the loss on all of them, and a part of 0.01 is what perfect agreement with the ensemble on that slice
would bring. Intervals are per slice (95 % each, by groups), not simultaneous.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble.report.run_data import tokens_read
from ensemble.report.slices import LEAST, Slice, battle_properties, slices_of
from ensemble.stacking.stage import load_inputs, read_predictions
from ensemble.statistics.bootstrap import group_interval
from oof.common.atomic_files import verified
from oof.common.errors import UserError
from oof.config import Config
from oof.metrics import Integers, row_log_loss

MUCH = 0.75  # of its texts' tokens that a student reads at least, in the slice of battles that are cut a little


def student_slices(config: Config) -> dict[str, Any]:
    """Return the content of ``student_slices.json`` for a run with a finished student.

    Raises:
        UserError: the student or stage two is missing, or a file is damaged.
    """
    run = Path(config.run)
    inputs = load_inputs(config)
    ids, labels = inputs.table["id"], inputs.labels
    path = run / "distill" / "predictions.parquet"
    if not path.is_file():
        raise UserError(f"{path}: the student is missing; run 'make distill' with this RUN first")
    student = read_predictions(verified(path, "manifest.json", "make distill"), ids)["student"]
    calibrated = read_predictions(run / "stack" / "predictions.parquet", ids)["calibrated"]
    losses = row_log_loss(student, labels), row_log_loss(calibrated, labels)
    slices = [Slice("all", "all battles", np.ones(len(labels), dtype=np.bool_)), *_truncation(run, config.folds.k, ids)]
    slices += slices_of(battle_properties(inputs.table), labels)
    rows = [slice_row(part, *losses, inputs.groups, config.seed) for part in slices]
    return {"overall": rows[0], "slices": sorted(rows[1:], key=lambda row: -float(row["part"]))}


def slice_row(
    part: Slice, student: NDArray[np.float64], ensemble: NDArray[np.float64], groups: Integers, seed: int
) -> dict[str, Any]:
    """Return the row of a slice from (n,) losses of student and ensemble and (n,) groups of all battles."""
    at = part.flags
    difference = (student - ensemble)[at]
    return {
        "family": part.family,
        "slice": part.name,
        "n": int(at.sum()),
        "share": float(at.mean()),
        "student": float(student[at].mean()),
        "ensemble": float(ensemble[at].mean()),
        "difference": group_interval(difference, groups[at], seed),
        "part": float(difference.sum() / len(at)),
    }


def _truncation(run: Path, k: int, ids: pl.Series) -> list[Slice]:
    """Return slices by the share of each battle's tokens that the student read; none of students without counts."""
    counts = tokens_read([run / "distill" / f"fold-{fold}" / "logits.parquet" for fold in range(k)], ids)
    if counts is None:
        return []
    share = counts[:, 3:].sum(axis=1) / np.maximum(counts[:, :3].sum(axis=1), 1)
    slices = [
        Slice("read by the student", "whole", share >= 1),
        Slice("read by the student", f"{MUCH:.0%} and more", (share < 1) & (share >= MUCH)),
        Slice("read by the student", f"under {MUCH:.0%}", share < MUCH),
    ]
    return [part for part in slices if part.flags.sum() >= LEAST and not part.flags.all()]


def print_slices(content: dict[str, Any]) -> None:
    """Print the content of ``student_slices.json`` as a table of 80 columns, the largest part first."""
    table = Table(title="student minus ensemble: log loss out of fold (95 % intervals by groups)")
    for column in ("slice", "battles", "student", "minus", "low", "high", "part"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for row in (content["overall"], *content["slices"]):
        name = row["slice"] if row["family"] == "all" else f"{row['family']}: {row['slice']}"
        bounds = ("" if row["difference"][key] is None else f"{row['difference'][key]:+.4f}" for key in ("low", "high"))
        numbers = f"{row['student']:.4f}", f"{row['difference']['value']:+.4f}", *bounds, f"{row['part']:+.4f}"
        table.add_row(name, f"{row['n']:,}", *numbers)
    console = Console(highlight=False)
    console.print(table)
    console.print("part: what agreement with the ensemble on this slice alone would bring")
