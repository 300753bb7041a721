"""Page sections on the use of the student: where it loses against the ensemble, cascade, abstention.

Each shows a file that another command wrote into the run; without it, a line names the command. A file that was made
with another student is said to be out of date.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from ensemble.report import charts
from ensemble.report.conclusion import row_of, say
from ensemble.report.page_elements import (
    NOTHING,
    Block,
    Section,
    count,
    figure,
    interval,
    number,
    percent,
    table,
    text,
)

Report = dict[str, Any]
SAME = 1e-6  # nats between log losses of one student
LARGEST = 12  # slices in the figure
POLICIES = {
    "best": "best of all for each budget",
    "gain": "predicted gain",
    "margin": "lead of the first class",
    "entropy": "uncertainty",
    "disagreement": "difference between predictions",
    "random": "at random",
}
COMMANDS = {
    "slices": "<code>arena-distill slices --run RUN</code> shows on which battles the student loses to the ensemble.",
    "cascade": "<code>arena-distill cascade --run RUN</code> measures loss against cost where only uncertain battles "
    "go on to the members.",
}


def sections(report: Report) -> list[Section]:
    """Return the sections of a run with a student; none without one."""
    return [slices(report), cascade(report), abstention(report)] if report["distillation"] else []


def _section(anchor: str, title: str, blocks: list[Block], reason: str = "Not measured") -> Section:
    fill = say(f"{{reason}}: {COMMANDS[anchor]}", reason=reason) if anchor in COMMANDS and not blocks else NOTHING
    return Section(anchor, title, blocks, fill)


def _out_of_date(report: Report, loss: float | None) -> bool:
    """Return whether the student's log loss in a file is not that of the run's student."""
    own = row_of(report, "student")["log_loss"]["value"]
    return loss is None or not math.isclose(loss, own, abs_tol=SAME)


def slices(report: Report) -> Section:
    """Return the table of ``arena-distill slices``."""
    content, title = report["student_slices"], "Where the student loses"
    if not content:
        return _section("slices", title, [])
    if _out_of_date(report, content["overall"].get("student")):
        return _section("slices", title, [], "Measured with another student")
    rows = [content["overall"], *content["slices"]]
    names = [row["slice"] if row["family"] == "all" else f"{row['family']}: {row['slice']}" for row in rows]
    cells = [[name, count(row["n"]), number(row["student"]), number(row["ensemble"]),
              interval(row["difference"], signed=True), number(row["part"], signed=True)]
             for name, row in zip(names, rows, strict=True)]  # fmt: skip
    alt = "Log loss of the student minus that of the ensemble by slice, with 95 % intervals; the table has the values."
    drawn = [(name, row["difference"]) for name, row in zip(names, rows, strict=True)][:LARGEST]
    blocks = [
        text("<em>Part</em>: what agreement with the ensemble on this slice alone would bring. Each interval holds for "
             "its slice alone."),
        table("Student minus ensemble by slice, the largest part first",
              ["slice", "battles", "student", "ensemble", "difference", "part"], cells),
        figure(f"{alt} The first {len(drawn)} rows.",
               charts.forest("slices", alt, drawn, "student minus ensemble (95 % interval)")),
    ]  # fmt: skip
    return _section("slices", title, blocks)


def cascade(report: Report) -> Section:
    """Return loss against cost of ``arena-distill cascade``."""
    content, title = report["cascade"], "Cascade"
    ends, policies = (content or {}).get("ends") or {}, (content or {}).get("policies") or {}
    if not {"student", "ensemble"} <= set(ends) or not any(policies.values()):
        return _section("cascade", title, [])
    if _out_of_date(report, ends["student"]["log_loss"]["value"]):
        return _section("cascade", title, [], "Measured with another student")
    drawn = {
        POLICIES.get(name, name): [(point["cost"], point["log_loss"]) for point in points]
        for name, points in policies.items() if points
    }  # fmt: skip
    marked = {name: (end["cost"], end["log_loss"]) for name, end in ends.items()}
    alt = "Log loss by the share of the ensemble's cost, a line per policy; student and ensemble alone as marks."
    blocks = [
        text("Cheap predictions come first, and only battles that are still uncertain go on to dearer ones. Cost is "
             "the share of what the ensemble takes for each battle{seconds}. A budget is a limit: more than the "
             "student costs is spent only where that is shown to help. All numbers are out of fold. {kept}",
             seconds=_seconds(content), kept=_kept(content)),
        figure(alt, charts.trade_off("cascade", alt, drawn, marked, ("cost, share of the ensemble's", "log loss"))),
        _policy(content, next(name for name in ("best", *policies) if policies.get(name))),
    ]  # fmt: skip
    return _section("cascade", title, blocks)


def _seconds(content: Report) -> Markup:
    seconds = {level["name"]: level["seconds_a_battle"] for level in content.get("levels") or []}
    if not {"student", "ensemble"} <= set(seconds):
        return NOTHING
    return say(" (here {ensemble} s, and {student} s by the student)", student=number(seconds["student"], 3),
               ensemble=number(seconds["ensemble"], 3))  # fmt: skip


def _kept(content: Report) -> Markup:
    """Say what part of the ensemble's gain on the student the cascade keeps."""
    entry = (content.get("gain_kept") or {}).get("best") or {}
    if not entry.get("share"):
        return Markup("The ensemble is not shown to be better than the student, so there is no gain to keep.")
    kept = say("At {budget} of the cost, the best policy keeps {share} of the ensemble's gain on the student.",
               budget=percent(entry["budget"], 0), share=interval(entry["share"], share=True))  # fmt: skip
    return kept + (say(" {cost} of the cost keep 95 %.", cost=percent(entry["cost_of_95"]))
                   if entry.get("cost_of_95") is not None else NOTHING)  # fmt: skip


def _policy(content: Report, name: str) -> Block:
    points = content["policies"][name]
    levels = [level["name"] for level in content.get("levels") or []]
    levels = [level for level in levels if any(point["shares"].get(level) for point in points)]
    head = ["budget", "cost", "log loss", "accuracy", *(f"decided by {level.replace('_', ' ')}" for level in levels)]
    cells = [[percent(point["budget"], 0), percent(point["cost"]), interval(point["log_loss"]),
              interval(point["accuracy"], share=True), *(percent(point["shares"].get(level)) for level in levels)]
             for point in points]  # fmt: skip
    return table(f"Policy: {POLICIES.get(name, name)}", head, cells)


def abstention(report: Report) -> Section:
    """Return how many battles the student answers at each level of risk."""
    content, title = report["abstention"], "Abstention"
    if not content:
        return _section("abstention", title, [])
    cells = [[percent(row["level"], 0), number(row["threshold"], 3), interval(row["answered"], share=True),
              percent(row["wrong"])] for row in content["levels"]]  # fmt: skip
    blocks = [
        text("Asked for a level of risk, the student answers only where the probability of its verdict reaches the "
             "threshold. The guarantee, with probability {p} over {n} groups: of a random battle of a random group "
             "that is answered, the verdict is wrong with at most this probability. A dash: no threshold is proved, so "
             "nothing is answered.", p=percent(content["confidence"], 0), n=count(content["groups"])),
        table("Coverage by level of risk, out of fold, groups counted equally",
              ["wrong at most", "threshold", "answered", "wrong, of the answered"], cells),
    ]  # fmt: skip
    return _section("abstention", title, blocks)
