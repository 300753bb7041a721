"""Figures of the report: matplotlib, drawn without a display, returned as inline SVG that follows the page's colours.

Text stays text (selectable, searchable) and takes the page's colour, so one figure serves light and dark. The palette
is Okabe and Ito's, which colour-blind readers can tell apart; markers and line styles differ too. Figures are narrow,
so that a phone shows them at full size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # one more than colours: no pair twice
INK = "#010203"  # replaced by the page's text colour
GREY = "#888888"
WIDTH = 4.2  # inches
DECIMALS = re.compile(r"(\.\d\d)\d+")
COORDINATES = re.compile(r' (x|y|d)="[^"]*"')
STYLE = re.compile(r' style="[^"]*"')
FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
MARKS = re.compile(r"<g( clip-path=[^>]*)?>((?:<use [^>]*/>)+)</g>")

mpl.rcParams["svg.fonttype"] = "none"


@contextmanager
def _figure(height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its axes in our style."""
    style: dict[str, Any] = {
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
        "lines.linewidth": 1.3, "lines.markersize": 4, "svg.hashsalt": "report", "svg.fonttype": "none",
        "text.parse_math": False,
    }  # fmt: skip
    with mpl.rc_context(style):  # type: ignore[arg-type]  # its keys are a Literal of 300 names
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return the figure as an ``svg`` element with a title for screen readers; nothing in it points elsewhere."""
    with io.StringIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = file.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = body.replace(INK, "currentColor").replace("xlink:href", "href")
    for i, colour in enumerate(PALETTE):  # lighter on a dark page
        body = body.replace(f": {colour.lower()}", f": var(--c{i}, {colour.lower()})")
    # Every figure has its own names: two of the same name on one page would share the first one's clip paths.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = _compact(body)
    label = escape(alt)
    start = f'<svg {box.group(0) if box else ""} role="img" aria-label="{label}"><title>{label}</title>'
    return Markup(start + body)  # noqa: S704  # matplotlib escapes text, the label is escaped here


def _compact(body: str) -> str:
    """Return the drawing with coordinates to a hundredth of a point, and a style once for all marks of a group.

    Two thousand marks take a third of the room then.
    """

    def hoist(found: re.Match[str]) -> str:
        styles = set(STYLE.findall(found[2]))
        return f"<g{found[1] or ''}{styles.pop()}>{STYLE.sub('', found[2])}</g>" if len(styles) == 1 else found[0]

    body = FAMILY.sub("", body)  # the page's style names the font once
    body = COORDINATES.sub(lambda found: DECIMALS.sub(r"\1", found[0]), body)
    return MARKS.sub(hoist, re.sub(r">\n\s+<", "><", body))


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _line(i: int) -> Any:
    return LINES[i % len(LINES)]


def forest(
    name: str, alt: str, rows: Sequence[tuple[str, dict[str, Any]]], label: str, zero: bool = True,
    reference: float | None = None,
) -> Markup:  # fmt: skip
    """Draw one interval a row: (text, {"value", "low", "high"}); a line at 0 or at ``reference``."""
    rows = [row for row in rows if row[1] and row[1]["value"] is not None]
    with _figure(0.7 + 0.21 * len(rows)) as (figure, axes):
        ax = axes[0, 0]
        for i, (_, interval) in enumerate(rows):
            ax.plot(interval["value"], i, "o", color=_colour(0))
            if interval["low"] is not None and interval["high"] is not None:
                ax.plot([interval["low"], interval["high"]], [i, i], "-", color=_colour(0))
        if zero or reference is not None:
            ax.axvline(0 if reference is None else reference, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(rows)), [_short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_locator(MaxNLocator(4))  # their labels must not meet: long row names leave the axes narrow
        figure.supxlabel(label, fontsize=9)
        return _svg(figure, name, alt)


def _short(text: str, most: int = 36) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def heat(name: str, alt: str, grid: dict[str, Any], labels: tuple[str, str]) -> Markup:
    """Draw the counts of two predictors' probabilities of the verdict, on a logarithmic scale of colours."""
    counts = np.array(grid["counts"], dtype=float)
    n = grid["cells"]
    with _figure(3.9) as (figure, axes):
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
        bar.solids.set_rasterized(False)  # type: ignore[union-attr]  # a picture would be no vector
        bar.solids.set(edgecolor="none")  # type: ignore[union-attr]
        return _svg(figure, name, alt)


def scatter(name: str, alt: str, points: dict[str, Any], labels: tuple[str, str]) -> Markup:
    """Draw a mark per battle at the two predictors' probabilities of the verdict; its shape and colour say which."""
    x, y, verdict = (np.array(points[key], dtype=float) for key in ("first", "second", "verdict"))
    with _figure(4.3) as (figure, axes):
        ax = axes[0, 0]
        for i, said in enumerate(("A wins", "B wins", "tie")):
            at = verdict == i
            ax.plot(x[at], y[at], MARKERS[i], color=_colour(i), label=f"verdict: {said}", markersize=2.6,
                    alpha=0.55, markeredgewidth=0)  # fmt: skip
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_xlabel(f"{_short(labels[0])}: P(verdict)")
        ax.set_ylabel(f"{_short(labels[1])}: P(verdict)")
        figure.legend(loc="outside lower center", ncols=3, markerscale=2, handletextpad=0.1, columnspacing=1)
        return _svg(figure, name, alt)


def reliability(name: str, alt: str, diagrams: dict[str, dict[str, list[dict[str, Any]]]]) -> Markup:
    """Draw four reliability diagrams (a, b, tie, top label), one line per predictor."""
    titles = {"a": "A wins", "b": "B wins", "tie": "tie", "top": "most probable class"}
    with _figure(4.9, 2, 2) as (figure, axes):
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
        return _svg(figure, name, alt)


def _points(ax: Axes, points: Sequence[dict[str, Any]], i: int, label: str) -> None:
    x, y = [p["predicted"] for p in points], [p["value"] for p in points]
    ax.plot(x, y, color=_colour(i), marker=MARKERS[i % 6], linestyle=_line(i), label=label)
    for p in points:
        if p["low"] is not None:
            ax.plot([p["predicted"]] * 2, [max(p["low"], 0), min(p["high"], 1)], color=_colour(i), linewidth=0.7)


def calibration(
    name: str, alt: str, curves: Mapping[str, list[dict[str, Any]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw one reliability curve per predictor with intervals, beside the diagonal."""
    with _figure(3.4) as (figure, axes):
        ax = axes[0, 0]
        for i, (predictor, points) in enumerate(curves.items()):
            _points(ax, points, i, _short(predictor, 22))
        top = max(*ax.get_xlim(), *ax.get_ylim())
        ax.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, top), ylim=(0, top))
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, name, alt)


def bars(name: str, alt: str, rows: Sequence[tuple[str, float]], label: str) -> Markup:
    """Draw horizontal bars, the first row on top."""
    with _figure(0.7 + 0.21 * max(len(rows), 1)) as (figure, axes):
        ax = axes[0, 0]
        ax.barh(range(len(rows)), [value for _, value in rows], color=_colour(0), height=0.7)
        ax.set_yticks(range(len(rows)), [_short(text) for text, _ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel(label, fontsize=9)  # under the whole figure: long row names leave the axes narrow
        return _svg(figure, name, alt)


def grouped(
    name: str, alt: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str
) -> Markup:
    """Draw one marker per group and series, groups on the vertical axis."""
    with _figure(0.9 + 0.3 * len(groups)) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, values) in enumerate(series.items()):
            known = [(value, k) for k, value in enumerate(values) if value is not None]
            offset = (i - (len(series) - 1) / 2) * 0.12
            ax.plot([v for v, _ in known], [k + offset for _, k in known], MARKERS[i % 6], color=_colour(i),
                    label=_short(key, 22), linestyle="none")  # fmt: skip
        ax.set_yticks(range(len(groups)), [_short(text) for text in groups])
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.set_xlabel(label)
        figure.legend(loc="outside lower center", ncols=2)
        return _svg(figure, name, alt)


def length_curves(name: str, alt: str, length: dict[str, Any]) -> Markup:
    """Draw P(A wins) - P(B wins) by the ratio of lengths: the verdicts with intervals, each predictor as a line."""
    with _figure(3.4) as (figure, axes):
        ax = axes[0, 0]
        x = length["ratio"]
        low = [row["value"] if row["low"] is None else row["low"] for row in length["verdicts"]]
        high = [row["value"] if row["high"] is None else row["high"] for row in length["verdicts"]]
        ax.fill_between(x, low, high, color=GREY, alpha=0.3, linewidth=0, label="verdicts, 95 %")
        for i, (predictor, rows) in enumerate(length["predictors"].items()):
            ax.plot(x, [row["value"] for row in rows], color=_colour(i), marker=MARKERS[i % 6], linestyle=_line(i),
                    label=_short(predictor, 22))  # fmt: skip
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks([2.0**k for k in range(-4, 5, 2)], ["1/16", "1/4", "1", "4", "16"])
        ax.minorticks_off()
        ax.set(xlabel="characters of A / characters of B", ylabel="P(A wins) - P(B wins)")
        figure.legend(loc="outside lower center", ncols=2)
        return _svg(figure, name, alt)


def lines(
    name: str, alt: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw (x, y) series as lines."""
    with _figure(2.9) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, (x, y)) in enumerate(series.items()):
            ax.plot(x, y, color=_colour(i), linestyle=_line(i), label=_short(key, 22))
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, name, alt)


def studies(name: str, alt: str, found: Mapping[str, dict[str, Any]], labels: tuple[str, str]) -> Markup:
    """Draw each study's trials as marks and its best value so far as a line."""
    with _figure(3.2) as (figure, axes):
        ax = axes[0, 0]
        for i, (key, study) in enumerate(found.items()):
            x = range(1, len(study["values"]) + 1)
            ax.plot(x, study["values"], MARKERS[i % 6], color=_colour(i), alpha=0.5, markersize=3, markeredgewidth=0)
            ax.plot(x, study["best"], color=_colour(i), linestyle=_line(i), label=_short(key, 22))
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, name, alt)


def learning(
    name: str, alt: str, points: Sequence[tuple[float, dict[str, Any]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw intervals by a size, on a logarithmic axis: (size, {"value", "low", "high"})."""
    with _figure(2.7) as (figure, axes):
        ax = axes[0, 0]
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        x = [size for size, _ in points]
        ax.plot(x, [interval["value"] for _, interval in points], "-o", color=_colour(0))
        for size, interval in points:
            if interval["low"] is not None:
                ax.plot([size] * 2, [interval["low"], interval["high"]], "-", color=_colour(0), linewidth=0.9)
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{size:,.0f}" for size in x])
        ax.minorticks_off()
        ax.set(xlabel=labels[0], ylabel=labels[1])
        return _svg(figure, name, alt)


def histogram(name: str, alt: str, counts: Sequence[int], edges: Sequence[float], label: str) -> Markup:
    """Draw a histogram over powers of ten."""
    with _figure(2.6) as (figure, axes):
        ax = axes[0, 0]
        ax.stairs(counts, 10 ** np.asarray(edges), fill=True, color=_colour(0))
        ax.set_xscale("log")
        low, high = 10 ** np.asarray(edges)[[0, -1]]
        ticks = [base * 10.0**k for k in range(7) for base in (1, 2, 5)]
        ax.set_xticks([tick for tick in ticks if low <= tick <= high])
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.minorticks_off()
        ax.tick_params(axis="x", labelrotation=45)
        ax.set(xlabel=label, ylabel="battles")
        return _svg(figure, name, alt)
