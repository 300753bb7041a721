"""Charts of predicted probabilities: heat maps, scatter and reliability diagrams, curves by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ensemble.report.charts import Values, short
from ensemble.report.run_data import OUTCOMES
from ensemble.report.svg import GREY, MARKERS, colour, figure_of, legend_height, line, svg_of
from ensemble.statistics.interval_words import in_words
from oof.classes import CLASSES


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
        ax.set_xlabel(f"{short(labels[0])}: P(verdict)")
        ax.set_ylabel(f"{short(labels[1])}: P(verdict)")
        bar = figure.colorbar(mesh, ax=ax, label="battles", shrink=0.8, format="%g")
        bar.ax.minorticks_off()
        bar.solids.set_rasterized(False)  # type: ignore[union-attr]  # keep it vector graphics
        bar.solids.set(edgecolor="none")  # type: ignore[union-attr]
        return svg_of(figure, name, alt, square=(ax, labels))


def confusions(name: str, alt: str, counts: Mapping[str, Sequence[Sequence[int]]]) -> Markup:
    """Draw one 3 x 3 heat map per predictor: of each verdict's battles (row) the share per most probable class."""
    columns = min(len(counts), 2)
    lines_of_maps = -(-len(counts) // columns)
    hover: dict[str, str] = {}
    with figure_of(0.4 + 1.75 * lines_of_maps, lines_of_maps, columns) as (figure, axes):
        for ax in axes.flat[len(counts) :]:
            ax.set_axis_off()
        for k, (ax, (title, table)) in enumerate(zip(axes.flat, counts.items(), strict=False)):
            _confusion(ax, np.asarray(table, dtype=float), k)
            ax.set_title(short(title, 22))
            hover |= {f"cell{k}-{i}-{j}": f"{title}: verdict {OUTCOMES[i]}, most probable {OUTCOMES[j]}: {int(n):,}"
                      for i, row in enumerate(table) for j, n in enumerate(row)}  # fmt: skip
        return svg_of(figure, name, alt, hover)


def _confusion(ax: Axes, counts: NDArray[np.float64], k: int) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for i, j in np.ndindex(3, 3):
        tile = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour(0), alpha=0.5 * shares[i, j], edgecolor="none",
                         gid=f"cell{k}-{i}-{j}")  # fmt: skip
        ax.add_patch(tile)
        ax.text(j, i, f"{100 * shares[i, j]:.0f} %", ha="center", va="center")
    ax.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5))
    ax.set_xticks(range(3), OUTCOMES)
    ax.set_yticks(range(3), OUTCOMES)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def scatter(name: str, alt: str, points: dict[str, Any], labels: tuple[str, str]) -> Markup:
    """Draw a mark per battle at the two predictors' probabilities of its verdict; shape and colour show the verdict.

    The legend has the verdicts that occur: in runs of two classes no ties.
    """
    x, y, verdict = (np.array(points[key], dtype=float) for key in ("first", "second", "verdict"))
    with figure_of(4.3) as (figure, axes):
        ax = axes[0, 0]
        for i, outcome in enumerate(OUTCOMES):
            at = verdict == i
            if not at.any():
                continue
            ax.plot(x[at], y[at], MARKERS[i], color=colour(i), label=f"verdict: {outcome}", markersize=2.6,
                    alpha=0.55, markeredgewidth=0)  # fmt: skip
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_xlabel(f"{short(labels[0])}: P(verdict)")
        ax.set_ylabel(f"{short(labels[1])}: P(verdict)")
        figure.legend(loc="outside lower center", ncols=3, markerscale=2, handletextpad=0.1, columnspacing=1)
        return svg_of(figure, name, alt, square=(ax, labels))


def reliability(name: str, alt: str, diagrams: dict[str, dict[str, list[dict[str, Any]]]]) -> Markup:
    """Draw four reliability diagrams (a, b, tie, most probable class) with one line per predictor."""
    titles = {**dict(zip(CLASSES, OUTCOMES, strict=True)), "top": "most probable class"}
    values = Values()
    with figure_of(4.9, 2, 2) as (figure, axes):
        for ax, (key, title) in zip(axes.flat, titles.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
            for i, (predictor, curves) in enumerate(diagrams.items()):
                _points(ax, curves[key], i, short(predictor, 22), values)
            ax.set(title=title, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        for ax in axes[1]:
            ax.set_xlabel("predicted probability")
        figure.supylabel("observed share", fontsize=9)
        return svg_of(figure, name, alt, values.texts)


def _points(ax: Axes, points: Sequence[Any], i: int, label: str, values: Values) -> None:
    x, y = [p["predicted"] for p in points], [p["value"] for p in points]
    ax.plot(x, y, color=colour(i), marker=MARKERS[i % 6], linestyle=line(i), label=label)
    for p in points:
        if p["low"] is not None:
            ax.plot([p["predicted"]] * 2, [max(p["low"], 0), min(p["high"], 1)], color=colour(i), linewidth=0.7)
    texts = [
        f"{label}: predicted {p['predicted']:.3f}, observed {in_words(p, '.3f')}, {p['n']:,} battles" for p in points
    ]
    values.add(ax, x, y, texts)


def calibration(
    name: str, alt: str, curves: Mapping[str, list[dict[str, Any]]], labels: tuple[str, str]
) -> Markup:  # fmt: skip
    """Draw one reliability curve per predictor, with intervals and the diagonal."""
    values = Values()
    with figure_of(3.4 + legend_height(len(curves), 3)) as (figure, axes):
        ax = axes[0, 0]
        for i, (predictor, points) in enumerate(curves.items()):
            _points(ax, points, i, short(predictor, 22), values)
        top = max(*ax.get_xlim(), *ax.get_ylim())
        ax.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, top), ylim=(0, top))
        figure.legend(loc="outside lower center", ncols=3)
        return svg_of(figure, name, alt, values.texts)


def length_curves(name: str, alt: str, length: dict[str, Any]) -> Markup:
    """Draw P(A wins) - P(B wins) by the ratio of lengths: verdicts as a band of intervals, predictors as lines."""
    values = Values()
    with figure_of(3.1 + legend_height(len(length["predictors"]) + 1, 2)) as (figure, axes):
        ax = axes[0, 0]
        x = length["ratio"]
        low = [row["value"] if row["low"] is None else row["low"] for row in length["verdicts"]]
        high = [row["value"] if row["high"] is None else row["high"] for row in length["verdicts"]]
        ax.fill_between(x, low, high, color=GREY, alpha=0.3, linewidth=0, label="verdicts, 95 %")
        verdicts = length["verdicts"]
        texts = [f"verdicts: {in_words(row, '+.3f')}, {row['n']:,} battles" for row in verdicts]
        values.add(ax, x, [row["value"] for row in verdicts], texts)
        for i, (predictor, rows) in enumerate(length["predictors"].items()):
            values.add(ax, x, [row["value"] for row in rows], [f"{predictor}: {row['value']:+.3f}" for row in rows])
            ax.plot(x, [row["value"] for row in rows], color=colour(i), marker=MARKERS[i % 6], linestyle=line(i),
                    label=short(predictor, 22))  # fmt: skip
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks([2.0**k for k in range(-4, 5, 2)], ["1/16", "1/4", "1", "4", "16"])
        ax.minorticks_off()
        ax.set(xlabel="characters of A / characters of B", ylabel="P(A wins) - P(B wins)")
        figure.legend(loc="outside lower center", ncols=2)
        return svg_of(figure, name, alt, values.texts)
