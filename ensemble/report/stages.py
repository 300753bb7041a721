"""The stages' own facts: the data and its folds, time and cost, loss curves, the student beside its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import rel_entr

from ensemble.report.data import RunData
from ensemble.report.slices import Slice, compare, probability_grid, probability_points, right_alone, strongest_cases
from ensemble.statistics.bootstrap import group_interval
from oof.metrics import row_log_loss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
CURVE_POINTS = 200  # of a loss curve: more would not be seen


def data_report(run: RunData, facts: pl.DataFrame) -> dict[str, Any]:
    """Return lengths, token truncation, groups, class balance per fold and dropped rows."""
    columns = {"prompt": "prompt_chars", "response A": "chars_a", "response B": "chars_b"}
    lengths = {name: np.quantile(facts[column].to_numpy(), QUANTILES).tolist() for name, column in columns.items()}
    total = (facts["prompt_chars"] + facts["chars_a"] + facts["chars_b"]).to_numpy()
    counts, edges = np.histogram(np.log10(total + 1), bins=24)
    folds, shown = [], {name: run.probs[name] for name in run.predictors}
    for fold in np.unique(run.folds):
        at = run.folds == fold
        shares = np.bincount(run.labels[at], minlength=3) / at.sum()
        losses = {name: float(row_log_loss(p[at], run.labels[at]).mean()) for name, p in shown.items()}
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
        "lengths": lengths,
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "folds": folds,
        "counts": {name: value for name, value in battles.get("counts", {}).items() if isinstance(value, int)},
        "schemas": {Path(name).name: schema for name, schema in battles.get("schemas", {}).items()},
        "dropped": dropped_rows(run.folder / "dropped.csv"),
        "tokens": token_report(run),
    }


def dropped_rows(path: Path) -> list[dict[str, Any]]:
    """Return why rows were dropped and how many, the ten most frequent reasons; values in a reason are left out."""
    if not path.is_file():
        return []
    reasons = pl.read_csv(path, infer_schema=False)["reason"].str.replace_all(r"'[^']*'|\d+", "…")
    counts = reasons.value_counts().sort("count", "reason", descending=[True, False])
    return [{"reason": row["reason"], "n": row["count"]} for row in counts.head(10).to_dicts()]


def token_report(run: RunData) -> list[dict[str, Any]]:
    """Return, per tokenizer of the run's token cache, how many tokens battles have and how many exceed the budget.

    The template's own tokens (about 30) are not counted, so the share is a lower bound by a little.
    """
    budget = run.config.get("prompts", {}).get("max_tokens")
    if not budget:
        return []
    from oof.encoding.tokenization import text_hashes

    texts = pl.concat([run.table.select("id", text=pl.col(part)) for part in ("prompt", "response_a", "response_b")])
    turns = texts.explode("text").with_columns(pl.col("text").fill_null(""))
    stripped = [text.strip() for text in turns["text"].to_list()]  # as texts are before they are tokenised
    turns = turns.with_columns(key=pl.Series(text_hashes(stripped).tolist(), dtype=pl.Binary))
    found = []
    for folder in sorted((run.folder / "tokens").glob("*/")):
        known = _token_lengths(folder)
        if known is None:
            continue
        sums = turns.join(known, on="key", how="left").group_by("id").agg(
            pl.col("tokens").sum(), pl.col("tokens").null_count().alias("missing")
        )  # fmt: skip
        if sums["missing"].sum():
            continue
        tokens = sums["tokens"].to_numpy()
        found.append({"tokenizer": folder.name[:8], "budget": int(budget), "truncated": float((tokens > budget).mean()),
                      "quantiles": np.quantile(tokens, QUANTILES).tolist()})  # fmt: skip
    return found


def _token_lengths(folder: Path) -> pl.DataFrame | None:
    parts = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as shard:
                parts.append((shard["hashes"], np.diff(shard["offsets"])))
        except (OSError, ValueError, KeyError):
            continue
    if not parts:
        return None
    keys = pl.Series("key", np.concatenate([keys for keys, _ in parts]).tolist(), dtype=pl.Binary)
    frame = pl.DataFrame({"key": keys, "tokens": np.concatenate([tokens for _, tokens in parts])})
    return frame.unique("key")


def cost_report(run: RunData, price_per_hour: float) -> dict[str, Any]:
    """Return seconds of each stage's jobs that say so, and what they cost at a price per machine hour (0 = unknown)."""
    rows: list[dict[str, Any]] = []
    for name, jobs in {**run.jobs, "stack": [run.step("stack")]}.items():
        seconds = [float(job["seconds"]) for job in jobs if isinstance(job.get("seconds"), int | float)]
        if not seconds:
            continue
        first = jobs[0]
        total = float(sum(seconds))
        rows.append({"stage": name, "jobs": len(jobs), "seconds": total,
                     "cost": total / 3600 * price_per_hour if price_per_hour else None,
                     "parameters": first.get("parameters"), "trainable": first.get("trainable"),
                     "attention": first.get("attention"), "architecture": first.get("architecture")})  # fmt: skip
    total = float(sum(row["seconds"] for row in rows))
    return {"stages": rows, "seconds": total, "price_per_hour": price_per_hour or None,
            "cost": total / 3600 * price_per_hour if price_per_hour else None}  # fmt: skip


def loss_curves(run: RunData) -> dict[str, dict[str, Any]]:
    """Return per member (and "student") and job the training loss by step, thinned to ``CURVE_POINTS``."""
    curves: dict[str, dict[str, Any]] = {}
    for name, jobs in run.jobs.items():
        for job in jobs:
            points = [(h["step"], h["loss"]) for h in job.get("history", []) if "loss" in h and "step" in h]
            if points:
                kept = points[:: max(1, -(-len(points) // CURVE_POINTS))]
                series = {"step": [p[0] for p in kept], "loss": [p[1] for p in kept], "held_out": job.get("log_loss")}
                curves.setdefault(name, {})[job["folder"]] = series
    return curves


def distill_report(run: RunData, slices: list[Slice]) -> dict[str, Any] | None:
    """Return the student beside its teacher: agreement, divergence, and where the student lost; None without one."""
    teacher = "calibrated"
    if "student" not in run.probs or teacher not in run.probs:
        return None
    student, calibrated = run.probs["student"], run.probs[teacher]
    both, names = (student, calibrated), ("student", teacher)
    agree = student.argmax(axis=1) == calibrated.argmax(axis=1)
    divergence = rel_entr(calibrated, np.maximum(student, 1e-15)).sum(axis=1)
    advantage = row_log_loss(calibrated, run.labels) - row_log_loss(student, run.labels)
    return {
        "agreement": group_interval(agree.astype(float), run.groups, run.seed),
        "divergence": group_interval(divergence, run.groups, run.seed),
        "comparison": compare(names, both, run.labels, run.groups, slices, run.seed),
        "right_alone": right_alone(names, both, run.labels),
        "grid": probability_grid(both, run.labels),
        "points": probability_points(both, run.labels, run.seed),
        "strongest": strongest_cases(run.table, advantage, run.labels),
    }
