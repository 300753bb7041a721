"""The page's section about stage two: combiners, importances, studies, ablations and the learning curve."""

from __future__ import annotations

from typing import Any

from ensemble.report import charts
from ensemble.report.blocks import Block, Section, any_value, count, figure, interval, percent, table, text

Report = dict[str, Any]
FOLD = 12  # rows from which a table of another file starts folded
TOP = 15  # features in the figure
BESIDE = ("expected_if_calibrated", "upper_if_calibrated")  # what a metric may stand beside


def stack(report: Report) -> Section:
    """Return the section about the stack."""
    found = report["stack"]
    if not found:
        return Section("stack", "Stack", [])
    blocks = [*_combiners(found), *_importances(found["importances"]), *_studies(found["studies"]), *_tuned(found)]
    if found["ablations"]:
        blocks += _ablations(found["ablations"])
    for name, part in found["scores"].items():
        head, rows = long_table(part)
        blocks.append(table(f"stack/scores.json: {name}", head, rows, folded=len(rows) > FOLD))
    return Section("stack", "Stack", blocks)


def long_table(part: list[Report]) -> tuple[list[str], list[list[Any]]]:
    """Return head and cells of flattened rows, one a row and metric: a file's tables may have dozens of metrics."""
    names = list(dict.fromkeys(key for row in part for key, value in row.items() if isinstance(value, str)))
    extra = [key for key in BESIDE if any(name.endswith(f" {key}") for row in part for name in row)]
    cells = []
    for row in part:
        metrics = dict.fromkeys(_metric(key) for key, value in row.items() if not isinstance(value, str))
        for metric in metrics:
            found = {key: row.get(f"{metric} {key}") for key in ("value", "low", "high", *extra)}
            shown = interval(found, signed="difference" in metric) if found["value"] is not None else None
            cells.append([*(row.get(name, "") for name in names), metric.replace("_", " "),
                          shown or any_value(row.get(metric)), *(any_value(found[key]) for key in extra)])  # fmt: skip
    return [*names, "metric", "value", *(key.replace("_", " ") for key in extra)], cells


def _metric(key: str) -> str:
    for ending in ("value", "low", "high", *BESIDE):
        key = key.removesuffix(f" {ending}")
    return key


def _combiners(found: Report) -> list[Block]:
    blocks, rows = [], found["combiners"]
    if found["final"]:
        blocks.append(text("New battles are combined by <strong>{combiner}</strong>: {reason}.", **found["final"]))
    if rows:
        alt = "Cross-fitted log loss of each combiner with its 95 % interval; values are in the table."
        drawn = [(row["combiner"], row["log_loss"]) for row in rows]
        blocks += [
            table("Combiners, cross-fitted", ["combiner", "log loss"],
                  [[row["combiner"], interval(row["log_loss"])] for row in rows]),
            figure(alt, charts.forest("combiners", alt, drawn, "log loss in nats (95 % interval)", zero=False)),
        ]  # fmt: skip
    return blocks


def _importances(rows: list[Report]) -> list[Block]:
    if not rows:
        return []
    top = rows[:TOP]
    alt = f"The {len(top)} features with the largest share of the boosters' gain; values are in the table."
    return [
        figure(alt, charts.bars("gain", alt, [(r["feature"], 100 * r["gain_share"]) for r in top], "% of gain")),
        table("Features that the boosters split on", ["feature", "share of gain", "splits"],
              [[r["feature"], percent(r["gain_share"]), count(r["splits"])] for r in rows], folded=True),
    ]  # fmt: skip


def _studies(studies: dict[str, Report]) -> list[Block]:
    if not studies:
        return []
    alt = "Optuna history: inner log loss of each trial (marks) and the best so far (lines), one colour a study."
    return [figure(alt, charts.studies("studies", alt, studies, ("trial", "inner log loss")))]


def _tuned(found: Report) -> list[Block]:
    keys = list(dict.fromkeys(key for row in found["folds"] for key in row))
    rows = [[any_value(row.get(key)) for key in keys] for row in found["folds"]]
    return [table("Tuned parameters by outer fold", keys, rows)] if keys else []


def _ablations(found: Report) -> list[Block]:
    head = ["", "log loss", "minus full"]
    rows = [["full", interval(found["full"]), ""]]
    rows += [[r["name"], interval(r["log_loss"]), interval(r["difference"], signed=True)] for r in found["without"]]
    alt = "Log loss without a part minus that with all of them, with 95 % intervals; values are in the table."
    drawn = [(row["name"].removeprefix("without-"), row["difference"]) for row in found["without"]]
    curve = [[count(round(row["battles"])), interval(row["log_loss"]), interval(row["difference"], signed=True)]
             for row in found["learning_curve"]]  # fmt: skip
    learning = "Log loss by the number of battles that the stack was trained on, minus that with all, 95 % intervals."
    points = [(row["battles"], row["difference"]) for row in found["learning_curve"]]
    blocks = [
        table("What each part was worth: the stack without it", head, rows, folded=len(rows) > 2 * FOLD),
        figure(f"{alt} Right of 0, the part is worth something.",
               charts.forest("ablations", alt, drawn, "log loss minus full (95 % interval)")),
        table("Learning curve of the stack", ["training battles", *head[1:]], curve),
        figure(learning, charts.learning("learning", learning, points, ("training battles", "log loss minus full"))),
    ]  # fmt: skip
    if found["gain"]:
        said = "Share of the boosters' gain by family of features, with all of them."
        gains = [(row["family"], 100 * row["gain_share"]) for row in found["gain"]]
        blocks.append(figure(said, charts.bars("families", said, gains, "% of gain")))
    return [*blocks, text("{note}.", note=found["note"][:1].upper() + found["note"][1:])]
