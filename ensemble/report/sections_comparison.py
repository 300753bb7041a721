"""Sections of the page that compares runs: what they have in common, predictors by runs, each run against the first."""

from __future__ import annotations

from typing import Any

from ensemble.report import charts
from ensemble.report.conclusion import say
from ensemble.report.names import predictor_name
from ensemble.report.page_elements import (
    Block,
    Section,
    count,
    figure,
    interval,
    number,
    p_value,
    sentences,
    table,
    text,
)
from ensemble.statistics.interval_words import above_zero, below_zero

Report = dict[str, Any]
FOLD = 30  # longer tables of settings start folded


def run_comparison(content: Report) -> list[Section]:
    """Return the sections of a comparison of runs."""
    pairs = content["pairs"]
    apart = [say("<strong>No battles in common</strong>: {second} and {first} have no battle with the same id, verdict "
                 "and texts, so their losses are of different data and cannot be compared.",
                 first=pair["first"], second=pair["second"]) for pair in pairs if not pair["n_shared"]]  # fmt: skip
    blocks = [sentences("Warnings", apart)] if apart else []
    findings = [
        _finding(pair, row) for pair in pairs for row in pair["rows"] if row["predictor"] in ("calibrated", "student")
    ]
    blocks += [sentences("Findings", findings)] if findings else []
    blocks.append(_by_run(content))
    sections = [Section("runs", "Runs", blocks)]
    for k, pair in enumerate(pairs):
        title = f"{pair['second']} against {pair['first']}"
        sections.append(Section(f"pair-{k}", title, [*_paired(pair, k), *_settings(pair)]))
    return sections


def _finding(pair: Report, row: Report) -> Any:
    """Say whether the second run's model is better than the first run's."""
    difference = row["difference"]
    if below_zero(difference):
        finding = "is better than"
    else:
        finding = "is worse than" if above_zero(difference) else "is not shown to differ from"
    return say("The {name} of {second} {finding} that of {first}: {d}.", name=predictor_name(row["predictor"]),
               second=pair["second"], finding=finding, first=pair["first"],
               d=interval(difference, signed=True))  # fmt: skip


def _by_run(content: Report) -> Block:
    """Return a table of predictors (rows) by runs (columns): loss on the run's own battles, and paired difference."""
    losses = {(row["run"], row["predictor"]): row for row in content["table"]}
    predictors = list(dict.fromkeys(row["predictor"] for row in content["table"]))
    battles = {row["run"]: row["n"] for row in content["table"]}
    rows = [["battles", *(count(battles[run]) for run in content["runs"])]]
    differences = {(p["second"], row["predictor"]): row["difference"] for p in content["pairs"] for row in p["rows"]}

    def cell(run: str, name: str) -> Any:
        if (run, name) not in losses:
            return ""
        loss = interval(losses[run, name]["log_loss"])
        paired = differences.get((run, name))
        return loss if paired is None else loss + say(
            ' <span class="label">paired: {d}</span>', d=interval(paired, signed=True))  # fmt: skip

    rows += [[predictor_name(name), *(cell(run, name) for run in content["runs"])] for name in predictors]
    title = f"Log loss by run, each on its own battles; paired differences are to {content['runs'][0]}"
    return table(title, ["predictor", *content["runs"]], rows)


def _paired(pair: Report, k: int) -> list[Block]:
    first, second = pair["first"], pair["second"]
    note = text(
        "{n} battles are in both runs ({first}: {a}, {second}: {b}). Differences are paired on them: below 0, "
        "{second} is better. The p-values in the table are adjusted together (Holm).",
        n=count(pair["n_shared"]), a=count(pair["n_first"]), b=count(pair["n_second"]), first=first, second=second,
    )  # fmt: skip
    if not pair["rows"]:
        return [note]
    head = ["predictor", f"log loss {first}", f"log loss {second}", f"{second} - {first}", "p (Holm)"]
    cells = [[predictor_name(r["predictor"]), number(r["first"]), number(r["second"]),
              interval(r["difference"], signed=True), p_value(r["p_adjusted"])] for r in pair["rows"]]  # fmt: skip
    alt = f"Log loss of {second} minus {first} on shared battles by predictor, with 95 % intervals."
    forest = [(predictor_name(r["predictor"]), r["difference"]) for r in pair["rows"]]
    return [
        note,
        table(f"{second} against {first}, paired", head, cells),
        figure(alt, charts.forest(f"runs{k}", alt, forest, "difference of log loss (95 % interval)")),
    ]


def _settings(pair: Report) -> list[Block]:
    settings = [[s["setting"], s["first"], s["second"]] for s in pair["settings"]]
    if not settings:
        return [text("The settings are equal.")]
    head = ["setting", pair["first"], pair["second"]]
    return [table("Settings that differ", head, settings, folded=len(settings) > FOLD)]
