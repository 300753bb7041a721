"""What should be looked at before a run's numbers are believed: leaks, drift, imbalance, truncation, blindness to ties.

Each warning begins with its kind. None is a proof; the thresholds are the constants below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.data import RunData
from ensemble.statistics.bootstrap import paired_difference
from ensemble.statistics.standard_errors import robust_error
from oof.classes import WINNER_COLUMNS
from oof.metrics import Floats

RARE_CLASS = 0.10  # share of a class under which we warn
MUCH_TRUNCATED = 0.10  # share of truncated battles over which we warn
DRIFT = 0.05  # difference of the submission's mean probabilities from the verdicts' shares over which we warn
FOLD_DRIFT = 0.05  # nats by which one fold's loss differs from the others' over which we warn …
ERRORS = 4.0  # … if that is as many standard errors: a run has dozens of folds times predictors
NAMES = ("A wins", "B wins", "tie")


def warnings(
    run: RunData,
    losses: Mapping[str, Floats],
    audit: list[dict[str, Any]],
    tokens: list[dict[str, Any]],
    ties: Mapping[str, dict[str, Any]],
) -> list[str]:
    """Return one sentence a warning, leaks first.

    Args:
        run: the run.
        losses: predictor -> (n,) log losses.
        audit: the audit's findings.
        tokens: per tokenizer the share of truncated battles (:func:`ensemble.report.stages.token_report`).
        ties: predictor -> its numbers about ties (:func:`ensemble.report.ties.tie_report`).
    """
    shares = np.bincount(run.labels, minlength=3) / len(run.labels)
    rare = [
        f"Imbalance: only {100 * share:.1f} % of the verdicts are '{name}'."
        for name, share in zip(NAMES, shares, strict=True)
        if share < RARE_CLASS
    ]
    truncated = [
        f"Truncation: {100 * row['truncated']:.1f} % of the battles are longer than prompts.max_tokens = "
        f"{row['budget']} (tokenizer {row['tokenizer']})."
        for row in tokens
        if row["truncated"] > MUCH_TRUNCATED
    ]
    unseen = [
        f"Ties: {name} is {found['verdict']}."
        for name, found in ties.items()
        if found["verdict"] in ("blind to ties", "weak on ties")
    ]
    checks = [f"Audit: {f['check']}: {f['message']}" for f in audit if f["status"] == "warning"]
    drift = _fold_drift(run, losses) + _submission_drift(run, shares)
    return _leaks(run, losses, audit) + checks + rare + truncated + unseen + drift


def _leaks(run: RunData, losses: Mapping[str, Floats], audit: list[dict[str, Any]]) -> list[str]:
    found = [f"Possible leak: {f['check']}: {f['message']}" for f in audit if f["status"] == "violated"]
    found += [
        f"Possible leak: {name} is possibly in-sample ({'; '.join(reasons)}): were its logits made by a model that was "
        "trained on these battles?"
        for name, reasons in run.step("stack").get("possibly_in_sample", {}).items()
    ]
    if "bayes" in losses:
        found += [
            f"Possible leak: {name} is better than the true class probabilities, beyond its interval."
            for name, values in losses.items()
            if name != "bayes" and paired_difference(values, losses["bayes"], run.groups, run.seed)["high"] < 0
        ]
    return found


def _fold_drift(run: RunData, losses: Mapping[str, Floats]) -> list[str]:
    """Each fold's model against the other folds' models: one of them may have failed to learn."""
    found = []
    for name in [name for name in (*run.members, "student") if name in losses]:
        for fold in np.unique(run.folds):
            at = run.folds == fold
            if at.all():
                continue
            gap = float(losses[name][at].mean() - losses[name][~at].mean())
            errors = [robust_error(losses[name][rows], run.groups[rows]) for rows in (at, ~at)]
            if None in errors or abs(gap) <= FOLD_DRIFT:
                continue
            if abs(gap) > ERRORS * float(np.hypot(*np.array(errors, dtype=np.float64))):
                found.append(
                    f"Drift: {name} in fold {fold} loses {gap:+.3f} nats a battle beside the other folds, more than "
                    "chance explains; look at that job's loss curve."
                )
    return found


def _submission_drift(run: RunData, shares: Floats) -> list[str]:
    """The submission's mean probabilities against the verdicts' shares, where the test set is large enough to tell."""
    path = run.folder / "submission.csv"
    if not path.is_file():
        return []
    try:
        frame = pl.read_csv(path).select(pl.col(WINNER_COLUMNS).cast(pl.Float64))
        means = np.array(frame.mean().row(0), dtype=np.float64)
    except (pl.exceptions.PolarsError, OSError, TypeError) as error:
        return [f"Drift: {path.name} cannot be read ({' '.join(str(error).split())[:100]})."]
    noise = 2 * np.sqrt(shares * (1 - shares) / max(frame.height, 1))  # of so many verdicts
    gaps = np.abs(means - shares)
    if not (gaps > np.maximum(DRIFT, noise)).any():
        return []
    most = int(gaps.argmax())
    return [
        f"Drift: the submission expects '{NAMES[most]}' in {100 * means[most]:.1f} % of its battles, "
        f"but {100 * shares[most]:.1f} % of the verdicts are that."
    ]
