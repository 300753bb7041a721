"""Charts of the report: functions from plain numbers to inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from ensemble.report.run_data import OUTCOMES
from ensemble.report.svg import GREY, MARKERS, colour, figure_of, legend_height, line, svg_of
from oof.classes import CLASSES


def forest(name: str, alt: str, rows: Sequence[tuple[str, dict[str, Any]]], label: str, zero: bool = True) -> Markup:
    """Draw one interval per row: (text, {"value", "low", "high"}); with ``zero`` a line at 0."""
    rows = [row for row in rows if row[1] and row[1]["value"] is not None]
    with figure_of(0.7 + 0.21 * len(rows)) as (figure, axes):
        ax = axes[0, 0]
        for i, (_, interval) in enumerate(rows):
            ax.plot(interval["value"], i, "o", color=colour(0))
            if interval["low"] is not None and interval["high"] is not None:
                ax.plot([interval["low"], interval["high"]], [i, i], "-", color=colour(0))
        if zero:
            ax.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(rows)), [_short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_locator(MaxNLocator(4))  # few, because long row names leave narrow axes
        figure.supxlabel(label, fontsize=9)
        return svg_of(figure, name, alt)


def _short(text: str, length: int = 36) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def heat(name: str, alt: str, grid: dict[str, Any], labels: tuple[str, str]) -> Markup:
    """Draw a heat map of two predictors' probabilities of the verdict, with logarithmic colours."""
    counts = np.array(grid["counts"], dtype=float)
    n = grid["cells"]
    with figure_of(3.9) as (figure, axes):
        ax = axes[0, 0]
        edges = np.linspace(0, 1, n + 1)
        top = max(counts.max(), 2)
        mesh = ax.pcolormesh(
            edges,
            edges,
            np.ma.masked_equal(counts, 0),
            cmap=mpl.colormaps["viridis"].resampled(32),
            norm=LogNorm(1, top),
        )
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        ax.set_aspect("equal")
        ax.set_xlabel(f"{_short(labels[0])}: P(verdict)")
        ax.set_ylabel(f"{_short(labels[1])}: P(verdict)")
        bar = figure.colorbar(mesh, ax=ax, label="battles", shrink=0.8, format="%g")
        bar.ax.minorticks_off()
        bar.solids.set_rasterized(False)  # type: ignore[union-attr]  # keep it vector graphics
        bar.solids.set(edgecolor="none")  # type: ignore[union-attr]
        return svg_of(figure, name, alt)


def scatter(name: str, alt: str, points: dict[str, Any], labels: tuple[str, str]) -> Markup:
    """Draw a mark per battle at the two predictors' probabilities of its verdict; shape and colour show the verdict."""
    x, y, verdict = (np.array(points[key], dtype=float) for key in ("first", "second", "verdict"))
    with figure_of(4.3) as (figure, axes):
        ax = axes[0, 0]
        for i, outcome in enumerate(OUTCOMES):
            at = verdict == i
            ax.plot(x[at], y[at], MARKERS[i], color=colour(i), label=f"verdict: {outcome}", markersize=2.6,
                    alpha=0.55, markeredgewidth=0)  # fmt: skip
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_xlabel(f"{_short(labels[0])}: P(verdict)")
        ax.set_ylabel(f"{_short(labels[1])}: P(verdict)")
        figure.legend(loc="outside lower center", ncols=3, markerscale=2, handletextpad=0.1, columnspacing=1)
        return svg_of(figure, name, alt)


def reliability(name: str, alt: str, diagrams: dict[str, dict[str, list[dict[str, Any]]]]) -> Markup:
    """Draw four reliability diagrams (a, b, tie, most probable class) with one line per predictor."""
    titles = {**dict(zip(CLASSES, OUTCOMES, strict=True)), "top": "most probable class"}
    with figure_of(4.9, 2, 2) as (figure, axes):
        for ax, (key, title) in zip(axes.flat, titles.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
            for i, (predictor, curves) in enumerate(diagrams.items()):
                _points(ax, curves[key], i, _short(predictor, 22))
            ax.set(title=title, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        for ax in axes[1]:
            ax.set_xlabel("predicted probability")
        figure.supylabel("observed share", fontsize=9)
        return svg_of(figure, name, alt)


def _points(ax: Axes, points: Sequence[dict[str, Any]], i: int, label: str) -> None:
    x, y = [p["predicted"] for p in points], [p["value"] for p in points]
    ax.plot(x, y, color=colour(i), marker=MARKERS[i % 6], linestyle=line(i), label=label)
    for p in points:
        if p["low"] is not None:
            ax.plot([p["predicted"]] * 2, [max(p["low"], 0), min(p["high"], 1)], color=colour(i), linewidth=0.7)


def calibration(
    name: str, alt: str, curves: Mapping[str, list[dict[str, Any]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw one reliability curve per predictor, with intervals and the diagonal."""
    with figure_of(3.4 + legend_height(len(curves), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (predictor, points) in enumerate(curves.items()):
            _points(ax, points, i, _short(predictor, 22))
        top = max(*ax.get_xlim(), *ax.get_ylim())
        ax.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, top), ylim=(0, top))
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt)


def bars(name: str, alt: str, rows: Sequence[tuple[str, float]], label: str) -> Markup:
    """Draw horizontal bars, the first row on top."""
    with figure_of(0.7 + 0.21 * max(len(rows), 1)) as (figure, axes):
        ax = axes[0, 0]
        ax.barh(range(len(rows)), [value for _, value in rows], color=colour(0), height=0.7)
        ax.set_yticks(range(len(rows)), [_short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel(label, fontsize=9)  # below the whole figure, because long row names leave narrow axes
        return svg_of(figure, name, alt)


def grouped(
    name: str, alt: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str
) -> Markup:
    """Draw one marker per group and series, with the groups on the vertical axis."""
    with figure_of(0.9 + 0.3 * len(groups) + legend_height(len(series), 2)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, values) in enumerate(series.items()):
            points = [(value, k) for k, value in enumerate(values) if value is not None]
            offset = (i - (len(series) - 1) / 2) * 0.12
            ax.plot([value for value, _ in points], [k + offset for _, k in points], MARKERS[i % 6], color=colour(i),
                    label=_short(key, 22), linestyle="none")  # fmt: skip
        ax.set_yticks(range(len(groups)), [_short(text) for text in groups])
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.set_xlabel(label)
        figure.legend(loc="outside lower center", ncols=2)
        return svg_of(figure, name, alt)


def length_curves(name: str, alt: str, length: dict[str, Any]) -> Markup:
    """Draw P(A wins) - P(B wins) by the ratio of lengths: verdicts as a band of intervals, predictors as lines."""
    with figure_of(3.1 + legend_height(len(length["predictors"]) + 1, 2)) as (figure, axes):
        ax = axes[0, 0]
        x = length["ratio"]
        low = [row["value"] if row["low"] is None else row["low"] for row in length["verdicts"]]
        high = [row["value"] if row["high"] is None else row["high"] for row in length["verdicts"]]
        ax.fill_between(x, low, high, color=GREY, alpha=0.3, linewidth=0, label="verdicts, 95 %")
        for i, (predictor, rows) in enumerate(length["predictors"].items()):
            ax.plot(x, [row["value"] for row in rows], color=colour(i), marker=MARKERS[i % 6], linestyle=line(i),
                    label=_short(predictor, 22))  # fmt: skip
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks([2.0**k for k in range(-4, 5, 2)], ["1/16", "1/4", "1", "4", "16"])
        ax.minorticks_off()
        ax.set(xlabel="characters of A / characters of B", ylabel="P(A wins) - P(B wins)")
        figure.legend(loc="outside lower center", ncols=2)
        return svg_of(figure, name, alt)


def lines(
    name: str, alt: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw (x, y) series as lines."""
    with figure_of(2.8 + legend_height(len(series), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, (x, y)) in enumerate(series.items()):
            ax.plot(x, y, color=colour(i), linestyle=line(i), label=_short(key, 22))
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt)


def studies(name: str, alt: str, series: Mapping[str, dict[str, Any]], labels: tuple[str, str]) -> Markup:
    """Draw each study's trials as marks and its best value so far as a line."""
    with figure_of(3.1 + legend_height(len(series), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, study) in enumerate(series.items()):
            x = range(1, len(study["values"]) + 1)
            ax.plot(x, study["values"], MARKERS[i % 6], color=colour(i), alpha=0.5, markersize=3, markeredgewidth=0)
            ax.plot(x, study["best"], color=colour(i), linestyle=line(i), label=_short(key, 22))
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt)


def learning(
    name: str, alt: str, points: Sequence[tuple[float, dict[str, Any]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw a learning curve: intervals by size, (size, {"value", "low", "high"}), on a logarithmic axis."""
    with figure_of(2.7) as (figure, axes):
        ax = axes[0, 0]
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        x = [size for size, _ in points]
        ax.plot(x, [interval["value"] for _, interval in points], "-o", color=colour(0))
        for size, interval in points:
            if interval["low"] is not None:
                ax.plot([size] * 2, [interval["low"], interval["high"]], "-", color=colour(0), linewidth=0.9)
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{size:,.0f}" for size in x])
        ax.minorticks_off()
        ax.set(xlabel=labels[0], ylabel=labels[1])
        return svg_of(figure, name, alt)


def histogram(name: str, alt: str, counts: Sequence[int], edges: Sequence[float], label: str) -> Markup:
    """Draw a histogram on a logarithmic axis; ``edges`` are decimal logarithms."""
    with figure_of(2.6) as (figure, axes):
        ax = axes[0, 0]
        ax.stairs(counts, 10 ** np.asarray(edges), fill=True, color=colour(0))
        ax.set_xscale("log")
        low, high = 10 ** np.asarray(edges)[[0, -1]]
        ticks = [base * 10.0**k for k in range(7) for base in (1, 2, 5)]
        ax.set_xticks([tick for tick in ticks if low <= tick <= high])
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.minorticks_off()
        ax.tick_params(axis="x", labelrotation=45)
        ax.set(xlabel=label, ylabel="battles")
        return svg_of(figure, name, alt)
