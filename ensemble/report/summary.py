"""The head of the report: the table of the run, what to submit, and warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from ensemble.report.data import STAGES, RunData
from oof import store
from oof.audit import audit_run
from oof.errors import UserError
from oof.metrics import group_interval, paired_difference, row_log_loss, scores

RARE_CLASS = 0.10  # share of a class under which we warn
MUCH_TRUNCATED = 0.10  # share of truncated battles over which we warn
DRIFT = 0.05  # difference of mean class probabilities from the verdicts' shares over which we warn
AUDITED = 300  # prompts that the audit compares exactly with all others


def rows_of(run: RunData) -> list[str]:
    """Return the predictors in the order of the summary: from prior to student, then Bayes."""
    stages = [name for name in STAGES if name in run.probs]
    head = [name for name in stages if name in ("prior", "length_only")]
    return [*head, *run.members, *(name for name in stages if name not in head)]


def summary_report(run: RunData, others: dict[str, Any]) -> dict[str, Any]:
    """Return the run's table with intervals, paired differences, what to submit, invariants and warnings."""
    losses = {name: row_log_loss(run.probs[name], run.labels) for name in rows_of(run)}
    table = [
        {"predictor": name, "log_loss": group_interval(values, run.groups, run.seed),
         **{key: value for key, value in scores(run.probs[name], run.labels).items() if key in SHOWN}}
        for name, values in losses.items()
    ]  # fmt: skip
    best = min(run.members, key=lambda name: float(losses[name].mean()))
    steps = [("calibrated", best), ("calibrated", "stack"), ("stack", best), ("student", "calibrated"),
             ("student", best), ("student", "bayes")]  # fmt: skip
    paired = [
        {"first": a, "second": b, "difference": paired_difference(losses[a], losses[b], run.groups, run.seed)}
        for a, b in steps if a in losses and b in losses
    ]  # fmt: skip
    audit = _audit(run)
    return {
        "n": len(run.labels),
        "table": table,
        "best_member": best,
        "paired": paired,
        "submit": what_to_submit(losses, run, best),
        "audit": audit,
        "warnings": warnings(run, losses, audit, others),
        "hardware": {
            name: str(value)
            for part in ("hardware", "versions")
            for name, value in _flat(run.facts.get(part, {})).items()
        },
    }


SHOWN = ("accuracy", "brier", "tie_recall", "ece", "ece_bias")


def what_to_submit(losses: dict[str, Any], run: RunData, best: str) -> dict[str, Any]:
    """Return the advice: the lowest log loss, and whether the student, which is far cheaper, is shown to be worse."""
    candidates: list[str] = [name for name in ("student", "calibrated") if name in losses] or [best]
    lowest = min(candidates, key=lambda name: float(losses[name].mean()))
    model = "student" if lowest == "student" else "ensemble"
    advice: dict[str, Any] = {"choice": lowest, "command": f'ARGS="predict.model={model}"'}
    if {"student", "calibrated"} <= set(losses):
        difference = paired_difference(losses["student"], losses["calibrated"], run.groups, run.seed)
        worse = difference["low"] > 0
        advice |= {
            "difference": difference,
            "reason": "the ensemble is shown to be better than the student; it costs every member's run a battle"
            if worse
            else "the student is not shown to be worse than the ensemble, and costs one model's run a battle",
        }
        if not worse:
            advice |= {"choice": "student", "command": 'ARGS="predict.model=student"'}
    else:
        advice["reason"] = "the only one that this run has" if len(candidates) == 1 else ""
    return advice


def _audit(run: RunData) -> list[dict[str, Any]]:
    try:
        findings = audit_run(run.folder, sample=AUDITED)
    except UserError as error:
        return [{"check": "audit", "status": "warning", "message": str(error), "examples": []}]
    return [
        {"check": f.check, "status": f.status, "message": f.message, "examples": list(f.examples)} for f in findings
    ]


def warnings(run: RunData, losses: dict[str, Any], audit: list[dict[str, Any]], others: dict[str, Any]) -> list[str]:
    """Return sentences about what should be looked at before the numbers are believed."""
    found = [f"Possible leak: {f['check']}: {f['message']}" for f in audit if f["status"] == "violated"]
    found += [f"Audit: {f['check']}: {f['message']}" for f in audit if f["status"] == "warning"]
    found += [
        f"Possible leak: {name} is better than the true class probabilities, beyond its interval."
        for name, values in losses.items()
        if "bayes" in losses and name != "bayes"
        and paired_difference(values, losses["bayes"], run.groups, run.seed)["high"] < 0
    ]  # fmt: skip
    shares = np.bincount(run.labels, minlength=3) / len(run.labels)
    for name, share in zip(("A wins", "B wins", "tie"), shares, strict=True):
        if share < RARE_CLASS:
            found.append(f"Imbalance: only {100 * share:.1f} % of the verdicts are '{name}'.")
    for tokens in others["data"]["tokens"]:
        if tokens["truncated"] > MUCH_TRUNCATED:
            found.append(
                f"Truncation: {100 * tokens['truncated']:.1f} % of the battles are longer than prompts.max_tokens = "
                f"{tokens['budget']} (tokenizer {tokens['tokenizer']})."
            )
    found += [f"Ties: {name} is {report['verdict']}." for name, report in others["ties"]["predictors"].items()
              if report["verdict"] in ("blind to ties", "weak on ties")]  # fmt: skip
    return found + _drift(run, shares)


def _drift(run: RunData, shares: Any) -> list[str]:
    """Fold against fold, and the submission's mean probabilities against the verdicts'."""
    found = []
    submission = run.folder / "submission.csv"
    if submission.is_file():
        try:
            columns = ("winner_model_a", "winner_model_b", "winner_tie")
            means = pl.read_csv(submission).select(columns).mean().to_numpy()[0]
        except (pl.exceptions.PolarsError, OSError):
            return [f"{submission.name} cannot be read."]
        gap = float(np.abs(means - shares).max())
        if gap > DRIFT:
            found.append(
                f"Drift: the submission's mean class shares differ from the verdicts' by up to {100 * gap:.1f} points."
            )
    return found


def compare_settings(one: RunData, other: RunData) -> list[dict[str, str]]:
    """Return the settings that differ between two runs, flattened."""
    a, b = _flat(one.config), _flat(other.config)
    return [
        {"setting": key, "first": str(a.get(key)), "second": str(b.get(key))}
        for key in sorted({*a, *b})
        if store.digest(a.get(key)) != store.digest(b.get(key)) and key != "run"
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
