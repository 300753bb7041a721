"""The page's sections about predictions: members, seen prompts, ties, prompt quality, calibration, position."""

from __future__ import annotations

from typing import Any

from ensemble.report import charts
from ensemble.report.blocks import (
    Block,
    Section,
    any_value,
    count,
    figure,
    interval,
    number,
    p_value,
    percent,
    quotes,
    table,
    text,
)
from ensemble.report.slices import DRAWN
from oof.classes import CLASSES

Report = dict[str, Any]
ADVANTAGE = "advantage in nats a battle (95 % interval)"
CAUTION = (
    "What this can show: whether one member's lead is larger where the prompt is in the corpus. What it cannot: that "
    "training on the corpus is the cause. Prompts that many people ask are shorter and easier and are in every corpus, "
    "so seen and unseen battles differ in more than this; both base models may have seen them; a prompt was seen with "
    "other answers and without this verdict. No difference does not prove that nothing was learnt from the corpus, and "
    "an interval that includes 0 is compatible with every value inside it."
)


def members(report: Report) -> list[Section]:
    """Return a section for each pair of members."""
    sections = []
    for k, pair in enumerate(report["members"]):
        first, second = pair["first"], pair["second"]
        blocks = [_verdict(pair), *comparison_blocks(pair, f"pair{k}"), *alone_blocks(pair, f"pair{k}")]
        if k >= DRAWN:
            note = text("Figures are drawn of the first {n} pairs only, so that the page stays small.", n=str(DRAWN))
            blocks = [*(block for block in blocks if block.kind != "figure"), note]
        sections.append(Section(f"pair-{k}", f"{first} against {second}", blocks))
    return sections


def _verdict(pair: Report) -> Block:
    overall = pair["overall"]
    return text(
        "Over all {n} battles the advantage of {first} over {second} is {advantage} nats a battle: "
        "<strong>{finding}</strong>. Above 0, {first} is better.",
        n=count(overall["n"]),
        first=pair["first"],
        second=pair["second"],
        advantage=interval(overall["advantage"], signed=True),
        finding=overall["finding"],
    )


def comparison_blocks(pair: Report, name: str) -> list[Block]:
    """Return table and figure of a comparison by slice."""
    first, second = pair["first"], pair["second"]
    head = ["slice of", "battles with", "n", "groups", f"log loss {first}", f"log loss {second}", "advantage",
            "p (Holm)", "finding"]  # fmt: skip
    rows = [
        [row["family"], row["slice"], count(row["n"]), count(row["n_groups"]), number(row["loss_first"]),
         number(row["loss_second"]), interval(row["advantage"], signed=True), p_value(row["p_adjusted"]),
         row["finding"]]
        for row in [pair["overall"], *pair["slices"]]
    ]  # fmt: skip
    forest = [(f"{row['family']}: {row['slice']}", row["advantage"]) for row in [pair["overall"], *pair["slices"]]]
    alt = f"Advantage of {first} over {second} by slice, one interval a row; values are in the table above."
    return [
        table(f"{first} against {second} by slice", head, rows),
        text(
            "Intervals resample groups of near-duplicate prompts and hold for each slice by itself. The p-values of all"
            " slices of this table are adjusted together (Holm), so the chance that even one of its findings is false "
            "is at most 5 %. A predictor that expects more ties is better on ties and worse on decided battles, "
            "whatever it knows: read those two rows together."
        ),
        figure(f"Advantage of {first} (right of 0) over {second} by slice.",
               charts.forest(f"{name}-slices", alt, forest, ADVANTAGE)),
    ]  # fmt: skip


def alone_blocks(pair: Report, name: str) -> list[Block]:
    """Return the picture of both predictors' probabilities, who is right alone, and the strongest cases."""
    first, second, grid, points = pair["first"], pair["second"], pair["grid"], pair["points"]
    said = {"both": "both right", "first": f"only {first}", "second": f"only {second}", "neither": "neither"}
    rows = [[said[key], *(count(row[c]) for c in ("n", *CLASSES))] for key, row in pair["right_alone"].items()]
    axes = f"by the probability that {first} (across) and {second} (up) gave to the verdict"
    sampled = points["n_shown"] < points["n"]
    which = f"A random {points['n_shown']:,} of {points['n']:,} battles" if sampled else "Every battle"
    blocks = [
        figure(f"{which} {axes}. Above the line, {second} was closer.",
               charts.scatter(f"{name}-scatter", f"{which}, one mark each, {axes}.", points, (first, second)))
    ]  # fmt: skip
    if sampled:  # where marks are a part of the battles, the picture of all of them says more
        alt = f"Numbers of all battles {axes}, as colours."
        blocks.append(figure(alt, charts.heat(f"{name}-heat", alt, grid, (first, second))))
    blocks += [
        table("Whose most probable class is the verdict", ["", "battles", "A wins", "B wins", "ties"], rows),
        text("The correlation of the two probabilities is {r}.", r=number(grid["correlation"], 3)),
    ]
    for side, winner in (("first", first), ("second", second)):
        blocks.append(quotes(f"Battles on which {winner} is furthest ahead", case_rows(pair["strongest"][side])))
    return blocks


def case_rows(cases: list[Report]) -> list[list[Any]]:
    """Return the quoted texts of example battles."""
    rows: list[list[Any]] = []
    for case in cases:
        title = text(
            "battle {id}, verdict {verdict}, advantage {value}: prompt",
            id=case["id"],
            verdict=case["verdict"],
            value=number(case["value"], 2, signed=True),
        ).text
        rows += [[title, case["prompt"]], ["response A", case["response_a"]], ["response B", case["response_b"]]]
    return rows


def seen(report: Report) -> Section:
    """Return the section about prompts that a corpus has too."""
    found = report["seen"]
    if not found:
        return Section("seen", "Seen prompts", [text(
            "No corpus was looked through. <code>python -m ensemble seen RUN --corpus FILES</code> marks the battles "
            "whose prompt near-duplicates one of a corpus that a base model was trained on.")])  # fmt: skip
    blocks = [
        text("{n} of the battles ({share}) have a prompt that near-duplicates one in the corpus ({files}).",
             n=count(found["n_seen"]), share=percent(found["share"]), files=", ".join(found.get("corpus", [])))
    ]  # fmt: skip
    for k, pair in enumerate(report["members"]):
        effect, first, second = pair["seen"], pair["first"], pair["second"]
        rows = [
            ["on seen prompts", count(effect["n_seen"]), interval(effect["seen"], signed=True)],
            ["on unseen prompts", count(effect["n_unseen"]), interval(effect["unseen"], signed=True)],
            ["difference of the two", "", interval(effect["difference"], signed=True)],
            ["difference between like battles", "", interval(effect["matched"], signed=True)],
        ]
        alt = f"Advantage of {first} over {second} on seen and unseen prompts and the difference, as in the table."
        drawn = [("seen", effect["seen"]), ("unseen", effect["unseen"]), ("difference", effect["difference"]),
                 ("difference, like battles", effect["matched"])]  # fmt: skip
        blocks += [
            table(f"Advantage of {first} over {second}: {effect['finding']}", ["", "battles", "advantage"], rows),
            figure(alt, charts.forest(f"seen{k}", alt, drawn, ADVANTAGE)),
        ]
    like = text("<em>Like battles</em>: seen and unseen ones are compared only inside the same quarter of length, "
                "number of turns (one or several) and presence of code, weighted by the seen ones.")  # fmt: skip
    return Section("seen", "Seen prompts", [*blocks, like, text(CAUTION)])


def ties(report: Report) -> Section:
    """Return the section about ties."""
    found = report["ties"]["predictors"]
    if not found:
        return Section("ties", "Ties", [text("This run has no ties, or nothing else.")])
    one = next(iter(found.values()))
    head = ["predictor", "finding", "recall", "precision", "P(tie): ties - decided", "mean P(tie)",
            "loss on ties", "loss on decided", "loss on ties - prior's", "cost of ties",
            "share of the loss"]  # fmt: skip
    rows = [
        [name, t["verdict"], interval(t["recall_interval"], share=True), percent(t["precision"]),
         interval(t["gap"], 3, signed=True), interval(t["mean_p_tie"], share=True), number(t["loss_on_ties"]),
         number(t["loss_on_decided"]), interval(t["excess"], signed=True), number(t["cost"]), percent(t["cost_share"])]
        for name, t in found.items()
    ]  # fmt: skip
    blocks = [
        text("{n} battles ({share}) are ties. <em>Blind</em>: P(tie) is not higher on ties than on decided battles. "
             "<em>Weak</em>: loses more on ties than the prior, which scores {prior} there. The cost of ties is what "
             "they add to the log loss, in nats a battle.",
             n=count(one["n_ties"]), share=percent(one["share"]), prior=number(one["prior_on_ties"])),
        table("Ties by predictor", head, rows),
    ]  # fmt: skip
    confusion = [
        [name, verdict, *(count(v) for v in row)]
        for name, t in found.items()
        for verdict, row in zip(("A wins", "B wins", "tie"), t["confusion"], strict=True)
    ]
    blocks.append(
        table("Confusion: verdict (row) and most probable class", ["predictor", "verdict", "A", "B", "tie"], confusion)
    )
    return Section("ties", "Ties", [*blocks, *_tie_origins(report), *_tie_calibration(found)])


def _tie_origins(report: Report) -> list[Block]:
    rows, names = report["ties"]["origins"], list(report["ties"]["predictors"])
    head = ["battles with", "n", "tie rate", "share of all ties"]
    head += [f"{name}: {what}" for name in names for what in ("mean P(tie)", "loss")]
    cells = []
    for row in rows:
        each = [row["predictors"].get(name, {}) for name in names]
        values = [number(p.get(key), 3) for p in each for key in ("mean_p_tie", "loss")]
        cells.append([row["origin"], count(row["n"]), interval(row["tie_rate"], share=True),
                      percent(row["share_of_ties"]), *values])  # fmt: skip
    known = [row for row in rows if row["n"]]
    series: dict[str, list[float | None]] = {"tie rate": [row["tie_rate"]["value"] for row in known]}
    series |= {name: [row["predictors"][name]["mean_p_tie"] for row in known] for name in names}
    alt = "Tie rate and mean P(tie) of each predictor by the kind of battle; values are in the table above."
    drawn = charts.grouped("tie-origins", alt, [row["origin"] for row in known], series, "share, or mean P(tie)")
    note = text("<em>Both bad</em>: each answer refuses or is empty. <em>Both short</em>: each under 20 words. The "
                "first kind that holds counts.")  # fmt: skip
    return [table("Where ties come from", head, cells), note, figure(alt, drawn)]


def _tie_calibration(found: Report) -> list[Block]:
    curves = {name: t["calibration"] for name, t in found.items()}
    alt = "Observed share of ties by predicted P(tie), one line a predictor, with 95 % intervals."
    drawn = charts.calibration("tie-calibration", alt, curves, ("predicted P(tie)", "observed share of ties"))
    return [figure(alt, drawn)]


def quality(report: Report) -> Section:
    """Return the section about prompt quality."""
    found = report["quality"]
    blocks = [
        text("{n} of {all} prompts, {share}, look like junk by the heuristics below. "
             "<code>data.min_prompt_quality</code> leaves prompts of a lower quality out of <em>training</em> only; "
             "they are still scored.", n=count(found["n_junk"]), all=count(found["n"]),
             share=interval(found["share"], share=True)),
        table("Junk by kind (a prompt may be of several)",
              ["kind", "meaning", "quality", "prompts", "share", "tie rate"],
              [[k["kind"], k["meaning"], number(k["score"], 1), count(k["n"]), percent(k["share"], 2),
                percent(k["tie_rate"])] for k in found["kinds"]]),
        table("What junk costs", ["predictor", "log loss on junk", "on the rest", "difference"],
              [[name, number(e["junk"]), number(e["rest"]), interval(e["cost"], signed=True)]
               for name, e in found["effect"].items()]),
    ]  # fmt: skip
    alt = "Share of prompts by kind of junk; values are in the table."
    bars = [(kind["kind"], 100 * kind["share"]) for kind in found["kinds"]]
    if found["n_junk"]:
        blocks.append(figure(alt, charts.bars("junk", alt, bars, "% of prompts")))
    shown = [[kind["kind"], example] for kind in found["kinds"] for example in kind["examples"]]
    if shown:
        blocks.append(quotes("Examples of junk", shown))
    if found["repeated"]:
        rows = [[text("{n} times", n=count(row["n"])).text, row["text"]] for row in found["repeated"]]
        blocks.append(quotes("Prompts that most battles share word for word", rows))
    return Section("quality", "Prompt quality", blocks)


def calibration(report: Report) -> Section:
    """Return the section about calibration."""
    found = report["calibration"]
    rows = [
        [name, number(s["log_loss"]), number(s["ece"]), number(s["ece_bias"]), number(s["brier"])]
        for name, s in ((name, p["scores"]) for name, p in found["predictors"].items())
    ]
    blocks = [
        table("Calibration by predictor", ["predictor", "log loss", "ECE (top label)", "ECE by chance alone", "Brier"],
              rows),
        text("A perfectly calibrated predictor has about the ECE in the column <em>by chance alone</em>."),
    ]  # fmt: skip
    shown = found["before_after"] or [[name] for name in list(found["predictors"])[:2]]
    for k, names in enumerate(shown):
        alt = f"Reliability diagrams of {' and '.join(names)}: each class and the most probable one, 95 % intervals."
        diagrams = {name: found["predictors"][name]["diagrams"] for name in names}
        blocks.append(figure(alt, charts.reliability(f"reliability{k}", alt, diagrams)))
    if found["temperatures"]:
        blocks.append(
            table("Temperatures", ["model", "fold", "temperature", "first-shown term"],
                  [[t["model"], any_value(t["fold"]), number(t["temperature"]), number(t["first_shown"])]
                   for t in found["temperatures"]])
        )  # fmt: skip
    return Section("calibration", "Calibration", blocks)


def position(report: Report) -> Section:
    """Return the section about position and length bias."""
    found = report["position"]
    rows = [
        [name, interval(m["disagreement"], share=True), interval(m["first_shown"], signed=True),
         interval(m["distance"])]
        for name, m in found["models"].items()
    ]  # fmt: skip
    slopes = [[name, number(value, 3, signed=True)] for name, value in found["length"]["slopes"].items()]
    alt = "P(A wins) - P(B wins) by the ratio of the responses' lengths: verdicts with intervals, and each predictor."
    return Section(
        "position",
        "Position and length bias",
        [
            text("A, the response that was shown first, wins {margin} of the battles more than B.",
                 margin=interval(found["verdicts"], share=True)),
            table("Order of the responses", ["model", "most probable class depends on the order",
                  "first-shown advantage", "distance of the two orders"], rows),
            table("Pull towards the longer response: P(A wins) - P(B wins) per unit of the log ratio of characters",
                  ["", "slope"], slopes),
            figure(alt, charts.length_curves("length", alt, found["length"])),
        ],
    )  # fmt: skip
