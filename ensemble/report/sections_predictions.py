"""Page sections on predictors: ties, prompt quality, calibration, position and length bias."""

from __future__ import annotations

from typing import Any

from ensemble.report import charts, charts_probabilities
from ensemble.report.names import junk_name, predictor_name
from ensemble.report.page_elements import (
    Block,
    Section,
    any_value,
    count,
    figure,
    interval,
    number,
    percent,
    quotes,
    table,
    text,
)
from ensemble.report.reliability import CALIBRATOR_TERMS
from ensemble.report.run_data import OUTCOMES

Report = dict[str, Any]


def ties(report: Report) -> Section:
    """Return the section about ties; without blocks where no battle can end in one."""
    if not report["ties"]["possible"]:
        return Section("ties", "Ties", [])
    predictors = report["ties"]["predictors"]
    if not predictors:
        return Section("ties", "Ties", [text("Either no battle or every battle of this run is a tie.")])
    one = next(iter(predictors.values()))
    rows = [[predictor_name(name), t["verdict"], interval(t["gap"], 3, signed=True), percent(t["cost_share"])]
            for name, t in predictors.items()]  # fmt: skip
    head = ["predictor", "recall", "precision", "mean P(tie)", "loss on ties", "loss on decided",
            "loss on ties - class shares'", "cost in nats a battle"]  # fmt: skip
    more = [
        [predictor_name(name), interval(t["recall_interval"], share=True), percent(t["precision"]),
         interval(t["mean_p_tie"], share=True), number(t["loss_on_ties"]), number(t["loss_on_decided"]),
         interval(t["excess"], signed=True), number(t["cost"])]
        for name, t in predictors.items()
    ]  # fmt: skip
    blocks = [
        text("{n} battles ({share}) are ties. <em>Blind</em>: P(tie) is not higher on ties than on decided battles. "
             "<em>Weak</em>: the loss on ties is higher than that of the class shares, {prior}.",
             n=count(one["n_ties"]), share=percent(one["share"]), prior=number(one["prior_on_ties"])),
        table("Ties by predictor", ["predictor", "finding", "P(tie) on ties - on decided", "share of the loss"], rows),
        *_confusions(predictors),
        table("More about ties", head, more, folded=True),
    ]  # fmt: skip
    return Section("ties", "Ties", [*blocks, *_tie_origins(report), *_tie_calibration(predictors)])


def _confusions(predictors: Report) -> list[Block]:
    """Return one heat map per predictor: shares of a verdict's battles by the most probable class."""
    alt = "Confusion: verdict (row) and most probable class (column), share of the row's battles."
    counts = {predictor_name(name): t["confusion"] for name, t in predictors.items()}
    cells = [
        [name, verdict, *(count(v) for v in row)]
        for name, confusion in counts.items()
        for verdict, row in zip(OUTCOMES, confusion, strict=True)
    ]
    return [
        figure(alt, charts_probabilities.confusions("confusion", alt, counts)),
        table("Confusion in battles: verdict (row) and most probable class", ["predictor", "verdict", "A", "B", "tie"],
              cells, folded=True),
    ]  # fmt: skip


def _tie_origins(report: Report) -> list[Block]:
    rows, names = report["ties"]["origins"], list(report["ties"]["predictors"])
    if not rows:  # battles without texts
        return []
    cells = [
        ["battles", *(count(row["n"]) for row in rows)],
        ["tie rate", *(interval(row["tie_rate"], share=True) for row in rows)],
        ["share of all ties", *(percent(row["share_of_ties"]) for row in rows)],
    ]
    for name in names:
        for key, words in (("mean_p_tie", "mean P(tie)"), ("loss", "loss")):
            values = [number(row["predictors"].get(name, {}).get(key), 3) for row in rows]
            cells.append([f"{predictor_name(name)}: {words}", *values])
    kinds = [row["origin"] for row in rows]
    rows = [row for row in rows if row["n"]]
    series: dict[str, list[float | None]] = {"tie rate": [row["tie_rate"]["value"] for row in rows]}
    series |= {predictor_name(name): [row["predictors"][name]["mean_p_tie"] for row in rows] for name in names}
    alt = "Tie rate and mean P(tie) of each predictor by the kind of battle; the table above has the values."
    drawn = charts.grouped("tie-origins", alt, [row["origin"] for row in rows], series, "share, or mean P(tie)")
    note = text("<em>Both bad</em>: each response refuses or is empty. <em>Both short</em>: each has fewer than 20 "
                "words. A battle counts for the first kind that applies.")  # fmt: skip
    return [table("Origins of ties", ["", *kinds], cells), note, figure(alt, drawn)]


def _tie_calibration(predictors: Report) -> list[Block]:
    curves = {predictor_name(name): t["calibration"] for name, t in predictors.items()}
    alt = "Observed share of ties by predicted P(tie), one line per predictor, with 95 % intervals."
    drawn = charts_probabilities.calibration(
        "tie-calibration", alt, curves, ("predicted P(tie)", "observed share of ties")
    )
    return [figure(alt, drawn)]


def prompt_quality(report: Report) -> Section:
    """Return the section about prompt quality."""
    quality = report["quality"]
    if not quality:  # battles without texts
        return Section("quality", "Prompt quality", [])
    blocks = [
        text("{n} of {all} prompts ({share}) are junk by the heuristics below. "
             "<code>data.min_prompt_quality</code> leaves prompts of lower quality out of <em>training</em> only; "
             "they are still scored.", n=count(quality["n_junk"]), all=count(quality["n"]),
             share=interval(quality["share"], share=True)),
        table("Junk by kind (a prompt may have several)",
              ["kind", "meaning", "quality", "prompts", "share", "tie rate"],
              [[junk_name(k["kind"]), k["meaning"], number(k["score"], 1), count(k["n"]), percent(k["share"], 2),
                percent(k["tie_rate"])] for k in quality["kinds"]], folded=not quality["n_junk"]),
    ]  # fmt: skip
    alt = "Share of prompts by kind of junk; the table has the values."
    bars = [(junk_name(kind["kind"]), 100 * kind["share"]) for kind in quality["kinds"]]
    if quality["n_junk"]:
        rows = [[predictor_name(name), number(e["junk"]), number(e["rest"]), interval(e["cost"], signed=True)]
                for name, e in quality["effect"].items()]  # fmt: skip
        blocks.append(table("Log loss on junk", ["predictor", "on junk", "on other prompts", "difference"], rows))
        blocks.append(figure(alt, charts.bars("junk", alt, bars, "% of prompts")))
    examples = [[junk_name(kind["kind"]), example] for kind in quality["kinds"] for example in kind["examples"]]
    if examples:
        blocks.append(quotes("Examples of junk", examples))
    if quality["repeated"]:
        rows = [[text("{n} times", n=count(row["n"])).text, row["text"]] for row in quality["repeated"]]
        blocks.append(quotes("Most frequent prompts, word for word", rows))
    return Section("quality", "Prompt quality", blocks)


def calibration(report: Report) -> Section:
    """Return the section about calibration."""
    content = report["calibration"]
    rows = [
        [predictor_name(name), number(s["log_loss"]), number(s["ece"]), number(s["ece_bias"]), number(s["brier"])]
        for name, s in ((name, p["scores"]) for name, p in content["predictors"].items())
    ]
    blocks = [
        table("Calibration by predictor", ["predictor", "log loss", "ECE (top label)", "ECE by chance alone", "Brier"],
              rows),
        text("Calibrated: of the battles with a predicted probability of 0.3, 30 % have that verdict, and the marks in "
             "the diagrams lie on the dashed line. Above it a verdict is more frequent than predicted, below it less. "
             "The <em>ECE</em> (expected calibration error) is the mean distance from the line for the most probable "
             "class. Of so many battles, even a perfectly calibrated predictor has about the ECE in the column <em>by "
             "chance alone</em>."),
    ]  # fmt: skip
    shown = content["before_after"] or [[name] for name in list(content["predictors"])[:2]]
    for k, names in enumerate(shown):
        diagrams = {predictor_name(name): content["predictors"][name]["diagrams"] for name in names}
        alt = f"Reliability diagrams of {' and '.join(diagrams)}: per class and most probable class, 95 % intervals."
        blocks.append(figure(alt, charts_probabilities.reliability(f"reliability{k}", alt, diagrams)))
    if content["temperatures"]:
        shown_terms = [name for name in CALIBRATOR_TERMS if any(c[name] is not None for c in content["temperatures"])]
        blocks += [
            table(
                "Calibrators",
                ["model", "fold", *(CALIBRATOR_TERMS[name] for name in shown_terms)],
                [
                    [
                        c["model"],
                        "all battles" if c["fold"] == "final" else any_value(c["fold"]),
                        *(number(c[name]) for name in shown_terms),
                    ]
                    for c in content["temperatures"]
                ],
            ),
            text(
                "Log-probabilities are divided by the temperature. That of a tie is then multiplied by its scale and "
                "gets its bias. The position bias is added to A, which is shown first, and subtracted from B; the "
                "scale of A multiplies A and divides B. Scales of 1 and biases of 0 change nothing."
            ),
        ]
    return Section("calibration", "Calibration", blocks)


def biases(report: Report) -> Section:
    """Return the section about position and length bias."""
    bias = report["position"]
    rows = [
        [predictor_name(name), interval(m["disagreement"], share=True), interval(m["first_shown"], signed=True),
         interval(m["distance"])]
        for name, m in bias["models"].items()
    ]  # fmt: skip
    return Section(
        "position",
        "Position and length bias",
        [
            text("Position bias of the verdicts: {margin}, the share of battles that A, the response shown first, wins "
                 "minus the share that B wins.", margin=interval(bias["verdicts"], share=True)),
            table("Position bias of the models", ["model", "most probable class depends on the order",
                  "P(first wins) - P(second wins)", "distance between the orders"], rows),
            *_length_bias(bias["length"]),
        ],
    )  # fmt: skip


def _length_bias(length: Report | None) -> list[Block]:
    """Return table and figure; nothing of battles without texts."""
    if length is None:
        return []
    slopes = [[predictor_name(name), number(value, 3, signed=True)] for name, value in length["slopes"].items()]
    alt = "P(A wins) - P(B wins) by the ratio of the responses' lengths: verdicts with intervals, predictors as lines."
    named = length | {"predictors": {predictor_name(name): rows for name, rows in length["predictors"].items()}}
    title = "Length bias: slope of P(A wins) - P(B wins) by the log ratio of characters"
    return [table(title, ["", "slope"], slopes), figure(alt, charts_probabilities.length_curves("length", alt, named))]
