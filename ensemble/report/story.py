"""Findings of a run, in sentences: pure functions from the content of ``report.json`` to HTML text.

What "shown" means stands in :mod:`ensemble.report.conclusion`.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report.conclusion import ensemble_name, paired, row_of, say
from ensemble.report.names import with_article
from ensemble.report.page_elements import interval, number, percent
from ensemble.statistics.interval_words import above_zero, below_zero

Report = dict[str, Any]
TIES_AND_DECIDED = Markup(" The one that is better on ties may simply expect more of them.")
SMALL_DISAGREEMENT = 0.05  # a share of battles below which the order of the responses hardly matters


def story(report: Report) -> list[Markup]:
    """Return the sentences of a run in the order of its stages; those of missing stages are left out."""
    parts = {
        "Members": members(report),
        "Stacking": stacking(report),
        "Calibration": calibration(report),
        "Student": student(report),
        "Ties": ties(report),
        "Position bias": position(report),
        "Length bias": length(report),
        "Best possible": bound(report),
    }
    return [say("<strong>{part}.</strong> {s}", part=part, s=s) for part, found in parts.items() for s in found]


def members(report: Report) -> list[Markup]:
    """Which member is better, and on which battles."""
    names = report["summary"]["members"]
    if len(names) == 1:
        return [say("There is one member, {name}: no other to compare it with.", name=names[0])]
    sentences = []
    best = report["summary"]["best_member"]
    pairs = [pair for pair in report["members"] if best in (pair["first"], pair["second"])]
    for pair in pairs:
        overall = pair["overall"]
        first, second = pair["first"], pair["second"]
        advantage = interval(overall["advantage"], signed=True)
        if "groups" in overall["advantage"] or overall["p_adjusted"] is None:
            whole = say("{first} against {second}: {d}.", first=first, second=second, d=advantage)
        elif overall["finding"] == "no difference shown":
            whole = say("Neither {first} nor {second} is shown to be better overall (advantage {d} nats).",
                        first=first, second=second, d=advantage)  # fmt: skip
        else:
            winner, loser = (first, second) if overall["advantage"]["value"] > 0 else (second, first)
            whole = say("{winner} is better than {loser} (advantage of {first}: {d} nats).",
                        winner=winner, loser=loser, first=first, d=advantage)  # fmt: skip
        sentences.append(whole + _where(pair))
    return sentences


def _where(pair: Report) -> Markup:
    """Name the slices on which a difference is shown; p-values are adjusted for their number."""
    clauses = []
    for name in (pair["first"], pair["second"]):
        slices = [f"{row['slice']} ({row['family']})" for row in pair["slices"] if row["finding"] == f"{name} better"]
        if slices:
            clauses.append(say("{name} is better on {slices}", name=name, slices=", ".join(slices)))
    if not clauses:
        return Markup(" No slice shows a difference.") if pair["slices"] else Markup("")
    where = say(" By slice: {where}.", where=Markup("; ").join(clauses))
    return where + (TIES_AND_DECIDED if len(clauses) > 1 and _expects_more_ties(pair) else Markup(""))


def _expects_more_ties(pair: Report) -> bool:
    """Return whether one member is better on ties and the other on decided battles."""
    winners = {row["slice"]: row["finding"] for row in pair["slices"] if row["family"] == "verdict"}
    found = {winners.get("tie"), winners.get("decided")}
    return found == {f"{pair['first']} better", f"{pair['second']} better"}


def stacking(report: Report) -> list[Markup]:
    """What stacking added to the best member, before calibration."""
    difference, best = paired(report, "stack", report["summary"]["best_member"]), report["summary"]["best_member"]
    if difference is None or len(report["summary"]["members"]) == 1:
        return []
    d = interval(difference, signed=True)
    if "groups" in difference:
        return [say("Stacking against {best} alone: {d}.", best=best, d=d)]
    if below_zero(difference):
        return [say("Stacking the members lowers the log loss of the best one, {best}: {d}.", best=best, d=d)]
    if above_zero(difference):
        return [say("Stacking did harm: its log loss is above that of {best} alone, {d}.", best=best, d=d)]
    return [say("Stacking is not shown to improve on {best} alone: {d}.", best=best, d=d)]


def calibration(report: Report) -> list[Markup]:
    """What calibration did to the log loss and to the calibration error, and why the two may disagree."""
    difference = paired(report, "calibrated", "stack")
    scores = {name: content["scores"] for name, content in report["calibration"]["predictors"].items()}
    if difference is None or not {"stack", "calibrated"} <= set(scores):
        return []
    before, after = (scores[name] for name in ("stack", "calibrated"))
    d = interval(difference, signed=True)
    if "groups" in difference:
        loss = say("Calibration changes the log loss by {d}", d=d)
    elif below_zero(difference):
        loss = say("Calibration lowers the log loss: {d}", d=d)
    elif above_zero(difference):
        loss = say("Calibration raises the log loss: {d}", d=d)
    else:
        loss = say("Calibration is not shown to change the log loss: {d}", d=d)
    rises = after["ece"] > before["ece"]
    ece = say("; the calibration error (ECE) {verb} from {a} to {b}, where chance alone gives {chance}.",
              verb="rises" if rises else "falls", a=number(before["ece"]), b=number(after["ece"]),
              chance=number(after["ece_bias"]))  # fmt: skip
    falls = difference["value"] < 0
    why = Markup(
        " Both can be true: the log loss judges the probability of every verdict, the ECE only how often the most "
        "probable class is right, in fifteen bins, and it is never 0 even for perfect probabilities."
    )
    return [loss + ece + (why if rises and falls else Markup(""))]


def student(report: Report) -> list[Markup]:
    """Whether the student may replace the ensemble."""
    difference, content = paired(report, "student", "calibrated"), report["distillation"]
    if difference is None or not content:
        return []
    name, d = ensemble_name(report), interval(difference, signed=True)
    agree = interval(content["agreement"], share=True)
    if "groups" in difference:
        verdict = say("Student against {name}: {d}.", name=name, d=d)
    elif above_zero(difference):
        verdict = say("The student does not match the {name}: its log loss is higher, {d}.", name=name, d=d)
    elif below_zero(difference):
        verdict = say("The student is better than the {name}: {d}.", name=name, d=d)
    else:
        verdict = say("The student may replace the {name}: it is not shown to be worse, and at the end of the "
                      "interval it loses at most {high} nats.", name=name,
                      high=number(difference["high"], signed=True))  # fmt: skip
    return [verdict + say(" They agree on {agree} of the battles.", agree=agree)]


def ties(report: Report) -> list[Markup]:
    """What the ties cost the model in use."""
    if not report["ties"]["possible"]:
        return []
    choice = report["summary"]["submit"]["choice"]
    content = report["ties"]["predictors"].get(choice)
    if not content:
        return []
    name = with_article(choice)
    cost = say("Ties are {share} of the battles and {cost} of the loss of {name}.", share=percent(content["share"]),
               cost=percent(content["cost_share"]), name=name)  # fmt: skip
    finding = {
        "blind to ties": " It does not see them coming: its P(tie) is not higher on ties than on other battles.",
        "weak on ties": " On ties it loses more than the class shares would.",
        "sees ties": " It gives ties a higher P(tie) than other battles.",
    }.get(content["verdict"], f" {content['verdict'].capitalize()}.")
    return [cost + finding]


def position(report: Report) -> list[Markup]:
    """Whether the order of the responses matters, in the verdicts and in the models."""
    margin, models = report["position"]["verdicts"], report["position"]["models"]
    shown = interval(margin, share=True)
    if "groups" in margin:
        verdicts = say("A, shown first, wins more often than B by {m} of the battles.", m=shown)
    elif above_zero(margin):
        verdicts = say("The verdicts favour the response shown first: A wins more often than B by {m} of the battles.",
                       m=shown)  # fmt: skip
    elif below_zero(margin):
        verdicts = say("The verdicts favour the response shown second: A's wins minus B's are {m} of the battles.",
                       m=shown)  # fmt: skip
    else:
        verdicts = say("No position bias of the verdicts is shown: A's wins minus B's are {m} of the battles.",
                       m=shown)  # fmt: skip
    worst = max(models, key=lambda name: float(models[name]["disagreement"]["value"]))
    share = models[worst]["disagreement"]
    if not share["value"]:
        return [verdicts]
    advice = (
        " That is rare."
        if share["value"] < SMALL_DISAGREEMENT
        else " So predict in both orders, which is the default, and do not switch it off to save time."
    )
    return [verdicts + say(" The most probable class of {name} depends on the order in {share} of them.",
                           name=with_article(worst), share=percent(share["value"])) + advice]  # fmt: skip


def length(report: Report) -> list[Markup]:
    """Whether the model in use leans on length more than the verdicts do."""
    content, choice = report["position"]["length"], report["summary"]["submit"]["choice"]
    if content is None or choice not in content["predictors"] or content["slopes"]["verdicts"] is None:
        return []
    rows = list(zip(content["verdicts"], content["predictors"][choice], strict=True))
    bounded = [(verdict, model) for verdict, model in rows if verdict["low"] is not None]
    if not bounded:
        return []
    outside = sum(not verdict["low"] <= model["value"] <= verdict["high"] for verdict, model in bounded)
    slope = content["slopes"]["verdicts"]
    favour = "longer" if slope > 0 else "shorter"
    follows = (
        "inside the verdicts' interval at every ratio of lengths"
        if not outside
        else f"outside the verdicts' interval at {outside} of {len(bounded)} ratios of lengths"
    )
    return [say("Verdicts lean to the {favour} response (slope {slope}, {name} {own}); its mean is {follows}.",
                favour=favour, slope=number(slope, 3, signed=True), name=with_article(choice),
                own=number(content["slopes"][choice], 3, signed=True), follows=follows)]  # fmt: skip


def bound(report: Report) -> list[Markup]:
    """How far the student is from the best possible loss, which a synthetic arena knows."""
    difference = paired(report, "student", "bayes")
    if difference is None:
        return []
    return [say("These battles are generated, so the best possible loss is known: {best}. The student is {d} from it.",
                best=number(row_of(report, "bayes")["log_loss"]["value"]),
                d=interval(difference, signed=True))]  # fmt: skip
