"""Page sections on the run: summary, distillation and training, data; and the comparison of runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ensemble.report import charts
from ensemble.report.page_elements import (
    Block,
    Section,
    any_value,
    count,
    figure,
    interval,
    number,
    p_value,
    percent,
    table,
    text,
)
from ensemble.report.sections_members import case_blocks, comparison_blocks
from oof.classes import CLASSES, classes_of_data

Report = dict[str, Any]
CHOICES = {"calibrated": "calibrated ensemble"}  # the other models are shown by their names


def summary(report: Report) -> Section:
    """Return the first section of the page."""
    content, ties = report["summary"], report["ties"]["possible"]
    head = ["predictor", "log loss", "accuracy", "Brier", *(["tie recall"] if ties else []), "ECE"]
    rows = [
        [row["predictor"], interval(row["log_loss"]), percent(row["accuracy"]), number(row["brier"]),
         *([percent(row["tie_recall"])] if ties else []), number(row["ece"])]
        for row in content["table"]
    ]  # fmt: skip
    alt = "Log loss of each predictor with its 95 % interval; the table has the values."
    forest = [(row["predictor"], row["log_loss"]) for row in content["table"]]
    submit = content["submit"]
    blocks = [
        text("Submit the <strong>{choice}</strong>{reason} (<code>make predict {command}</code>).",
             choice=CHOICES.get(submit["choice"], submit["choice"]), command=submit["command"],
             reason=f": {submit['reason']}" if submit["reason"] else ""),
        *_warnings(content["warnings"]),
        table("Out-of-fold scores", head, rows),
        figure(alt, charts.forest("summary", alt, forest, "log loss in nats (95 % interval)", zero=False)),
        table("Paired differences of log loss (below 0: the first is better)", ["first", "second", "difference"],
              [[p["first"], p["second"], interval(p["difference"], signed=True)] for p in content["paired"]]),
        text("{n} battles. 95 % intervals over groups of near-duplicate prompts: percentile bootstrap, and where there "
             "are few groups the jackknife with Student's t.", n=count(content["n"])),
        *_cost(report["cost"]),
        table(f"Audit of the run: {_statuses(content['audit'])}", ["status", "check", "finding"],
              [[f["status"], f["check"], f["message"]] for f in content["audit"]], folded=True),
        table("Hardware and versions", ["item", "value"],
              [[name, value] for name, value in content["hardware"].items()], folded=True),
    ]  # fmt: skip
    return Section("summary", "Summary", blocks)


def _statuses(findings: list[Report]) -> str:
    counts = Counter(finding["status"] for finding in findings)
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _warnings(warnings: list[str]) -> list[Block]:
    if not warnings:
        return [text("No warnings: no sign of leakage, drift, imbalance or much truncation.")]
    return [table("Warnings", ["warning"], [[warning] for warning in warnings])]


def _cost(cost: Report) -> list[Block]:
    rows = [
        [row["stage"], any_value(row["architecture"]), any_value(row["attention"]), count(row["jobs"]),
         count(row["parameters"]), count(row["trainable"]), number(row["seconds"], 0),
         number(row["cost"], 2)]
        for row in cost["stages"]
    ]  # fmt: skip
    rows.append(["all", "", "", "", "", "", number(cost["seconds"], 0), number(cost["cost"], 2)])
    head = ["stage", "architecture", "attention", "jobs", "parameters", "trained", "seconds", "cost"]
    return [table("Time and cost (for cost, give --price-per-hour)", head, rows)]


def distillation(report: Report) -> Section:
    """Return the section about training curves and the comparison of student and ensemble."""
    blocks: list[Block] = []
    for k, (name, jobs) in enumerate(report["curves"].items()):
        alt = f"Training loss of {name} by step, one line per job."
        series = {job: (c["step"], c["loss"]) for job, c in jobs.items()}
        blocks.append(figure(alt, charts.lines(f"curve{k}", alt, series, ("optimizer step", "training loss"))))
    content = report["distillation"]
    if content:
        blocks = [
            text("The student and calibrated, the ensemble, agree on the most probable class in {agree} of the "
                 "battles; the mean divergence KL(calibrated, student) is {kl} nats.",
                 agree=interval(content["agreement"], share=True), kl=interval(content["divergence"])),
            *comparison_blocks(content["comparison"], "distil"),
            *case_blocks({**content, **content["comparison"]}, "distil"),
            *blocks,
        ]  # fmt: skip
    return Section("distillation", "Distillation and training", blocks)


def data(report: Report) -> Section:
    """Return the section about the data."""
    content, classes = report["data"], classes_of_data(report["ties"]["possible"])
    quantiles = [f"{100 * q:g} %" for q in content["quantiles"]]
    lengths = [[name, *(number(v, 0) for v in row)] for name, row in content["lengths"].items()]
    predictors = list(content["folds"][0]["log_loss"])
    folds = [
        [count(f["fold"]), count(f["n"]), count(f["n_groups"]), *(percent(s) for s in f["shares"][: len(classes)]),
         *(number(f["log_loss"][name]) for name in predictors)]
        for f in content["folds"]
    ]  # fmt: skip
    alt = "Number of battles by the characters of prompt and responses together."
    histogram = content["histogram"]
    blocks = [
        text("{n} scored battles in {groups} groups; {several} groups have several battles, the largest {largest}. "
             "A wins {a}, B wins {b}" + (", ties {tie}." if "tie" in classes else "."),
             n=count(content["n"]), groups=count(content["n_groups"]), several=count(content["n_groups_of_several"]),
             largest=count(content["largest_group"]),
             **{k: percent(v) for k, v in zip(CLASSES, content["shares"], strict=True)}),
    ]  # fmt: skip
    if lengths:
        drawn = charts.histogram("lengths", alt, histogram["counts"], histogram["edges"], "characters")
        blocks += [figure(alt, drawn), table("Quantiles of characters", ["", *quantiles], lengths)]
    else:
        blocks.append(text("The battles have no texts, so this page has no slices by text, prompt quality or lengths."))
    if content["tokens"]:
        rows = [[t["tokenizer"], count(t["budget"]), percent(t["truncated"]), *(number(v, 0) for v in t["quantiles"])]
                for t in content["tokens"]]  # fmt: skip
        blocks.append(table("Tokens per battle", ["tokenizer", "budget", "truncated", *quantiles], rows))
    head = ["fold", "battles", "groups", *("A wins", "B wins", "ties")[: len(classes)], *predictors]
    blocks.append(table("Folds: class balance and log loss", head, folds))
    counts = [[name.replace("_", " "), count(value)] for name, value in content["counts"].items()]
    schemas = [[name, schema] for name, schema in content["schemas"].items()]
    if content["dropped"]:
        dropped = [[row["reason"], count(row["n"])] for row in content["dropped"]]
        blocks.append(table("Reasons for dropped rows (dropped.csv lists each row)", ["reason", "rows"], dropped))
    blocks += [table("Rows read and dropped", ["", "count"], counts), table("Files", ["file", "schema"], schemas)]
    return Section("data", "Data", blocks)


def run_comparison(content: Report) -> list[Section]:
    """Return the sections of a comparison of runs."""
    rows = [[r["run"], r["predictor"], count(r["n"]), interval(r["log_loss"])] for r in content["table"]]
    sections = [Section("runs", "Runs", [table("Log loss by run", ["run", "predictor", "battles", "log loss"], rows)])]
    for k, pair in enumerate(content["pairs"]):
        first, second = pair["first"], pair["second"]
        note = text(
            "{n} battles are in both runs ({first}: {a}, {second}: {b}). Differences are paired on them: below 0, "
            "{second} is better. The p-values in the table are adjusted together (Holm).",
            n=count(pair["n_shared"]), a=count(pair["n_first"]), b=count(pair["n_second"]), first=first, second=second,
        )  # fmt: skip
        blocks = [note]
        if pair["rows"]:
            head = ["predictor", f"log loss {first}", f"log loss {second}", f"{second} - {first}", "p (Holm)"]
            cells = [[r["predictor"], number(r["first"]), number(r["second"]), interval(r["difference"], signed=True),
                      p_value(r["p_adjusted"])] for r in pair["rows"]]  # fmt: skip
            alt = f"Log loss of {second} minus {first} on shared battles by predictor, with 95 % intervals."
            forest = [(r["predictor"], r["difference"]) for r in pair["rows"]]
            blocks += [
                table(f"{second} against {first}, paired", head, cells),
                figure(alt, charts.forest(f"runs{k}", alt, forest, "difference of log loss (95 % interval)")),
            ]
        if pair["settings"]:
            settings = [[s["setting"], s["first"], s["second"]] for s in pair["settings"]]
            blocks.append(
                table("Settings that differ", ["setting", first, second], settings, folded=len(settings) > 30)
            )
        else:
            blocks.append(text("The settings are equal."))
        sections.append(Section(f"pair-{k}", f"{second} against {first}", blocks))
    return sections
