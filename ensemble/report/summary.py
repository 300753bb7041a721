"""Summary of a run: scores, paired differences, recommended model, audit, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble.report.run_data import RunData, flatten
from ensemble.report.run_warnings import run_warnings
from ensemble.statistics.bootstrap import group_interval, paired_difference
from ensemble.statistics.interval_words import above_zero, too_few
from ensemble.statistics.scores import scores
from oof.audit.run import audit_run
from oof.common.errors import UserError
from oof.metrics import Floats, row_log_loss

AUDITED = 300  # prompts that the audit compares exactly with all others
SHOWN = ("accuracy", "brier", "tie_recall", "ece", "ece_bias")  # scores beside the log loss


def summary_report(run: RunData, others: dict[str, Any]) -> dict[str, Any]:
    """Return the summary.

    Args:
        run: the run.
        others: the parts of the report that are already computed; ``data`` and ``ties`` are read.
    """
    losses = {name: row_log_loss(run.probs[name], run.labels) for name in run.predictors}
    table = [
        {"predictor": name, "log_loss": group_interval(values, run.groups, run.seed),
         **{key: value for key, value in scores(run.probs[name], run.labels).items() if key in SHOWN}}
        for name, values in losses.items()
    ]  # fmt: skip
    best = min(run.members, key=lambda name: float(losses[name].mean()))
    compared = [("calibrated", best), ("calibrated", "stack"), ("stack", best), ("student", "calibrated"),
                ("student", best), ("student", "bayes")]  # fmt: skip
    paired = [
        {"first": a, "second": b, "difference": paired_difference(losses[a], losses[b], run.groups, run.seed)}
        for a, b in compared if a in losses and b in losses
    ]  # fmt: skip
    audit = _audit(run)
    return {
        "n": len(run.labels),
        "table": table,
        "best_member": best,
        "paired": paired,
        "submit": recommendation(losses, run, best),
        "audit": audit,
        "possibly_in_sample": run.step("stack").get("possibly_in_sample", {}),
        "warnings": run_warnings(run, losses, audit, others["data"]["tokens"], others["ties"]["predictors"]),
        "hardware": {
            name: str(value)
            for part in ("hardware", "versions")
            for name, value in flatten(run.record.get(part, {})).items()
        },
    }


def recommendation(losses: Mapping[str, Floats], run: RunData, best: str) -> dict[str, Any]:
    """Return which model to submit: the student unless the ensemble, which is far slower, is shown to be better.

    Args:
        losses: predictor -> (n,) log losses.
        run: n battles.
        best: the member with the lowest log loss.
    """
    if not {"student", "calibrated"} <= set(losses):
        choice = next((name for name in ("student", "calibrated") if name in losses), best)
        own = run.config.get("stack", {}).get("logits")
        command = " ".join(f"{name}=FILE" for name in own) if own else ""
        command = f'TEST_LOGITS="{command}"' if own else _command(choice)
        return {"choice": choice, "command": command, "reason": "it is the only model of this run"}
    difference = paired_difference(losses["student"], losses["calibrated"], run.groups, run.seed)
    if "groups" in difference:
        choice, reason = "student", f"{too_few(difference['groups'])}, and it runs one model on each battle"
    elif above_zero(difference):
        choice = "calibrated"
        reason = "the ensemble is shown to be better than the student, but it runs every member on each battle"
    else:
        choice = "student"
        reason = "the student is not shown to be worse than the ensemble, and it runs one model on each battle"
    return {"choice": choice, "command": _command(choice), "difference": difference, "reason": reason}


def _command(choice: str) -> str:
    return f'ARGS="predict.model={"student" if choice == "student" else "ensemble"}"'


def _audit(run: RunData) -> list[dict[str, Any]]:
    """Return the audit's findings; an audit that fails is a finding too."""
    try:
        findings = audit_run(run.folder, sample=AUDITED)
    except UserError as error:
        return [{"check": "audit", "status": "warning", "message": str(error), "examples": []}]
    return [
        {"check": f.check, "status": f.status, "message": f.message, "examples": list(f.examples)} for f in findings
    ]
