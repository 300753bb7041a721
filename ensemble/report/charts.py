"""Charts of the report: functions from plain numbers to inline SVG; intervals, bars, lines, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ensemble.report.svg import GREY, MARKERS, colour, figure_of, legend_height, line, svg_of
from ensemble.statistics.interval_words import in_words

HOVERED = 40  # points of a line that show their values: more could not be told apart by the pointer
Row = tuple[str, Any]  # text, {"value", "low", "high"}


def forest(name: str, alt: str, rows: Sequence[Row], label: str, zero: bool = True) -> Markup:
    """Draw a mark and a line per row that has a value, the first on top; with ``zero`` a line at 0."""
    rows = [row for row in rows if row[1] and row[1]["value"] is not None]
    with figure_of(0.7 + 0.21 * len(rows)) as (figure, axes):
        ax = axes[0, 0]
        for i, (_, interval) in enumerate(rows):
            bounded = interval["low"] is not None and interval["high"] is not None
            x = [interval["low"], interval["value"], interval["high"]] if bounded else [interval["value"]]
            # The group of both can show their values.
            ax.plot(x, [i] * len(x), "-o", color=colour(0), markevery=[len(x) // 2], gid=f"row{i}")
        ax.set_yticks(range(len(rows)), [short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_locator(MaxNLocator(3))  # few, because long row names leave narrow axes
        if zero:
            ax.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
        figure.supxlabel(label, fontsize=9)
        hover = {f"row{i}": f"{text}: {in_words(interval, '.4f')}" for i, (text, interval) in enumerate(rows)}
        return svg_of(figure, name, alt, hover)


class Values:
    """Transparent marks that show values under the pointer; the text of each is a title in the SVG."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, ax: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str]) -> None:
        """Add marks at (x, y) that show the texts; of a long line some of the points."""
        for k in range(0, len(x), max(1, -(-len(x) // HOVERED))):
            gid = f"value{len(self.texts)}"
            ax.plot([x[k]], [y[k]], "o", markersize=8, alpha=0, markeredgewidth=0, gid=gid)
            self.texts[gid] = texts[k]


def short(text: str, length: int = 36) -> str:
    """Return a text cut to a length, with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def bars(name: str, alt: str, rows: Sequence[tuple[str, float]], label: str) -> Markup:
    """Draw horizontal bars, the first row on top."""
    with figure_of(0.7 + 0.21 * max(len(rows), 1)) as (figure, axes):
        ax = axes[0, 0]
        for i, bar in enumerate(ax.barh(range(len(rows)), [value for _, value in rows], color=colour(0), height=0.7)):
            bar.set_gid(f"bar{i}")
        ax.set_yticks(range(len(rows)), [short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel(label, fontsize=9)  # below the whole figure, because long row names leave narrow axes
        return svg_of(figure, name, alt, {f"bar{i}": f"{text}: {value:.1f}" for i, (text, value) in enumerate(rows)})


def grouped(
    name: str, alt: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str
) -> Markup:
    """Draw one marker per group and series, with the groups on the vertical axis."""
    marks = Values()
    with figure_of(0.9 + 0.3 * len(groups) + legend_height(len(series), 2)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, values) in enumerate(series.items()):
            points = [(value, k) for k, value in enumerate(values) if value is not None]
            offset = (i - (len(series) - 1) / 2) * 0.12
            ax.plot([value for value, _ in points], [k + offset for _, k in points], MARKERS[i % 6], color=colour(i),
                    label=short(key, 22), linestyle="none")  # fmt: skip
            marks.add(ax, [value for value, _ in points], [k + offset for _, k in points],
                      [f"{groups[k]}, {key}: {value:.3f}" for value, k in points])  # fmt: skip
        ax.set_yticks(range(len(groups)), [short(text) for text in groups])
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.set_xlabel(label)
        figure.legend(loc="outside lower center", ncols=2)
        return svg_of(figure, name, alt, marks.texts)


def lines(
    name: str, alt: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw (x, y) series as lines."""
    values = Values()
    with figure_of(2.8 + legend_height(len(series), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, (x, y)) in enumerate(series.items()):
            ax.plot(x, y, color=colour(i), linestyle=line(i), label=short(key, 22))
            values.add(ax, x, y, [f"{key}, {labels[0]} {a:,}: {b:.4f}" for a, b in zip(x, y, strict=True)])
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt, values.texts)


def studies(name: str, alt: str, series: Mapping[str, dict[str, Any]], labels: tuple[str, str]) -> Markup:
    """Draw each study's trials as marks and its best value so far as a line."""
    values = Values()
    with figure_of(3.1 + legend_height(len(series), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, study) in enumerate(series.items()):
            x = range(1, len(study["values"]) + 1)
            ax.plot(x, study["values"], MARKERS[i % 6], color=colour(i), alpha=0.6, markersize=4.5, markeredgewidth=0)
            ax.plot(x, study["best"], color=colour(i), linestyle=line(i), label=short(key, 22))
            values.add(
                ax, x, study["values"], [f"{key}, trial {k}: {v:.4f}" for k, v in zip(x, study["values"], strict=True)]
            )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt, values.texts)


def learning(
    name: str, alt: str, points: Sequence[tuple[float, Any]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw a learning curve: intervals by size, (size, {"value", "low", "high"}), on a logarithmic axis."""
    values = Values()
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
        values.add(ax, x, [interval["value"] for _, interval in points],
                   [f"{size:,.0f} battles: {in_words(interval)}" for size, interval in points])  # fmt: skip
        return svg_of(figure, name, alt, values.texts)


def trade_off(
    name: str,
    alt: str,
    series: Mapping[str, Sequence[tuple[float, Any]]],
    ends: Mapping[str, tuple[float, Any]],
    labels: tuple[str, str],
) -> Markup:
    """Draw lines of points (x, {"value", "low", "high"}), and ``ends`` as single marks with their intervals."""
    values = Values()
    with figure_of(3.1 + legend_height(len(series) + len(ends), 2)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, points) in enumerate(series.items()):
            x, y = [at for at, _ in points], [interval["value"] for _, interval in points]
            ax.plot(x, y, color=colour(i), linestyle=line(i), label=short(key, 30))
            texts = [f"{key}, {at:.2f}: {in_words(interval, '.4f')}" for at, interval in points]
            values.add(ax, x, y, texts)
        for i, (key, (at, interval)) in enumerate(ends.items()):
            if interval["low"] is not None:
                ax.plot([at] * 2, [interval["low"], interval["high"]], color=GREY, linewidth=0.8)
            ax.plot([at], [interval["value"]], MARKERS[i % 6], color=GREY, markersize=7, linestyle="none", label=key)
            values.add(ax, [at], [interval["value"]], [f"{key}, {at:.2f}: {in_words(interval, '.4f')}"])
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=2)
        return svg_of(figure, name, alt, values.texts)


def histogram(name: str, alt: str, counts: Sequence[int], edges: Sequence[float], label: str) -> Markup:
    """Draw a histogram on a logarithmic axis; ``edges`` are decimal logarithms."""
    with figure_of(2.6) as (figure, axes):
        ax = axes[0, 0]
        values = 10 ** np.asarray(edges)
        for i, n in enumerate(counts):
            ax.bar(values[i], n, values[i + 1] - values[i], align="edge", color=colour(0), gid=f"bar{i}")
        ax.set_xscale("log")
        low, high = 10 ** np.asarray(edges)[[0, -1]]
        bases = (1, 2, 5) if high <= 30 * low else (1,)  # few, so that the labels do not overlap
        ticks = [base * 10.0**k for k in range(7) for base in bases]
        ax.set_xticks([tick for tick in ticks if low <= tick <= high])
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.minorticks_off()
        ax.set(xlabel=label, ylabel="battles")
        hover = {f"bar{i}": f"{values[i]:,.0f} to {values[i + 1]:,.0f}: {n:,} battles" for i, n in enumerate(counts)}
        return svg_of(figure, name, alt, hover)
