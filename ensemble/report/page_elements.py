"""Elements of a page: sections, paragraphs, lists, tables, figures, quoted texts, formatted numbers.

Numbers appear on the page only through the functions from :func:`number` to :func:`any_value`, as ``<data value=…>``
with all digits: tables sort by this value, and a test finds each one in ``report.json``. All other text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ensemble.statistics.interval_words import too_few

NOTHING = Markup()
MISSING = Markup("<span title='unknown'>–</span>")


@dataclass(frozen=True)
class Battle:
    """A battle to read: rows of (predictor, P(A), P(B), P(tie)), and texts of (heading, text, note or None).

    ``anchor`` is the target of links to it; without one there are none.
    """

    title: Markup
    probs: list[list[Any]]
    texts: list[tuple[str, str, Markup | None]]
    anchor: str = ""


@dataclass(frozen=True)
class Block:
    """One block of a section; the template reads the fields that its ``kind`` has."""

    kind: str  # text | list | table | figure | quotes | battles | columns
    text: Markup = NOTHING
    caption: str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    svg: Markup = NOTHING
    folded: bool = False  # a table that is shown after a click
    best: int | None = None  # row of a table that is highlighted
    battles: list[Battle] = field(default_factory=list)
    half: bool = False  # takes one of two columns where the page is wide
    narrow: bool = False  # a table that fits into half a row, folded or not
    wide: bool = False  # a table that does not fit on a phone: there each row is shown as a list
    spans: list[int] = field(default_factory=list)  # twelfths of the cells that are the title of such a row
    columns: tuple[list[Block], ...] = ()  # of blocks side by side


@dataclass(frozen=True)
class Section:
    """A part of the page; one without blocks is a line that says which command fills it, or absent without ``fill``."""

    anchor: str
    title: str
    blocks: list[Block]
    fill: Markup = NOTHING


@dataclass(frozen=True)
class Card:
    """One of the large numbers at the head of the page."""

    label: str
    name: str
    value: Markup
    note: Markup
    chosen: bool


@dataclass(frozen=True)
class Head:
    """First screen: facts about the run, its conclusion, the large numbers, the next command, how far to trust them."""

    facts: list[str]  # plain text, or Markup
    conclusion: Markup
    cards: list[Card]
    legend: Markup  # how to read the cards
    command: str
    purpose: str  # of the command
    trust: str  # good | check | bad
    reason: Markup


def striptags(cell: Any) -> str:
    """Return the text of a cell as a reader sees it; a plain string is text already."""
    return str(cell.striptags()) if isinstance(cell, Markup) else str(cell)


def number(value: float | None, digits: int = 4, signed: bool = False) -> Markup:
    if value is None:
        return MISSING
    shown = f"{value:{'+' if signed else ''},.{digits}f}"
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def count(value: int | None) -> Markup:
    return MISSING if value is None else Markup('<data value="{}">{}</data>').format(repr(value), f"{value:,}")


def percent(value: float | None, digits: int = 1) -> Markup:
    if value is None:
        return MISSING
    return Markup('<data value="{}">{}</data>').format(repr(value), f"{100 * value:.{digits}f} %")


def p_value(value: float | None) -> Markup:
    """Return a p-value, small ones as a power of ten."""
    if value is None or value == 0 or value >= 1e-4:
        return number(value)
    return Markup('<data value="{}">{}</data>').format(repr(value), f"{value:.0e}")


def interval(bounds: dict[str, Any] | None, digits: int = 4, signed: bool = False, share: bool = False) -> Markup:
    """Return ``value [low, high]`` of {"value", "low", "high"}; without bounds the value alone.

    Of a difference (``signed``) from too few groups, the words that stand for the verdict follow.
    """
    if not bounds or bounds.get("value") is None:
        return MISSING
    value, low, high = (
        percent(bounds.get(key)) if share else number(bounds.get(key), digits, signed)
        for key in ("value", "low", "high")
    )
    if bounds.get("low") is None:
        few = signed and "groups" in bounds
        return Markup("{} <small>{}</small>").format(value, too_few(bounds["groups"])) if few else value
    return Markup("{} <small>[{}, {}]</small>").format(value, low, high)


def any_value(value: Any) -> Any:
    """Return the table cell of a value of any JSON type."""
    if isinstance(value, bool) or value is None:
        return MISSING if value is None else str(value)
    if isinstance(value, int):
        return count(value)
    return number(value) if isinstance(value, float) else str(value)


def text(template: str, **values: Any) -> Block:
    """Return a paragraph: ``{name}`` in the template is replaced by the escaped value of that name."""
    return Block("text", text=Markup(template).format(**values))  # noqa: S704  # only our own sentences


def table(caption: str, head: list[str], rows: list[list[Any]], folded: bool = False, best: int | None = None) -> Block:
    head = [name.replace(" %", "\xa0%") for name in head]
    return Block("table", caption=caption, head=head, rows=rows, folded=folded, best=best)


def sentences(caption: str, rows: Sequence[str]) -> Block:
    """Return a list of sentences, plain text or Markup, under a heading."""
    return Block("list", caption=caption, rows=[[row] for row in rows])


def figure(caption: str, svg: Markup) -> Block:
    return Block("figure", caption=caption.replace(" %", "\xa0%"), svg=svg, half=True)


def quotes(caption: str, rows: list[list[Any]]) -> Block:
    """Return quoted texts of users: rows of (title, text)."""
    return Block("quotes", caption=caption, rows=rows)


def bar(bounds: dict[str, Any], scale: tuple[float, float]) -> Markup:
    """Return an interval as a bar on a scale from low to high; the cell beside it has the numbers.

    A value beyond the scale is an arrow at its end.
    """
    low, high = scale
    place = [
        None if bounds[key] is None else 100 * (bounds[key] - low) / (high - low) for key in ("low", "value", "high")
    ]
    if place[1] is None or place[1] > 100:
        return Markup('<span class="bar beyond" aria-hidden="true"></span>')
    at = max(place[1], 0.0)
    start, end = (at if edge is None else min(max(edge, 0.0), 100.0) for edge in (place[0], place[2]))
    return Markup(
        '<span class="bar" aria-hidden="true"><i style="left:{:.1f}%;width:{:.1f}%"></i>'
        '<em style="left:{:.1f}%"></em></span>'
    ).format(start, end - start, at)
