"""Warnings about a run: leakage, drift, class imbalance, truncation, blindness to ties.

Each warning begins with its kind. A warning is no proof; the thresholds are the constants below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.run_data import OUTCOMES, RunData
from ensemble.statistics.bootstrap import paired_difference
from ensemble.statistics.interval_words import below_zero
from ensemble.statistics.standard_errors import standard_error
from oof.classes import WINNER_COLUMNS, classes_of_data
from oof.metrics import Floats

RARE_CLASS = 0.10  # smaller shares of a class give a warning
MUCH_TRUNCATED = 0.10  # larger shares of truncated battles give a warning
DRIFT = 0.05  # difference between a mean probability of the submission and the class's share
FOLD_DRIFT = 0.05  # nats between the loss of one fold and of the others …
DRIFT_GROUPS = 10  # fewer groups in a fold, or in all others, give no warning
ERRORS = 4.0  # … and standard errors that it must exceed too, because there are dozens of folds times predictors


def run_warnings(
    run: RunData,
    losses: Mapping[str, Floats],
    audit: list[dict[str, Any]],
    tokens: list[dict[str, Any]],
    ties: Mapping[str, dict[str, Any]],
) -> list[str]:
    """Return one sentence per warning, possible leaks first.

    Args:
        run: the run.
        losses: predictor -> (n,) log losses.
        audit: the audit's findings.
        tokens: rows of :func:`ensemble.report.truncation.truncation_report`.
        ties: predictor -> its numbers about ties (:func:`ensemble.report.ties.tie_report`).
    """
    shares = np.bincount(run.labels, minlength=3) / len(run.labels)
    rare = [
        f"Imbalance: only {100 * share:.1f} % of the verdicts are '{name}'."
        for name, share in zip(OUTCOMES[: len(classes_of_data(run.ties))], shares, strict=False)
        if share < RARE_CLASS
    ]
    truncated = [
        f"Truncation: {100 * row['truncated']:.1f} % of the battles are cut at {row['budget']:,} tokens for "
        f"{' and '.join(row['readers'])}."
        for row in tokens
        if row["truncated"] > MUCH_TRUNCATED
    ]
    tie_warnings = [
        f"Ties: {name} is {report['verdict']}."
        for name, report in ties.items()
        if report["verdict"] in ("blind to ties", "weak on ties")
    ]
    checks = [f"Audit: {f['check']}: {f['message']}" for f in audit if f["status"] == "warning"]
    drift = _fold_drift(run, losses) + _submission_drift(run, shares) + _quantisation_drift(run)
    return _leaks(run, losses, audit) + checks + rare + truncated + tie_warnings + drift


def _leaks(run: RunData, losses: Mapping[str, Floats], audit: list[dict[str, Any]]) -> list[str]:
    leaks = [f"Possible leak: {f['check']}: {f['message']}" for f in audit if f["status"] == "violated"]
    leaks += [
        f"Possible leak: {name} is possibly in-sample ({'; '.join(reasons)}): check whether its logits come from a "
        "model that was trained on these battles."
        for name, reasons in run.step("stack").get("possibly_in_sample", {}).items()
    ]
    notes = run.step("stack").get("in_sample_notes", {})
    leaks += [
        f"Possible leak: check that the logits of {name} are out of fold: {note}." for name, note in notes.items()
    ]
    if "bayes" in losses:
        leaks += [
            f"Possible leak: {name} is better than the true class probabilities, and the 95 % interval excludes 0."
            for name, values in losses.items()
            if name != "bayes" and below_zero(paired_difference(values, losses["bayes"], run.groups, run.seed))
        ]
    return leaks


def _fold_drift(run: RunData, losses: Mapping[str, Floats]) -> list[str]:
    """Compare each fold's model with the other folds' models: one of them may have failed to learn."""
    drifts = []
    for name in [name for name in (*run.members, "student") if name in losses]:
        for fold in np.unique(run.folds):
            at = run.folds == fold
            if at.all():
                continue
            gap = float(losses[name][at].mean() - losses[name][~at].mean())
            if abs(gap) <= FOLD_DRIFT or min(len(np.unique(run.groups[rows])) for rows in (at, ~at)) < DRIFT_GROUPS:
                continue
            inside, outside = (standard_error(losses[name][rows], run.groups[rows]) for rows in (at, ~at))
            if abs(gap) > ERRORS * np.hypot(inside, outside):
                drifts.append(
                    f"Drift: {name}'s log loss in fold {fold} differs by {gap:+.3f} nats from the other folds, more "
                    "than chance explains; look at that job's loss curve."
                )
    return drifts


def _quantisation_drift(run: RunData) -> list[str]:
    """Name the jobs whose probabilities a quantised base changed by more than their tolerance."""
    measured = [
        (name, job, job["score_drift"]) for name, jobs in run.jobs.items() for job in jobs if "score_drift" in job
    ]
    return [
        f"Drift: {name} {job['folder']}: scoring in {drift['quantise']} changes a probability by "
        f"{drift['mean_probability']:.3f} on average; set score_quantise=same, or quantise={drift['quantise']} in "
        "training, too."
        for name, job, drift in measured
        if drift["mean_probability"] > drift["tolerance"]
    ]


def _submission_drift(run: RunData, shares: Floats) -> list[str]:
    """Compare the submission's mean probabilities with the class shares of the scored battles."""
    path = run.folder / "submission.csv"
    if not path.is_file():
        return []
    try:
        frame = pl.read_csv(path, glob=False)
        if "winner" in frame.columns:  # predict.format: winner, which has no mean probability
            return []
        frame = frame.select(pl.col(WINNER_COLUMNS).cast(pl.Float64))
        means = np.array(frame.mean().row(0), dtype=np.float64)
    except (pl.exceptions.PolarsError, OSError, TypeError) as error:
        return [f"Drift: {path.name} cannot be read ({' '.join(str(error).split())[:100]})."]
    noise = 2 * np.sqrt(shares * (1 - shares) / max(frame.height, 1))  # two standard errors of a share of so many rows
    gaps = np.abs(means - shares)
    if not (gaps > np.maximum(DRIFT, noise)).any():
        return []
    largest = int(gaps.argmax())
    return [
        f"Drift: the submission's mean probability of '{OUTCOMES[largest]}' is {100 * means[largest]:.1f} %, but its "
        f"share of the scored battles is {100 * shares[largest]:.1f} %."
    ]
