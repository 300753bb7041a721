"""Page section on stage two: combiners, feature importances, tuning, ablations, learning curve."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report import charts
from ensemble.report.names import combiner_name, combiner_words, feature_name, job_name, metric_name, predictor_name
from ensemble.report.page_elements import Block, Section, any_value, count, figure, interval, percent, table, text

Report = dict[str, Any]
FOLD = 12  # longer tables start folded
TOP = 15  # features in the figure
TREES = "lightgbm"
EXPECTED = {  # further columns of a calibration error, and their headings
    "expected_if_calibrated": "by chance alone",
    "upper_if_calibrated": "95 % of chance below",
}
COLUMNS = {"name": "predictor", "first": "first", "second": "second"}
SCORES = {"predictors": "All scores of all predictors", "paired": "All paired differences (first minus second)"}


def stack(report: Report) -> Section:
    """Return the section about the stack; without stage two the command that runs it."""
    content = report["stack"]
    if not content:
        fill = Markup("Not run yet: <code>arena-distill stack --run RUN</code> stacks and calibrates the members.")
        return Section("stack", "Stack", [], fill)
    blocks = [
        *_combiners(content),
        *_importances(content, report["summary"]["members"]),
        *_studies(content["studies"]),
        *_tuned(content),
    ]
    if content["ablations"]:
        blocks += _ablations(content["ablations"])
    else:
        blocks.append(text("Ablations have not been measured: <code>arena-distill ablate --run RUN</code>."))
    for name, flat_rows in content["scores"].items():
        head, rows = long_table(flat_rows)
        blocks.append(table(SCORES[name], head, rows, folded=len(rows) > FOLD))
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
            cells.append([*(predictor_name(row.get(name, "")) for name in names), metric_name(metric),
                          shown or any_value(row.get(metric)), *(any_value(values[key]) for key in extra)])  # fmt: skip
    columns = [COLUMNS.get(name, name) for name in names]
    return [*columns, "metric", "value", *(EXPECTED[key] for key in extra)], cells


def _metric(key: str) -> str:
    for ending in ("value", "low", "high", *EXPECTED):
        key = key.removesuffix(f" {ending}")
    return key


def _combiners(content: Report) -> list[Block]:
    blocks, rows = [], content["combiners"]
    if content["final"]:
        final = content["final"]
        name, reason = combiner_name(final["combiner"]), combiner_words(final["reason"])
        blocks.append(text("For new battles the <strong>{name}</strong> is used: {reason}.", name=name, reason=reason))
    if rows:
        alt = "Cross-fitted log loss of each combiner with its 95 % interval; the table has the values."
        drawn = [(combiner_name(row["combiner"]), row["log_loss"]) for row in rows]
        blocks += [
            table("Combiners, cross-fitted", ["combiner", "log loss"],
                  [[combiner_name(row["combiner"]), interval(row["log_loss"])] for row in rows]),
            figure(alt, charts.forest("combiners", alt, drawn, "log loss in nats (95 % interval)", zero=False)),
        ]  # fmt: skip
    return blocks


def _importances(content: Report, members: list[str]) -> list[Block]:
    rows = content["importances"]
    if not rows:
        return []
    top = rows[:TOP]
    alt = f"The {len(top)} features with the largest share of the boosters' gain; the table has the values."
    drawn = [(feature_name(row["feature"], members), 100 * row["gain_share"]) for row in top]
    return [
        text("{use} Gain is summed over the boosters of the outer folds.", use=_use_of_trees(content["final"])),
        figure(alt, charts.bars("gain", alt, drawn, "% of gain")),
        table("Features that the boosters split on", ["feature", "column", "share of gain", "splits"],
              [[feature_name(r["feature"], members), r["feature"], percent(r["gain_share"]), count(r["splits"])]
               for r in rows], folded=True),
    ]  # fmt: skip


def _use_of_trees(final: Report | None) -> str:
    """Say whether the boosters, whose features are ranked, have a part in the predictions for new battles."""
    if not final:
        return "Which features the boosted trees use."
    used = final["combiner"] == TREES or (final["combiner"] == "pool" and f"{TREES} " in final["reason"])
    if used:
        return "The boosted trees are a part of the stack; these are the features that they use."
    return (
        "The boosted trees were fitted as a candidate and are not used for new battles; their features are for reading."
    )


def _studies(studies: dict[str, Report]) -> list[Block]:
    if not studies:
        return []
    alt = "Optuna history: inner log loss of each trial (marks) and the best so far (lines), one colour per study."
    drawn = {job_name(name): study for name, study in studies.items()}
    caption = f"{alt} Pruned trials, which promised no gain after some inner folds, have no mark."
    return [figure(caption, charts.studies("studies", alt, drawn, ("completed trial", "inner log loss")))]


def _tuned(content: Report) -> list[Block]:
    keys = list(dict.fromkeys(key for row in content["folds"] for key in row))
    rows = [[combiner_name(str(row[key])) if key == "combiner" and key in row else any_value(row.get(key))
             for key in keys] for row in content["folds"]]  # fmt: skip
    head = [key.replace("_", " ") for key in keys]
    return [table("Tuned parameters by outer fold", head, rows, folded=True)] if keys else []


def _ablations(ablations: Report) -> list[Block]:
    head = ["", "log loss", "minus full"]
    rows = [["full", interval(ablations["full"]), ""]]
    rows += [
        [f"without {_part(r['name'])}", interval(r["log_loss"]), interval(r["difference"], signed=True)]
        for r in ablations["without"]
    ]
    alt = "Log loss without a part minus log loss of the full stack, with 95 % intervals; the table has the values."
    drawn = [(_part(row["name"]), row["difference"]) for row in ablations["without"]]
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


def _part(name: str) -> str:
    """Return the words for the part that an ablation leaves out."""
    kind, _, part = name.removeprefix("without-").partition("-")
    return (
        f"{kind} {part.replace('_', ' ')}"
        if kind in ("member", "family")
        else f"{kind} {part}".strip().replace("-", " ")
    )
