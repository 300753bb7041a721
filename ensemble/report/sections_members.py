"""Page sections that compare members: by slice, battle by battle, and by contamination."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report import charts, charts_probabilities
from ensemble.report.names import VERDICTS, predictor_name
from ensemble.report.page_elements import (
    NOTHING,
    Block,
    Section,
    count,
    figure,
    interval,
    number,
    p_value,
    percent,
    table,
    text,
)
from ensemble.report.predictor_comparison import DRAWN
from ensemble.report.sections_battles import strongest
from oof.classes import CLASSES

Report = dict[str, Any]
ADVANTAGE = "advantage in nats a battle (95 % interval)"
LIMITS = (
    "This comparison can show that a member's lead is larger where the prompt is in the corpus. It cannot show that "
    "training on the corpus is the cause. Prompts that many people ask are shorter and easier and occur in every "
    "corpus, so the two kinds of battles differ in other ways as well. Both base models may have been trained on the "
    "prompts, and the corpus has them with other responses and without these verdicts. If no difference is shown, the "
    "corpus may still have had an effect: an interval that includes 0 is compatible with every value inside it."
)
SIMILAR = (
    "<em>Similar battles</em>: battles in and not in the corpus are compared only within the same quarter of length, "
    "number of turns (one or several) and presence of code, weighted by the battles in the corpus."
)


def members(report: Report) -> list[Section]:
    """Return a section for each pair of members."""
    sections = []
    for k, pair in enumerate(report["members"]):
        first, second = pair["first"], pair["second"]
        blocks = [_overall(pair), *comparison_blocks(pair, f"pair{k}"), *case_blocks(pair, f"pair{k}")]
        if k >= DRAWN:
            note = text("Only the first {n} pairs have figures, so that the page stays small.", n=str(DRAWN))
            blocks = [*(block for block in blocks if block.kind != "figure"), note]
        sections.append(Section(f"pair-{k}", f"{first} against {second}", blocks))
    return sections


def _overall(pair: Report) -> Block:
    overall = pair["overall"]
    return text(
        "Over all {n} battles, the advantage of {first} over {second} is {advantage} nats a battle: "
        "<strong>{finding}</strong>. Above 0, {first} is better.",
        n=count(overall["n"]),
        first=pair["first"],
        second=pair["second"],
        advantage=interval(overall["advantage"], signed=True),
        finding=overall["finding"],
    )


def _finding(finding: str) -> str:
    """Return the finding about a slice with the readable name of the predictor that is better."""
    name = finding.removesuffix(" better")
    return finding if name == finding else f"{predictor_name(name)} better"


def comparison_blocks(pair: Report, name: str) -> list[Block]:
    """Return the table and the figure of a comparison by slice; ``name`` is a prefix of figure ids."""
    first, second = (predictor_name(pair[side]) for side in ("first", "second"))
    head = ["slice of", "battles with", "n", "groups", f"log loss {first}", f"log loss {second}", "advantage",
            "p (Holm)", "finding"]  # fmt: skip
    rows = [
        [row["family"], row["slice"], count(row["n"]), count(row["n_groups"]), number(row["loss_first"]),
         number(row["loss_second"]), interval(row["advantage"], signed=True), p_value(row["p_adjusted"]),
         _finding(row["finding"])]
        for row in [pair["overall"], *pair["slices"]]
    ]  # fmt: skip
    forest = [(f"{row['family']}: {row['slice']}", row["advantage"]) for row in [pair["overall"], *pair["slices"]]]
    alt = f"Advantage of {first} over {second} by slice, one interval per row; the table above has the values."
    return [
        table(f"{first} against {second} by slice", head, rows),
        text(
            "Intervals are over groups of near-duplicate prompts; each holds for its slice alone. The "
            "p-values of all slices in this table are adjusted together (Holm), so the probability that any of the "
            "findings is false is at most 5 %. A predictor that expects more ties gains on ties and loses on decided "
            "battles whatever its quality: read those two rows together."
        ),
        figure(f"Advantage of {first} (right of 0) over {second} by slice.",
               charts.forest(f"{name}-slices", alt, forest, ADVANTAGE)),
    ]  # fmt: skip


def case_blocks(pair: Report, name: str) -> list[Block]:
    """Return both predictors' probabilities battle by battle, who is right alone, and the strongest cases."""
    first, second = (predictor_name(pair[side]) for side in ("first", "second"))
    grid, points = pair["grid"], pair["points"]
    labels = {"both": "both right", "first": f"only {first}", "second": f"only {second}", "neither": "neither"}
    alone = pair["right_alone"]
    # Two-class runs have no ties.
    seen = [i for i, c in enumerate(CLASSES) if any(row[c] for row in alone.values())]
    head = ["", "battles", *(VERDICTS[i] for i in seen)]
    rows = [[labels[key], count(row["n"]), *(count(row[CLASSES[i]]) for i in seen)] for key, row in alone.items()]
    axes = f"by the probability of the verdict, of {first} (horizontal) and {second} (vertical)"
    sampled = points["n_shown"] < points["n"]
    shown = f"A random {points['n_shown']:,} of {points['n']:,} battles" if sampled else "Every battle"
    alt = f"{shown}, one mark per battle, {axes}."
    drawn = charts_probabilities.scatter(f"{name}-scatter", alt, points, (first, second))
    blocks = [figure(f"{shown} {axes}. Above the line, {second} was closer.", drawn)]
    if sampled:  # the heat map has all battles
        alt = f"Heat map of all battles {axes}."
        blocks.append(figure(alt, charts_probabilities.heat(f"{name}-heat", alt, grid, (first, second))))
    blocks += [
        table("Predictors whose most probable class is the verdict", head, rows),
        text("The correlation of the two probabilities of the verdict is {r}.", r=number(grid["correlation"], 3)),
    ]
    for side, winner in (("first", first), ("second", second)):
        caption = f"Battles with the largest advantage of {winner}"
        blocks.append(Block("battles", caption=caption, battles=strongest(pair["strongest"][side])))
    return blocks


def contamination(report: Report) -> Section:
    """Return the section about prompts that are in a corpus too."""
    summary = report["seen"]
    if not summary:
        fill = Markup(
            "No corpus was checked: <code>arena-distill seen RUN --corpus FILES</code> finds battles whose prompt is "
            "a near-duplicate of one that a base model was trained on."
        )
        return Section("seen", "Contamination check", [], fill if report["curves"] else NOTHING)  # own logits: none
    blocks = [
        text("{n} battles ({share}) have a prompt that is a near-duplicate of one in the corpus ({files}).",
             n=count(summary["n_seen"]), share=percent(summary["share"]), files=", ".join(summary.get("corpus", [])))
    ]  # fmt: skip
    for k, pair in enumerate(report["members"]):
        effect, first, second = pair["seen"], pair["first"], pair["second"]
        rows = [
            ["in the corpus", count(effect["n_seen"]), interval(effect["seen"], signed=True)],
            ["not in the corpus", count(effect["n_unseen"]), interval(effect["unseen"], signed=True)],
            ["difference", "", interval(effect["difference"], signed=True)],
            ["difference between similar battles", "", interval(effect["matched"], signed=True)],
        ]
        alt = f"Advantage of {first} over {second} in and not in the corpus, and the difference, as in the table."
        drawn = [("in corpus", effect["seen"]), ("not in corpus", effect["unseen"]),
                 ("difference", effect["difference"]), ("difference, similar battles", effect["matched"])]  # fmt: skip
        blocks += [
            table(f"Advantage of {first} over {second}: {effect['finding']}", ["prompt", "battles", "advantage"], rows),
            figure(alt, charts.forest(f"seen{k}", alt, drawn, ADVANTAGE)),
        ]
    return Section("seen", "Contamination check", [*blocks, text(SIMILAR), text(LIMITS)])
