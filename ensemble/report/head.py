"""Head of the page: facts of the run, its conclusion, three large numbers, the next command, how far to trust them."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report.conclusion import conclusion, ensemble_name, paired, row_of, say, trust
from ensemble.report.page_elements import Card, Head, count, interval, number, percent
from ensemble.statistics.interval_words import above_zero, below_zero
from oof.common.progress import duration

Report = dict[str, Any]
LEGEND = Markup(
    "Log loss on battles that the model was not trained on: lower is better, and a difference below 0 is a gain. "
    "[Brackets]: 95&nbsp;% interval."
)


def head(report: Report) -> Head:
    """Return the head of the page of one run."""
    level, reason = trust(report)
    return Head(
        facts=_facts(report),
        conclusion=conclusion(report),
        cards=_cards(report),
        legend=LEGEND,
        command=report["summary"]["submit"]["command"],
        purpose=_purpose(report["summary"]["submit"]),
        trust=level,
        reason=reason,
    )


def _purpose(submit: Report) -> str:
    """Say what the next command does."""
    if submit["choice"] not in ("student", "calibrated"):
        return "Next, to stack and calibrate the members:"
    return "Next, to predict the verdicts of new battles (in FILE):"


def _facts(report: Report) -> list[str]:
    summary, data, cost = report["summary"], report["data"], report["cost"]
    facts: list[str] = [
        say("{n} battles in {g} groups of near-duplicate prompts", n=count(data["n"]), g=count(data["n_groups"])),
        f"{len(data['folds'])} folds",
        *data["schemas"],
        *([summary["date"]] if summary["date"] else []),
        *(summary["hardware"][key] for key in ("system", "machine") if key in summary["hardware"]),
    ]
    if cost["seconds"]:
        facts.append(say("{time} of computing", time=duration(cost["seconds"])))
    if cost["cost"] is not None:
        facts.append(say("cost {cost}", cost=number(cost["cost"], 2)))
    return facts


def _cards(report: Report) -> list[Card]:
    """Return the cards of the best member, the ensemble and the student, as far as they exist."""
    summary = report["summary"]
    best, choice = summary["best_member"], summary["submit"]["choice"]
    several = len(summary["members"]) > 1
    rows = [("best member" if several else "member", best, best, None)]
    stacked = f"{len(summary['members'])} members, calibrated" if several else "calibrated"
    rows += [(ensemble_name(report), "calibrated", stacked, best),
             ("student", "student", "one model", best)]  # fmt: skip
    predictors = {row["predictor"] for row in summary["table"]}
    return [
        Card(label, name, interval(row_of(report, key)["log_loss"]), _gain(report, key, other), key == choice)
        for label, key, name, other in rows
        if key in predictors
    ]


def _gain(report: Report, predictor: str, member: str | None) -> Markup:
    """Say what a predictor gains on the best member, and the student on the ensemble."""
    right = say("Right on {share} of the battles.", share=percent(row_of(report, predictor)["accuracy"]))
    if member is None:
        guess = next((row for row in report["summary"]["table"] if row["predictor"] == "prior"), None)
        if guess is None:
            return right
        return right + say(" Guessing by the class shares: {loss}.", loss=number(guess["log_loss"]["value"]))
    difference = paired(report, predictor, member)
    if difference is None:
        return right
    gain = right + say(" Against {member}: {d}, {finding}.", d=interval(difference, signed=True), member=member,
               finding=_finding(difference))  # fmt: skip
    if predictor == "student":
        gain = say("Learned from the {ensemble}. ", ensemble=ensemble_name(report)) + gain
    rival = paired(report, predictor, "calibrated")
    if rival is None:
        return gain
    return gain + say(" Against the {other}: {d}, {finding}.", d=interval(rival, signed=True),
                      other=ensemble_name(report), finding=_finding(rival))  # fmt: skip


def _finding(difference: Any) -> str:
    if "groups" in difference:
        return "undecided"
    if below_zero(difference):
        return "better"
    return "worse" if above_zero(difference) else "no difference shown"
