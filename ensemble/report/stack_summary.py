"""Summary of stage two: combiners, feature importances, tuning, ablations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble.report.run_data import RunData, trial_values
from ensemble.statistics.bootstrap import group_interval
from oof.metrics import row_log_loss


def stack_report(run: RunData) -> dict[str, Any] | None:
    """Return combiners, importances, studies, tuned parameters, score tables and ablations; None without stage two."""
    manifest = run.step("stack")
    if not manifest:
        return None
    folder = run.folder / "stack"
    studies = {path.stem: trial_values(path) for path in sorted((folder / "studies").glob("*.log"))}
    return {
        "final": manifest.get("final"),
        "combiners": combiner_rows(run),
        "importances": importances(manifest),
        "studies": {name: {"values": values, "best": np.minimum.accumulate(values).tolist()}
                    for name, values in studies.items() if values},
        "folds": [{key: f[key] for key in ("fold", "combiner", "rounds") if key in f} | _numbers(f.get("params", {}))
                  for f in manifest.get("folds", [])],
        "scores": scores_tables(run.step("scores")),
        "ablations": ablation_tables(run.step("ablations")),
    }  # fmt: skip


def combiner_rows(run: RunData) -> list[dict[str, Any]]:
    """Return the cross-fitted log losses of every combiner and of each fold's pool or choice, in ascending order."""
    probs = {name.removeprefix("combiner:"): p for name, p in run.probs.items() if name.startswith("combiner:")}
    if not probs:
        return []
    probs["pool or choice of each fold (stack)"] = run.probs["stack"]
    rows = [
        {"combiner": name, "log_loss": group_interval(row_log_loss(p, run.labels), run.groups, run.seed)}
        for name, p in probs.items()
    ]
    return sorted(rows, key=lambda row: float(row["log_loss"]["value"]))


def importances(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each feature's share of the gain (mean over the outer folds' boosters) and its splits, largest first.

    Args:
        manifest: of stage two.
    """
    folds = manifest.get("folds", [])
    rows: dict[str, dict[str, Any]] = {}
    for fold in folds:
        total = max(sum(fold["gain"].values()), 1e-300)
        for name, gain in fold["gain"].items():
            row = rows.setdefault(name, {"feature": name, "gain_share": 0.0, "splits": 0})
            row["gain_share"] += gain / total / len(folds)
            row["splits"] += fold["splits"][name]
    return sorted(rows.values(), key=lambda row: (-row["gain_share"], row["feature"]))


def ablation_tables(ablations: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of ``stack/ablations.json`` (see :mod:`ensemble.evaluation.ablations`); None without it."""
    if not ablations.get("without") or not ablations.get("learning_curve"):
        return None
    gain = [{"family": name, "gain_share": float(share)} for name, share in ablations.get("gain", {}).items()]
    return {
        "note": str(ablations.get("note", "")),
        "full": ablations["full"],
        "without": sorted(ablations["without"], key=lambda row: -float(row["difference"]["value"])),
        "learning_curve": ablations["learning_curve"],
        "gain": sorted(gain, key=lambda row: -float(row["gain_share"])),
    }


def scores_tables(scores: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of ``stack/scores.json`` with flat columns: predictors, and their paired differences."""
    predictors = [{"name": name, **_numbers(row)} for name, row in scores.get("predictors", {}).items()]
    paired = [_numbers(row) for row in scores.get("paired", [])]
    return {name: rows for name, rows in (("predictors", predictors), ("paired", paired)) if rows}


def _numbers(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "groups" and prefix:
            continue  # of an interval without bounds; the table's own entry has the number
        if isinstance(value, dict):
            flat |= _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat
