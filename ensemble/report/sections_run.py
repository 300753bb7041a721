"""Page sections on the run: distillation and training, data, time and versions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ensemble.report import charts
from ensemble.report.conclusion import say
from ensemble.report.names import VERDICTS, job_name, predictor_name
from ensemble.report.page_elements import (
    Block,
    Section,
    any_value,
    count,
    figure,
    interval,
    number,
    percent,
    table,
    text,
)
from ensemble.report.sections_members import case_blocks, comparison_blocks
from oof.classes import CLASSES, classes_of_data

Report = dict[str, Any]
ALWAYS_SHOWN = ("rows_read", "rows_dropped")  # counts that are shown even where they are 0
CURVES = (
    "Each line is one training. The student's loss includes its distance from the ensemble's probabilities, so its "
    "scale is not that of the members. A value is of a few batches and therefore noisy; how good the models are on "
    "battles that they were not trained on is in the leaderboard."
)
COUNT_WORDS = {
    "both_bad": "battles with both responses judged bad",
    "empty_responses": "battles with an empty response",
    "identical_responses": "battles with identical responses",
    "ids_made": "ids made from the texts",
    "ids_renamed": "ids changed, because several files have them",
    "lone_surrogates": "turns with broken characters (lone surrogates)",
    "nul_characters": "turns with NUL characters",
    "null_turns": "turns without text (null)",
}


def reproduction(report: Report) -> Section:
    """Return the section about time, cost, the audit, hardware and versions."""
    content = report["summary"]
    blocks = [
        *_cost(report["cost"]),
        table(f"Audit of the run: {_statuses(content['audit'])}", ["status", "check", "finding"],
              [[f["status"], f["check"], f["message"]] for f in content["audit"]], folded=True),
        table("Hardware and versions", ["item", "value"],
              [[name, value] for name, value in content["hardware"].items()], folded=True),
    ]  # fmt: skip
    return Section("run", "Time, audit, versions", blocks)


def _statuses(findings: list[Report]) -> str:
    counts = Counter(finding["status"] for finding in findings)
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


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
        alt = f"Training loss of {predictor_name(name)} by step, one line per job."
        series = {job_name(job): (c["step"], c["loss"]) for job, c in jobs.items()}
        blocks.append(figure(alt, charts.lines(f"curve{k}", alt, series, ("optimizer step", "training loss"))))
    if blocks:
        blocks.append(text(CURVES))
    content = report["distillation"]
    if content:
        seeds = content["seeds"]
        average = say(" Each student is the average of the weights of {n} trainings (distill.seeds).", n=count(seeds))
        blocks = [
            text("The student and the ensemble agree on the most probable class in {agree} of the battles; the mean "
                 "divergence KL(ensemble, student) is {kl} nats.{average}",
                 agree=interval(content["agreement"], share=True), kl=interval(content["divergence"]),
                 average=average if seeds > 1 else ""),
            *comparison_blocks(content["comparison"], "distil"),
            *case_blocks({**content, **content["comparison"]}, "distil"),
            *blocks,
        ]  # fmt: skip
    elif blocks:  # fold jobs; others' logits have no student
        blocks.append(text("No student yet: <code>arena-distill distill --run RUN</code> distils one."))
    return Section("distillation", "Distillation and training", blocks)


def data(report: Report) -> Section:
    """Return the section about the data."""
    content, classes = report["data"], classes_of_data(report["ties"]["possible"])
    quantiles = [f"{100 * q:g} %" for q in content["quantiles"]]
    lengths = [[name, *(number(v, 0) for v in row)] for name, row in content["lengths"].items()]
    predictors = list(content["folds"][0]["log_loss"])
    per_fold = content["folds"]
    folds = [
        ["battles", *(count(f["n"]) for f in per_fold)],
        ["groups", *(count(f["n_groups"]) for f in per_fold)],
        *([name, *(percent(f["shares"][c]) for f in per_fold)] for c, name in enumerate(VERDICTS[: len(classes)])),
        *([f"log loss: {predictor_name(name)}", *(number(f["log_loss"][name]) for f in per_fold)]
          for name in predictors),
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
        rows = [[", ".join(t["readers"]), count(t["budget"]), percent(t["truncated"]), percent(t["kept"]),
                 *(number(v, 0) for v in t["quantiles"])] for t in content["tokens"]]  # fmt: skip
        head = ["reader", "limit", "battles cut", "tokens read", *quantiles]
        blocks.append(table("Tokens per battle, and how many are read", head, rows))
    head = ["", *(f"fold {f['fold']}" for f in per_fold)]
    blocks.append(table("Folds: class balance and log loss", head, folds))
    counts = [[COUNT_WORDS.get(name, name.replace("_", " ")), count(value)]
              for name, value in content["counts"].items() if value or name in ALWAYS_SHOWN]  # fmt: skip
    schemas = [[name, schema] for name, schema in content["schemas"].items()]
    if content["dropped"]:
        dropped = [[row["reason"], count(row["n"])] for row in content["dropped"]]
        blocks.append(table("Reasons for dropped rows (dropped.csv lists each row)", ["reason", "rows"], dropped))
    if content["codings"]:
        rows = [[row["file"], row["coding"], *(count(row["verdicts"][name]) for name in classes),
                 count(row["dropped"])] for row in content["codings"]]  # fmt: skip
        head = ["file", "column = value → verdict", *VERDICTS[: len(classes)], "rows dropped"]
        blocks.append(table("How the verdicts were read from the files", head, rows))
    elif content["verdicts"]:  # a run of an earlier version, which kept no more
        coding = [[value, name.replace("_", " ")] for value, name in content["verdicts"].items()]
        blocks.append(table("Coding of the verdicts (data.verdicts)", ["in the files", "verdict"], coding))
    blocks += [table("Rows read and dropped", ["", "count"], counts), table("Files", ["file", "schema"], schemas)]
    return Section("data", "Data", blocks)
