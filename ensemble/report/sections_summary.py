"""First sections of the page: the story with its warnings and advice, and the leaderboard."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report import charts
from ensemble.report.advice import advice
from ensemble.report.names import predictor_meaning, predictor_name
from ensemble.report.page_elements import (
    MISSING,
    Block,
    Section,
    bar,
    figure,
    interval,
    number,
    percent,
    sentences,
    table,
    text,
)
from ensemble.report.run_data import BASELINES
from ensemble.report.story import story as sentences_of

Report = dict[str, Any]
MARGIN = 0.05  # of the contenders' scale, at both ends


def story(report: Report) -> Section:
    """Return the section that says in words what the run shows, what to heed and what to try next."""
    warnings = report["summary"]["warnings"]
    blocks = [sentences("Warnings", warnings)] if warnings else []
    blocks += [sentences("Findings", sentences_of(report)), sentences("What to try next", advice(report))]
    return Section("story", "What this run shows", blocks)


def leaderboard(report: Report) -> Section:
    """Return the section with all predictors, sorted and ranked, and their paired differences."""
    rows = sorted(report["summary"]["table"], key=lambda row: float(row["log_loss"]["value"]))
    blocks = [
        _ranking(report, rows),
        text("Lower is better. A <em>rank</em> is one more than the number of predictors that are shown to be better "
             "(paired 95 % interval); an equals sign marks a shared rank, so none is shown to be better than those of "
             "rank 1. Bars show the contenders' scale; an arrow stands for a loss beyond it. Intervals are over groups "
             "of near-duplicate prompts: percentile bootstrap, and where there are few groups the jackknife with "
             "Student's t."),
        *_losses(rows),
        *_differences(report["summary"]["paired"]),
    ]  # fmt: skip
    return Section("leaderboard", "Leaderboard", blocks)


def _losses(rows: list[Report]) -> list[Block]:
    """Return the figure of all losses, and of the contenders on a scale of their own, which the others stretch."""
    drawn = [(predictor_name(row["predictor"]), row["log_loss"]) for row in rows]
    close = [pair for pair, row in zip(drawn, rows, strict=True) if row["predictor"] not in BASELINES]
    label = "log loss (95 % interval)"
    alt = "Log loss of each predictor with its 95 % interval; the table has the values."
    blocks = [figure("Log loss of all predictors.", charts.forest("summary", alt, drawn, label, zero=False))]
    if len(close) < len(drawn):
        alt = "Log loss of the contenders with its 95 % interval, on a scale of their own."
        blocks.append(figure(alt, charts.forest("contenders", alt, close, label, zero=False)))
    return blocks


def _differences(paired: list[Report]) -> list[Block]:
    """Return the forest plot of paired differences and its table; nothing of a member alone."""
    if not paired:
        return []
    rows = [(predictor_name(row["first"]), predictor_name(row["second"]), row["difference"]) for row in paired]
    alt = "Paired differences of log loss with 95 % intervals; left of 0, the first predictor is better."
    drawn = [(f"{first} - {second}", difference) for first, second, difference in rows]
    caption = "Paired differences: on the same battles, so much narrower than the intervals of the losses themselves."
    cells = [[first, second, interval(difference, signed=True)] for first, second, difference in rows]
    title = "Paired differences of log loss (below 0: the first is better)"
    return [
        figure(caption, charts.forest("paired", alt, drawn, "difference of log loss (95 % interval)")),
        table(title, ["first", "second", "difference"], cells),
    ]


def _ranking(report: Report, rows: list[Report]) -> Block:
    ties, summary = report["ties"]["possible"], report["summary"]
    scale = _scale([row["log_loss"] for row in rows if row["predictor"] not in BASELINES])
    ranks = [row["rank"] for row in rows]
    head = ["rank", "predictor", "log loss", "behind the first", "accuracy", "Brier",
            *(["tie recall"] if ties else []), "ECE"]  # fmt: skip
    cells = [
        [_rank(row["rank"], ranks), _named(row["predictor"], summary["submit"]["choice"]),
         interval(row["log_loss"]) + bar(row["log_loss"], scale),
         interval(row["behind"], signed=True) if row["behind"] else "", percent(row["accuracy"]), number(row["brier"]),
         *([percent(row["tie_recall"])] if ties else []), number(row["ece"])]
        for row in rows
    ]  # fmt: skip
    best = next((i for i, row in enumerate(rows) if row["predictor"] == summary["submit"]["choice"]), None)
    return table("Out-of-fold scores", head, cells, best=best)


def _scale(intervals: list[Report]) -> tuple[float, float]:
    """Return the ends of an axis that holds all intervals."""
    edges = [edge for bounds in intervals for edge in bounds.values() if isinstance(edge, float)]
    low, high = min(edges), max(edges)
    margin = MARGIN * (high - low) or MARGIN
    return low - margin, high + margin


def _rank(rank: int | None, ranks: list[int | None]) -> Markup:
    """Return a rank; an equals sign marks one that several predictors share."""
    if rank is None:
        return MISSING
    return Markup('<data value="{}">{}</data>{}').format(rank, rank, " =" if ranks.count(rank) > 1 else "")


def _named(predictor: str, choice: str) -> Markup:
    """Return a predictor's name with its meaning below; the recommended one is marked."""
    badge = Markup('<span class="badge">use this one</span>') if predictor == choice else ""
    name, meaning = predictor_name(predictor), predictor_meaning(predictor)
    return Markup('{} <span class="label">{}</span>{}').format(name, meaning, badge)
