"""Sentences of the first screen, which model to use and how far to trust it, and what all generated sentences share.

Every sentence claims only what an interval shows. "Shown" means that the 95 % interval of the paired difference
excludes 0; where it does not, the sentence says that no difference is shown, never that there is none.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report.page_elements import interval
from ensemble.statistics.interval_words import above_zero, below_zero, too_few

Report = dict[str, Any]


def say(template: str, **values: Any) -> Markup:
    """Return our own sentence with escaped values."""
    return Markup(template).format(**values)  # noqa: S704  # only our own sentences


def paired(report: Report, first: str, second: str) -> Any:
    """Return the interval of the log loss of ``first`` minus that of ``second``; None if one of them is missing."""
    rows = report["summary"]["paired"]
    return next((row["difference"] for row in rows if (row["first"], row["second"]) == (first, second)), None)


def row_of(report: Report, predictor: str) -> dict[str, Any]:
    return next(row for row in report["summary"]["table"] if row["predictor"] == predictor)


def ensemble_name(report: Report) -> str:
    return "ensemble" if len(report["summary"]["members"]) > 1 else "calibrated member"


def conclusion(report: Report) -> Markup:
    """Return the sentence at the head of the page: which model to use, and how good it is."""
    summary = report["summary"]
    choice, best = summary["submit"]["choice"], summary["best_member"]
    loss = interval(row_of(report, choice)["log_loss"])
    if choice not in ("student", "calibrated"):
        alone = "the only member" if len(summary["members"]) == 1 else "the best member so far"
        return say("<strong>{name}</strong> is {alone}: log loss {loss}. Stage two, which stacks and calibrates, has "
                   "not run.", name=best, alone=alone, loss=loss)  # fmt: skip
    name = "student" if choice == "student" else ensemble_name(report)
    start = say("Use the <strong>{name}</strong>: log loss {loss}", name=name, loss=loss)
    other = "calibrated" if choice == "student" else "student"
    clauses = [_against(paired(report, choice, best), f"the best member, {best}")]
    if choice == "student":
        clauses.append(_student_clause(paired(report, "student", other), ensemble_name(report)))
    elif paired(report, "student", "calibrated"):
        clauses.append(say("and the student is shown to be worse (difference {d})",
                           d=interval(paired(report, "student", "calibrated"), signed=True)))  # fmt: skip
    return start + Markup("").join(say(", {c}", c=clause) for clause in clauses if clause) + "."


def _against(difference: Any, other: str) -> Markup | None:
    if difference is None:
        return None
    if "groups" in difference:
        return say("{few} against {other}", few=too_few(difference["groups"]), other=other)
    d = interval(difference, signed=True)
    if below_zero(difference):
        return say("better than {other} (difference {d})", other=other, d=d)
    if above_zero(difference):
        return say("worse than {other} (difference {d})", other=other, d=d)
    return say("not shown to differ from {other} (difference {d})", other=other, d=d)


def _student_clause(difference: Any, ensemble: str) -> Markup | None:
    if difference is None:
        return None
    if "groups" in difference:
        return say("{few} against the {ensemble}", few=too_few(difference["groups"]), ensemble=ensemble)
    finding = "better than" if below_zero(difference) else "not shown to be worse than"
    return say("{finding} the {ensemble}, and one model instead of all", finding=finding, ensemble=ensemble)


def trust(report: Report) -> tuple[str, Markup]:
    """Return how far to trust the numbers, ``good``, ``check`` or ``bad``, and why in one sentence."""
    summary = report["summary"]
    held = sum(finding["status"] == "ok" for finding in summary["audit"])
    leaks = [warning for warning in summary["warnings"] if warning.startswith("Possible leak")]
    few = summary["submit"].get("difference", {}).get("groups") or row_of(report, summary["best_member"])[
        "log_loss"
    ].get("groups")
    if leaks:
        return "bad", say("Do not trust these numbers yet: {first}", first=leaks[0])
    if few:
        return "check", say("{few}: no comparison on this page is decided.", few=too_few(few).capitalize())
    if summary["warnings"]:
        n = len(summary["warnings"])
        more = f" ({n - 1} more below)" if n > 1 else ""
        return "check", say("Read the warning first: {first}{more}", first=summary["warnings"][0], more=more)
    return "good", say("Out-of-fold scores: no model is scored on battles, or near-duplicates of them, that it was "
                       "trained on. {held} audit checks hold and there is no warning.", held=f"{held:,}")  # fmt: skip
