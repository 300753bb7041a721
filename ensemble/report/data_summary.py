"""Summary of the data: lengths, truncation, groups, folds, rows that were read and dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.run_data import RunData
from ensemble.report.truncation import QUANTILES, truncation_report
from oof.metrics import row_log_loss

REASONS = 10  # most frequent reasons of dropped rows that are shown


def data_report(run: RunData, properties: pl.DataFrame) -> dict[str, Any]:
    """Return lengths, truncation, groups, class balance and log loss per fold, dropped rows, and coding of verdicts.

    Args:
        run: n battles.
        properties: (n) battles, as :func:`ensemble.report.slices.battle_properties` returns them.
    """
    columns = {"prompt": "prompt_chars", "response A": "chars_a", "response B": "chars_b"}
    lengths = {name: np.quantile(properties[column].to_numpy(), QUANTILES).tolist() for name, column in columns.items()}
    total = (properties["prompt_chars"] + properties["chars_a"] + properties["chars_b"]).to_numpy()
    counts, edges = np.histogram(np.log10(total + 1), bins=24)
    folds = []
    for fold in np.unique(run.folds):
        at = run.folds == fold
        shares = np.bincount(run.labels[at], minlength=3) / at.sum()
        losses = {name: float(row_log_loss(run.probs[name][at], run.labels[at]).mean()) for name in run.predictors}
        folds.append({"fold": int(fold), "n": int(at.sum()), "n_groups": len(np.unique(run.groups[at])),
                      "shares": shares.tolist(), "log_loss": losses})  # fmt: skip
    sizes = np.bincount(np.unique(run.groups, return_inverse=True)[1])
    battles = run.step("battles")
    return {
        "n": len(run.labels),
        "n_groups": len(sizes),
        "n_groups_of_several": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
        "shares": (np.bincount(run.labels, minlength=3) / len(run.labels)).tolist(),
        "quantiles": list(QUANTILES),
        "lengths": lengths if run.has_text else {},
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "folds": folds,
        "counts": {name: value for name, value in battles.get("counts", {}).items() if isinstance(value, int)},
        "schemas": {Path(name).name: schema for name, schema in battles.get("schemas", {}).items()},
        "dropped": dropped_rows(run.folder / "dropped.csv"),
        "tokens": truncation_report(run),
        "codings": [{"file": Path(name).name, **row} for name, row in battles.get("codings", {}).items()],
        "verdicts": dict((run.config.get("data") or {}).get("verdicts") or {}),
    }


def dropped_rows(path: Path) -> list[dict[str, Any]]:
    """Return the most frequent reasons for dropped rows and their numbers of rows; values in a reason become "…"."""
    if not path.is_file():
        return []
    reasons = pl.read_csv(path, glob=False, infer_schema=False)["reason"].str.replace_all(r"'[^']*'|\d+", "…")
    counts = reasons.value_counts().sort("count", "reason", descending=[True, False])
    return [{"reason": row["reason"], "n": row["count"]} for row in counts.head(REASONS).to_dicts()]
