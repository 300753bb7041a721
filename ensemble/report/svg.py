"""Matplotlib figures as inline SVG in the page's colours.

Text stays text (selectable, searchable) and takes the page's colour, so one figure serves light and dark pages. The
palette is by Okabe and Ito, whose colours colour-blind readers can tell apart; markers and line styles differ as well.
Figures are narrow, so that a phone shows them at full size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
)  # seven with six colours: no pair of both repeats within 42 series
INK = "#010203"  # replaced by the page's text colour
GREY = "#888888"
WIDTH = 4.2  # inches
DECIMALS = re.compile(r"(\.\d\d)\d+")
COORDINATES = re.compile(r' (x|y|d)="[^"]*"')
STYLE = re.compile(r' style="[^"]*"')
FAMILY = re.compile(r"font-family: [^;\"]*;? ?")  # the page's style sheet sets the font
TAG = re.compile(r"<[^>]+>")
MARKS = re.compile(r"<g( clip-path=[^>]*)?>((?:<use [^>]*/>)+)</g>")

mpl.rcParams["svg.fonttype"] = "none"


@contextmanager
def figure_of(height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its (rows, columns) axes in the report's style; ``height`` in inches."""
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


def svg_of(figure: Figure, name: str, alt: str) -> Markup:
    """Return the figure as an ``svg`` element with a title for screen readers and no external reference.

    Args:
        figure: what is drawn.
        name: prefix of its element ids, unique on the page.
        alt: alternative text.
    """
    with io.StringIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser chooses the font
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = file.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = body.replace(INK, "currentColor").replace("xlink:href", "href")
    for i, hue in enumerate(PALETTE):  # variables: the colours are lighter on a dark page
        body = body.replace(f": {hue.lower()}", f": var(--c{i}, {hue.lower()})")
    # Ids get a prefix: figures with equal ids on one page would share the first figure's clip paths.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = _compact(body)
    label = escape(alt)
    start = f'<svg {box.group(0) if box else ""} role="img" aria-label="{label}"><title>{label}</title>'
    return Markup(start + body)  # noqa: S704  # matplotlib escapes text, the label is escaped here


def _compact(body: str) -> str:
    """Return the SVG with coordinates rounded to 0.01 points, and one style for all marks of a group.

    A scatter plot of two thousand marks takes a third of the bytes.
    """

    def hoist(group: re.Match[str]) -> str:
        styles = set(STYLE.findall(group[2]))
        return f"<g{group[1] or ''}{styles.pop()}>{STYLE.sub('', group[2])}</g>" if len(styles) == 1 else group[0]

    def shorten(tag: re.Match[str]) -> str:  # tags only: texts stay as they are
        return COORDINATES.sub(lambda match: DECIMALS.sub(r"\1", match[0]), FAMILY.sub("", tag[0]))

    body = TAG.sub(shorten, body)
    return MARKS.sub(hoist, re.sub(r">\n\s+<", "><", body))


def colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def line(i: int) -> Any:
    return LINES[i % len(LINES)]


def legend_height(n: int, columns: int) -> float:
    """Return the height in inches of a legend of n entries below a figure, beyond its first row."""
    return 0.17 * (-(-n // columns) - 1)
