"""Table of a run: log loss of every predictor with 95 % intervals by groups, and paired differences.

All predictions are out of fold. A member's are the softmax of the mean of both orders' logits, uncalibrated.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble.stacking.selection import ROWS as COMBINERS
from ensemble.stacking.stage import load_inputs, load_predictions, read_predictions
from ensemble.statistics.bootstrap import Interval, group_interval
from ensemble.statistics.interval_words import in_words
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, verified
from oof.common.errors import UserError
from oof.config import Config
from oof.metrics import row_log_loss

ROWS = ("prior", "length_only", "text", "mean", *(f"combiner:{kind}" for kind in COMBINERS), "stack", "calibrated")
BEFORE_MEMBERS = 3  # rows that no base model has a part in
MEMBER = "stage one, uncalibrated"
MEANINGS = {
    "prior": "shares of the classes",
    "length_only": "lengths alone",
    "text": "TF-IDF of the texts",
    "mean": "mean of the members",
    **{f"combiner:{kind}": "candidate of the stack" for kind in COMBINERS},
    "stack": "stage two, uncalibrated",
    "calibrated": "stage two, calibrated",
    "student": "stage three, distilled",
    "bayes": "best possible loss",
}


def compute_metrics(config: Config) -> dict[str, Any]:
    """Return the content of ``metrics.json`` for a run whose three stages are done, or stage two of ``stack.logits``.

    Raises:
        UserError: a stage is missing.
    """
    run = Path(config.run)
    inputs = load_inputs(config)
    ids, labels = inputs.table["id"], inputs.labels
    probs = load_predictions(config, inputs)
    if not config.stack.logits:  # logits that were made elsewhere have no student
        student = run / "distill" / "predictions.parquet"
        if not student.is_file():
            raise UserError(f"{student}: the student is missing; run 'make distill' with this RUN first")
        probs |= read_predictions(verified(student, "manifest.json", "make distill"), ids)
    truth = true_probabilities(run, ids)
    if truth is not None:
        probs["bayes"] = truth  # its loss is the best possible
    losses = {name: row_log_loss(p, labels) for name, p in probs.items()}

    def interval(values: NDArray[np.floating]) -> Interval:
        return group_interval(values, inputs.groups, seed=config.seed)

    members = {name: interval(losses[f"member:{name}"]) for name in inputs.logits}
    table: dict[str, Any] = {name: interval(losses[name]) for name in ROWS if name in losses} | {"members": members}
    if "student" in losses:
        table["student"] = interval(losses["student"])
    if truth is not None:
        table["bayes"] = interval(losses["bayes"])
    best = min(members, key=lambda name: float(losses[f"member:{name}"].mean()))
    differences = {
        "calibrated_minus_best_member": losses["calibrated"] - losses[f"member:{best}"],
        "stack_minus_lightgbm": losses["stack"] - losses["combiner:lightgbm"],
    }
    if "student" in losses:
        differences["student_minus_calibrated"] = losses["student"] - losses["calibrated"]
    if "text" in losses:
        differences["calibrated_minus_text"] = losses["calibrated"] - losses["text"]
    paired = {name: interval(values) for name, values in differences.items()}
    values = {name: row["value"] for name, row in table_rows(table).items() if name != "bayes"}
    rows = {name: math.inf if value is None else value for name, value in values.items()}
    return {
        "n": len(labels), "best": min(rows, key=rows.__getitem__), "best_member": best,
        "log_loss": table, "paired": paired,
    }  # fmt: skip


def table_rows(losses: dict[str, Any]) -> dict[str, Interval]:
    """Return the rows of the table in its order: name of a predictor or a member -> its loss with interval."""
    members: dict[str, Interval] = losses["members"]
    order = [*ROWS[:BEFORE_MEMBERS], *members, *ROWS[BEFORE_MEMBERS:], "student", "bayes"]
    return {name: members.get(name) or losses[name] for name in order if name in members or name in losses}


def true_probabilities(run: Path, ids: pl.Series) -> NDArray[np.float64] | None:
    """Return the (n, 3) true probabilities of synthetic battles; None unless the run has them for every battle."""
    manifest = run / "battles.json"  # stage one's; a run of stack.logits has none
    path = read_json(manifest).get("truth") if manifest.is_file() else None
    if path and not Path(path).is_file():
        path = run / "synth" / Path(path).name  # the run folder was moved or copied
    if not path or not Path(path).is_file():
        return None
    frame = pl.read_csv(path, glob=False, schema_overrides={"id": pl.String})
    joined = pl.DataFrame({"id": ids}).join(frame, on="id", how="left", maintain_order="left")
    probs = joined.select(WINNER_COLUMNS).to_numpy()
    return probs if len(probs) == len(ids) and np.isfinite(probs).all() else None


def print_table(metrics: dict[str, Any]) -> None:
    """Print the content of ``metrics.json`` as a table, which fits 80 columns if no member has a long name."""
    console = Console(highlight=False)
    table = Table(title=f"log loss out of fold, {metrics['n']} battles (95 % intervals by groups)")
    for column in ("", "log loss", "low", "high", "meaning"):
        table.add_column(column, justify="right" if column in ("log loss", "low", "high") else "left")
    members = metrics["log_loss"]["members"]
    for name, row in table_rows(metrics["log_loss"]).items():
        best = name == metrics["best"]
        numbers = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("value", "low", "high"))
        meaning = MEMBER if name in members else MEANINGS[name]
        table.add_row(f"{name} *" if best else name, *numbers, meaning, style="bold green" if best else "")
    console.print(table)
    console.print("* best row" + ("; bayes knows the true probabilities" if "bayes" in metrics["log_loss"] else ""))
    for name, row in metrics["paired"].items():
        label = (
            name.replace("_minus_", " - ")
            .replace("_", " ")
            .replace("best member", f"best member ({metrics['best_member']})")
        )
        console.print(f"{label}: {in_words(row)}", markup=False)
