"""The page's sections about the run: summary, distillation, data; and the page of several runs."""

from __future__ import annotations

from collections import Counter
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
    table,
    text,
)
from ensemble.report.sections import alone_blocks, comparison_blocks
from oof.classes import CLASSES

Report = dict[str, Any]
ADVISED = {"calibrated": "calibrated ensemble"}


def summary(report: Report) -> Section:
    """Return the head of the page."""
    found = report["summary"]
    rows = [
        [row["predictor"], interval(row["log_loss"]), percent(row["accuracy"]), number(row["brier"]),
         percent(row["tie_recall"]), number(row["ece"])]
        for row in found["table"]
    ]  # fmt: skip
    alt = "Log loss of each predictor with its 95 % interval; values are in the table."
    forest = [(row["predictor"], row["log_loss"]) for row in found["table"]]
    advice = found["submit"]
    blocks = [
        text("Submit the <strong>{choice}</strong>{reason} (<code>make predict {command}</code>).",
             choice=ADVISED.get(advice["choice"], advice["choice"]), command=advice["command"],
             reason=f": {advice['reason']}" if advice["reason"] else ""),
        *_warnings(found["warnings"]),
        table("Out-of-fold scores", ["predictor", "log loss", "accuracy", "Brier", "tie recall", "ECE"], rows),
        figure(alt, charts.forest("summary", alt, forest, "log loss in nats (95 % interval)", zero=False)),
        table("Paired differences of log loss (below 0: the first is better)", ["first", "second", "difference"],
              [[p["first"], p["second"], interval(p["difference"], signed=True)] for p in found["paired"]]),
        text("{n} battles. Intervals resample whole groups of near-duplicate prompts (95 %, percentile bootstrap).",
             n=count(found["n"])),
        *_cost(report["cost"]),
        table(f"Audit of the run: {_statuses(found['audit'])}", ["status", "check", "finding"],
              [[f["status"], f["check"], f["message"]] for f in found["audit"]], folded=True),
        table("Hardware and versions", ["of", "is"],
              [[name, value] for name, value in found["hardware"].items()], folded=True),
    ]  # fmt: skip
    return Section("summary", "Summary", blocks)


def _statuses(findings: list[Report]) -> str:
    counts = Counter(finding["status"] for finding in findings)
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _warnings(warnings: list[str]) -> list[Block]:
    if not warnings:
        return [text("No warnings: no sign of a leak, drift, imbalance, or much truncation.")]
    return [table("Warnings", ["to be looked at"], [[warning] for warning in warnings])]


def _cost(cost: Report) -> list[Block]:
    rows = [
        [row["stage"], any_value(row["architecture"]), any_value(row["attention"]), count(row["jobs"]),
         count(row["parameters"]), count(row["trainable"]), number(row["seconds"], 0),
         number(row["cost"], 2)]
        for row in cost["stages"]
    ]  # fmt: skip
    rows.append(["all", "", "", "", "", "", number(cost["seconds"], 0), number(cost["cost"], 2)])
    head = ["of", "architecture", "attention", "jobs", "parameters", "trained", "seconds", "cost"]
    return [table("Time (cost: report with --price-per-hour)", head, rows)]


def distillation(report: Report) -> Section:
    """Return the section about training curves and the student beside its teacher."""
    blocks: list[Block] = []
    for k, (name, jobs) in enumerate(report["curves"].items()):
        alt = f"Training loss of {name} by step, one line a job."
        series = {job: (c["step"], c["loss"]) for job, c in jobs.items()}
        blocks.append(figure(alt, charts.lines(f"curve{k}", alt, series, ("optimizer step", "training loss"))))
    found = report["distillation"]
    if found:
        blocks = [
            text("Student and teacher (the calibrated ensemble) agree on the most probable class in {agree} of the "
                 "battles; the mean divergence KL(teacher, student) is {kl} nats.",
                 agree=interval(found["agreement"], share=True), kl=interval(found["divergence"])),
            *comparison_blocks(found["comparison"], "distil"),
            *alone_blocks({**found, **found["comparison"]}, "distil"),
            *blocks,
        ]  # fmt: skip
    return Section("distillation", "Distillation and training", blocks)


def data(report: Report) -> Section:
    """Return the section about the data."""
    found = report["data"]
    quantiles = [f"{100 * q:g} %" for q in found["quantiles"]]
    lengths = [[name, *(number(v, 0) for v in row)] for name, row in found["lengths"].items()]
    predictors = list(found["folds"][0]["log_loss"])
    folds = [
        [count(f["fold"]), count(f["n"]), count(f["n_groups"]), *(percent(s) for s in f["shares"]),
         *(number(f["log_loss"][name]) for name in predictors)]
        for f in found["folds"]
    ]  # fmt: skip
    alt = "Battles by the characters of their prompt and responses together."
    histogram = found["histogram"]
    blocks = [
        text("{n} scored battles in {groups} groups, {several} of several battles, the largest of {largest}. "
             "A wins {a}, B wins {b}, ties {tie}.",
             n=count(found["n"]), groups=count(found["n_groups"]), several=count(found["n_groups_of_several"]),
             largest=count(found["largest_group"]),
             **{k: percent(v) for k, v in zip(CLASSES, found["shares"], strict=True)}),
        figure(alt, charts.histogram("lengths", alt, histogram["counts"], histogram["edges"], "characters")),
        table("Characters, quantiles", ["", *quantiles], lengths),
    ]  # fmt: skip
    if found["tokens"]:
        rows = [[t["tokenizer"], count(t["budget"]), percent(t["truncated"]), *(number(v, 0) for v in t["quantiles"])]
                for t in found["tokens"]]  # fmt: skip
        blocks.append(table("Tokens of a battle", ["tokenizer", "budget", "truncated", *quantiles], rows))
    head = ["fold", "battles", "groups", "A wins", "B wins", "ties", *predictors]
    blocks.append(table("Folds: class balance and log loss", head, folds))
    counts = [[name.replace("_", " "), count(value)] for name, value in found["counts"].items()]
    schemas = [[name, schema] for name, schema in found["schemas"].items()]
    if found["dropped"]:
        dropped = [[row["reason"], count(row["n"])] for row in found["dropped"]]
        blocks.append(table("Why rows were dropped (each is in dropped.csv)", ["reason", "rows"], dropped))
    blocks += [table("What was read and dropped", ["", "count"], counts), table("Files", ["file", "schema"], schemas)]
    return Section("data", "Data", blocks)


def comparison(found: Report) -> list[Section]:
    """Return the sections of a comparison of runs."""
    rows = [[r["run"], r["predictor"], count(r["n"]), interval(r["log_loss"])] for r in found["table"]]
    sections = [Section("runs", "Runs", [table("Log loss by run", ["run", "predictor", "battles", "log loss"], rows)])]
    for k, pair in enumerate(found["pairs"]):
        first, second = pair["first"], pair["second"]
        said = text(
            "{n} battles are in both runs ({first}: {a}, {second}: {b}). Differences are paired on these: below 0, "
            "{second} is better. The p-values of the table are adjusted together (Holm).",
            n=count(pair["n_shared"]), a=count(pair["n_first"]), b=count(pair["n_second"]), first=first, second=second,
        )  # fmt: skip
        blocks = [said]
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
            blocks.append(text("No setting differs."))
        sections.append(Section(f"pair-{k}", f"{second} against {first}", blocks))
    return sections
