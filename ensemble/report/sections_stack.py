"""Page section on stage two: combiners, feature importances, tuning, ablations, learning curve."""

from __future__ import annotations

from typing import Any

from ensemble.report import charts
from ensemble.report.page_elements import Block, Section, any_value, count, figure, interval, percent, table, text

Report = dict[str, Any]
FOLD = 12  # longer tables start folded
TOP = 15  # features in the figure
EXPECTED = ("expected_if_calibrated", "upper_if_calibrated")  # further columns of a calibration error


def stack(report: Report) -> Section:
    """Return the section about the stack."""
    content = report["stack"]
    if not content:
        return Section("stack", "Stack", [])
    blocks = [
        *_combiners(content),
        *_importances(content["importances"]),
        *_studies(content["studies"]),
        *_tuned(content),
    ]
    if content["ablations"]:
        blocks += _ablations(content["ablations"])
    for name, flat_rows in content["scores"].items():
        head, rows = long_table(flat_rows)
        blocks.append(table(f"stack/scores.json: {name}", head, rows, folded=len(rows) > FOLD))
    return Section("stack", "Stack", blocks)


def long_table(flat_rows: list[Report]) -> tuple[list[str], list[list[Any]]]:
    """Return head and cells of a table with one row per given row and metric: there may be dozens of metrics."""
    names = list(dict.fromkeys(key for row in flat_rows for key, value in row.items() if isinstance(value, str)))
    extra = [key for key in EXPECTED if any(name.endswith(f" {key}") for row in flat_rows for name in row)]
    cells = []
    for row in flat_rows:
        metrics = dict.fromkeys(_metric(key) for key, value in row.items() if not isinstance(value, str))
        for metric in metrics:
            values = {key: row.get(f"{metric} {key}") for key in ("value", "low", "high", *extra)}
            shown = interval(values, signed="difference" in metric) if values["value"] is not None else None
            cells.append([*(row.get(name, "") for name in names), metric.replace("_", " "),
                          shown or any_value(row.get(metric)), *(any_value(values[key]) for key in extra)])  # fmt: skip
    return [*names, "metric", "value", *(key.replace("_", " ") for key in extra)], cells


def _metric(key: str) -> str:
    for ending in ("value", "low", "high", *EXPECTED):
        key = key.removesuffix(f" {ending}")
    return key


def _combiners(content: Report) -> list[Block]:
    blocks, rows = [], content["combiners"]
    if content["final"]:
        blocks.append(text("For new battles <strong>{combiner}</strong> is used: {reason}.", **content["final"]))
    if rows:
        alt = "Cross-fitted log loss of each combiner with its 95 % interval; the table has the values."
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
    alt = f"The {len(top)} features with the largest share of the boosters' gain; the table has the values."
    return [
        figure(alt, charts.bars("gain", alt, [(r["feature"], 100 * r["gain_share"]) for r in top], "% of gain")),
        table("Features that the boosters split on", ["feature", "share of gain", "splits"],
              [[r["feature"], percent(r["gain_share"]), count(r["splits"])] for r in rows], folded=True),
    ]  # fmt: skip


def _studies(studies: dict[str, Report]) -> list[Block]:
    if not studies:
        return []
    alt = "Optuna history: inner log loss of each trial (marks) and the best so far (lines), one colour per study."
    return [figure(alt, charts.studies("studies", alt, studies, ("trial", "inner log loss")))]


def _tuned(content: Report) -> list[Block]:
    keys = list(dict.fromkeys(key for row in content["folds"] for key in row))
    rows = [[any_value(row.get(key)) for key in keys] for row in content["folds"]]
    return [table("Tuned parameters by outer fold", keys, rows)] if keys else []


def _ablations(ablations: Report) -> list[Block]:
    head = ["", "log loss", "minus full"]
    rows = [["full", interval(ablations["full"]), ""]]
    rows += [[r["name"], interval(r["log_loss"]), interval(r["difference"], signed=True)] for r in ablations["without"]]
    alt = "Log loss without a part minus log loss of the full stack, with 95 % intervals; the table has the values."
    drawn = [(row["name"].removeprefix("without-"), row["difference"]) for row in ablations["without"]]
    curve = [[count(round(row["battles"])), interval(row["log_loss"]), interval(row["difference"], signed=True)]
             for row in ablations["learning_curve"]]  # fmt: skip
    learning = "Log loss by the number of training battles minus log loss with all of them, with 95 % intervals."
    points = [(row["battles"], row["difference"]) for row in ablations["learning_curve"]]
    blocks = [
        table("Ablations: the stack without one part", head, rows, folded=len(rows) > 2 * FOLD),
        figure(f"{alt} Right of 0, the part reduces the log loss.",
               charts.forest("ablations", alt, drawn, "log loss minus full (95 % interval)")),
        table("Learning curve of the stack", ["training battles", *head[1:]], curve),
        figure(learning, charts.learning("learning", learning, points, ("training battles", "log loss minus full"))),
    ]  # fmt: skip
    if ablations["gain"]:
        gain_alt = "Share of the full stack's gain by family of features."
        gains = [(row["family"], 100 * row["gain_share"]) for row in ablations["gain"]]
        blocks.append(figure(gain_alt, charts.bars("families", gain_alt, gains, "% of gain")))
    return [*blocks, text("{note}.", note=ablations["note"][:1].upper() + ablations["note"][1:])]
