"""Summary of a run: scores, paired differences, recommended model, audit, warnings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ensemble.report.leaderboard import ranks
from ensemble.report.run_data import RunData, flatten
from ensemble.report.run_warnings import run_warnings
from ensemble.statistics.bootstrap import group_interval, paired_difference
from ensemble.statistics.interval_words import above_zero, too_few
from ensemble.statistics.scores import scores
from oof.audit.run import audit_run
from oof.common.errors import UserError
from oof.common.wording import called_by_make, in_words_of_the_command
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
    places = ranks(losses, run.groups, run.seed)
    table = [
        {"predictor": name, "log_loss": group_interval(values, run.groups, run.seed),
         **{key: value for key, value in scores(run.probs[name], run.labels).items() if key in SHOWN},
         **places[name]}
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
        "date": _date(run),
        "members": run.members,
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
        return {"choice": choice, "command": _command(run, choice), "reason": "it is the only model of this run"}
    difference = paired_difference(losses["student"], losses["calibrated"], run.groups, run.seed)
    if "groups" in difference:
        choice, reason = "student", f"{too_few(difference['groups'])}, and it runs one model on each battle"
    elif above_zero(difference):
        choice = "calibrated"
        reason = "the ensemble is shown to be better than the student, but it runs every member on each battle"
    else:
        choice = "student"
        reason = "the student is not shown to be worse than the ensemble, and it runs one model on each battle"
    return {"choice": choice, "command": _command(run, choice), "difference": difference, "reason": reason}


def _command(run: RunData, choice: str) -> str:
    """Return the next command, in the words of the call: prediction by the chosen model, or stage two before it."""
    folder, own = shlex.quote(str(run.folder)), run.config.get("stack", {}).get("logits")
    if own:
        files = " ".join(f"{name}=FILE" for name in own)
        words = f'TEST_LOGITS="{files}"' if called_by_make() else f'"stack.test_logits={files}"'
        command = f"make predict RUN={folder} {words}"
    elif choice not in ("student", "calibrated"):
        command = f"make stack RUN={folder}"
    else:
        model = "student" if choice == "student" else "ensemble"
        command = f'make predict RUN={folder} TEST=FILE ARGS="predict.model={model}"'
    return command if called_by_make() else in_words_of_the_command(command)


def _date(run: RunData) -> str | None:
    """Return the day on which the run's last finished stage was written, from the date of its file."""
    names = ("distill/manifest.json", "stack/manifest.json", "run.json")
    written = [(run.folder / name).stat().st_mtime for name in names if (run.folder / name).is_file()]
    return datetime.fromtimestamp(max(written), UTC).date().isoformat() if written else None


def _audit(run: RunData) -> list[dict[str, Any]]:
    """Return the audit's findings; an audit that fails is a finding too."""
    try:
        findings = audit_run(run.folder, sample=AUDITED)
    except UserError as error:
        return [{"check": "audit", "status": "warning", "message": str(error), "examples": []}]
    return [
        {"check": f.check, "status": f.status, "message": f.message, "examples": list(f.examples)} for f in findings
    ]
