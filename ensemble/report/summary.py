"""The head of the report: the table of the run, what to submit, and warnings."""

from __future__ import annotations

from typing import Any

from ensemble.report.alarms import warnings
from ensemble.report.data import RunData
from ensemble.statistics.bootstrap import group_interval, paired_difference
from ensemble.statistics.scores import scores
from oof.audit.run import audit_run
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.metrics import row_log_loss

AUDITED = 300  # prompts that the audit compares exactly with all others


def summary_report(run: RunData, others: dict[str, Any]) -> dict[str, Any]:
    """Return the run's table with intervals, paired differences, what to submit, invariants and warnings."""
    losses = {name: row_log_loss(run.probs[name], run.labels) for name in run.predictors}
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
        "possibly_in_sample": run.step("stack").get("possibly_in_sample", {}),
        "warnings": warnings(run, losses, audit, others["data"]["tokens"], others["ties"]["predictors"]),
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


def compare_settings(one: RunData, other: RunData) -> list[dict[str, str]]:
    """Return the settings that differ between two runs, flattened."""
    a, b = _flat(one.config), _flat(other.config)
    return [
        {"setting": key, "first": str(a.get(key)), "second": str(b.get(key))}
        for key in sorted({*a, *b})
        if digest(a.get(key)) != digest(b.get(key)) and key != "run"
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
