"""Matplotlib figures as inline SVG in the page's colours.

Text stays text (selectable, searchable) and takes the page's colour, so one figure serves light and dark pages. The
palette is by Okabe and Ito, whose colours colour-blind readers can tell apart; markers and line styles differ as well.
Figures are narrow, so that a phone shows them at full size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
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
WIDTH = 4.0  # inches
DECIMALS = re.compile(r"(\.\d\d)\d+")
COORDINATES = re.compile(r' (x|y|d)="[^"]*"')
STYLE = re.compile(r' style="[^"]*"')
FAMILY = re.compile(r"font-family: [^;\"]*;? ?")  # the page's style sheet sets the font
TAG = re.compile(r"<[^>]+>")
MARKS = re.compile(r"<g( clip-path=[^>]*)?>((?:<use [^>]*/>)+)</g>")

STYLE_OF_FIGURES: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8.5, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "lines.linewidth": 1.3, "lines.markersize": 4, "svg.hashsalt": "report", "svg.fonttype": "none",
    "text.parse_math": False,
}  # fmt: skip
VARIABLE = re.compile(r"var\(--c\d, (#\w+)\)")
DOTS_PER_INCH = 200  # of PNG files


class Drawing(Markup):
    """A figure as an ``svg`` element, with its name and the matplotlib figure that it was made from."""

    name: str
    figure: Figure


def write_svg(drawing: Drawing, path: Path) -> None:
    """Write a figure as a file of its own, in dark ink for a light page."""
    text = VARIABLE.sub(r"\1", str(drawing)).replace("currentColor", "#1b1f24")
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="DejaVu Sans, Verdana, Arial, sans-serif" '
    path.write_text(head + text.removeprefix("<svg "), encoding="utf-8")


def write_png(drawing: Drawing, path: Path) -> None:
    """Write a figure as a picture on white."""
    with mpl.rc_context(STYLE_OF_FIGURES), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter of a user's text that no installed font has
        drawing.figure.savefig(path, format="png", dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


@contextmanager
def figure_of(height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its (rows, columns) axes in the report's style.

    Args:
        height: in inches.
        rows: of axes.
        columns: of axes.
    """
    with mpl.rc_context(STYLE_OF_FIGURES):  # type: ignore[arg-type]  # its keys are a Literal of 300 names
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def svg_of(
    figure: Figure,
    name: str,
    alt: str,
    hover: Mapping[str, str] | None = None,
    square: tuple[Axes, tuple[str, str]] | None = None,
) -> Drawing:
    """Return the figure as an ``svg`` element with a title for screen readers and no external reference.

    Args:
        figure: what is drawn.
        name: prefix of its element ids, unique on the page.
        alt: alternative text.
        hover: gid of an artist -> what the pointer shows on it.
        square: axes from 0 to 1 in both directions, and the names of the two, which the page's script shows with the
            values under the pointer.
    """
    with io.StringIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser chooses the font
        # Not savefig, which draws every figure twice, the first time for its layout alone.
        canvas: Any = FigureCanvasSVG(figure)  # print_svg has no types
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
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
    for gid, shown in (hover or {}).items():
        body = body.replace(
            f'<g id="{name}-{gid}">', f'<g id="{name}-{gid}" class="hover"><title>{escape(shown)}</title>'
        )
    label = escape(alt)
    place = _place(*square) if square else ""
    start = f'<svg {box.group(0) if box else ""} role="img" aria-label="{label}"{place}><title>{label}</title>'
    drawing = Drawing(start + body)  # matplotlib escapes text, the label is escaped here
    drawing.name, drawing.figure = name, figure
    return drawing


def _place(ax: Axes, names: tuple[str, str]) -> str:
    """Return data attributes with the place of axes in the figure, in parts of its width and height from top left."""
    box = ax.get_position()
    corners = " ".join(f"{value:.4f}" for value in (box.x0, 1 - box.y1, box.width, box.height))
    return f' data-square="{corners}" data-x="{escape(names[0])}" data-y="{escape(names[1])}"'


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
