"""Advice on what to try next, in sentences, from learning curve, ablations, truncation and the student's loss."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report.conclusion import paired, say
from ensemble.report.page_elements import count, interval, percent
from ensemble.report.run_warnings import MUCH_TRUNCATED
from ensemble.statistics.interval_words import above_zero, below_zero

Report = dict[str, Any]
MEMBER = "without-member-"  # begins the names of the ablations that leave out a member


def advice(report: Report) -> list[Markup]:
    """Return what to try next, the most certain first; at least one sentence."""
    found = [*_more_data(report), *_members(report), *_longer_texts(report), *_student(report), *_stages(report)]
    return found or [Markup("Nothing on this page points to a next step.")]


def _more_data(report: Report) -> list[Markup]:
    """Compare the stack on part of the battles with the stack on all."""
    ablations = (report["stack"] or {}).get("ablations")
    curve = [row for row in ablations["learning_curve"] if row["name"] != "full"] if ablations else []
    if not curve:
        return []
    last = max(curve, key=lambda row: float(row["battles"]))
    n, d = count(round(last["battles"])), interval(last["difference"], signed=True)
    if above_zero(last["difference"]):
        return [say("<strong>More battles</strong> help the stack: with {n} it loses {d} nats.", n=n, d=d)]
    return [say("More battles are not shown to help the stack: with {n} its log loss changes by {d}.", n=n, d=d)]


def _members(report: Report) -> list[Markup]:
    """Say which members are worth their time."""
    ablations = (report["stack"] or {}).get("ablations")
    if not ablations or len(report["summary"]["members"]) < 2:
        return []
    sentences = []
    for row in ablations["without"]:
        name = str(row["name"]).removeprefix(MEMBER)
        if not str(row["name"]).startswith(MEMBER) or "groups" in row["difference"]:
            continue
        d = interval(row["difference"], signed=True)
        if above_zero(row["difference"]):
            sentences.append(say("{name} is worth its time: without it the log loss changes by {d}.", name=name, d=d))
        elif below_zero(row["difference"]):
            sentences.append(say("<strong>Leave out {name}</strong>: without it the log loss falls, {d}.",
                                 name=name, d=d))  # fmt: skip
        else:
            sentences.append(say("Leaving out {name} is not shown to cost anything ({d}), and saves its time.",
                                 name=name, d=d))  # fmt: skip
    return sentences


def _longer_texts(report: Report) -> list[Markup]:
    cut = [row for row in report["data"]["tokens"] if row["truncated"] > MUCH_TRUNCATED]
    if not cut:
        return []
    worst = max(cut, key=lambda row: float(row["truncated"]))
    setting = "distill.prompts.max_tokens" if worst["readers"] == ["student"] else "prompts.max_tokens"
    return [say("<strong>Longer texts</strong>: {share} of the battles are cut at {budget} tokens for {readers}; try a "
                "larger <code>{setting}</code>.", share=percent(worst["truncated"]), budget=count(worst["budget"]),
                readers=" and ".join(worst["readers"]), setting=setting)]  # fmt: skip


def _student(report: Report) -> list[Markup]:
    difference = paired(report, "student", "calibrated")
    if difference is None or not above_zero(difference):
        return []
    return [say("<strong>A stronger student</strong>: it loses {d} to its teacher. Try a larger "
                "<code>distill.student.checkpoint</code>, more epochs, or unlabelled battles "
                "(<code>data.unlabelled</code>).", d=interval(difference, signed=True))]  # fmt: skip


def _stages(report: Report) -> list[Markup]:
    """Name what has not been measured yet."""
    if not report["stack"]:
        return [say("Run stage two, which stacks and calibrates the members.")]
    if not report["stack"].get("ablations"):
        return [say("<code>arena-distill ablate</code> measures what each member and more battles are worth in this "
                    "run.")]  # fmt: skip
    return []
