"""Comparison of runs: log loss per predictor, paired differences on shared battles, settings that differ.

A battle is shared if id, verdict and texts are equal in both runs. The bootstrap resamples the first run's groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from ensemble.report.run_data import RunData, flatten
from ensemble.statistics.bootstrap import group_interval, paired_difference
from ensemble.statistics.standard_errors import holm, p_value
from oof.common.digests import digest
from oof.data.schemas import TEXTS
from oof.metrics import row_log_loss

SHARED = ("id", "label", *TEXTS)  # columns that are equal for a shared battle


def compare_runs(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return each run's log losses, and the comparison of every other run with the first."""
    names = _names(runs)
    table = [
        {"run": name, "predictor": predictor, "n": len(run.labels),
         "log_loss": group_interval(row_log_loss(run.probs[predictor], run.labels), run.groups, run.seed)}
        for name, run in zip(names, runs, strict=True) for predictor in run.predictors
    ]  # fmt: skip
    pairs = [_pair(runs[0], run, (names[0], name)) for name, run in zip(names[1:], runs[1:], strict=True)]
    return {"format": 1, "runs": names, "table": table, "pairs": pairs}


def _names(runs: Sequence[RunData]) -> list[str]:
    """Return the folders' names, with the parent's name in front if two are equal."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]


def shared_rows(one: RunData, other: RunData) -> tuple[list[int], list[int]]:
    """Return the positions of the battles that both runs have, in the first run's order."""
    left = one.table.select(SHARED).with_row_index("one")
    right = other.table.select(SHARED).with_row_index("other")
    joined = left.join(right, on="id", how="inner", maintain_order="left", suffix="_other")
    same = pl.all_horizontal(pl.col(name) == pl.col(f"{name}_other") for name in SHARED[1:])
    joined = joined.filter(same)
    return joined["one"].to_list(), joined["other"].to_list()


def _pair(one: RunData, other: RunData, names: tuple[str, str]) -> dict[str, Any]:
    first, second = shared_rows(one, other)
    rows: list[dict[str, Any]] = []
    if first:
        groups = one.groups[first]
        for predictor in [name for name in one.predictors if name in other.probs]:
            a = row_log_loss(one.probs[predictor][first], one.labels[first])
            b = row_log_loss(other.probs[predictor][second], other.labels[second])
            rows.append({"predictor": predictor, "first": float(a.mean()), "second": float(b.mean()),
                         "difference": paired_difference(b, a, groups, one.seed),
                         "p": p_value(b - a, groups)})  # fmt: skip
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_adjusted"] = p
    return {
        "first": names[0],
        "second": names[1],
        "n_shared": len(first),
        "n_first": len(one.labels),
        "n_second": len(other.labels),
        "rows": rows,
        "settings": compare_settings(one, other),
    }


def compare_settings(one: RunData, other: RunData) -> list[dict[str, str]]:
    """Return the settings that differ between two runs, by path."""
    a, b = flatten(one.config), flatten(other.config)
    return [
        {"setting": key, "first": str(a.get(key)), "second": str(b.get(key))}
        for key in sorted({*a, *b})
        if digest(a.get(key)) != digest(b.get(key)) and key != "run"
    ]
