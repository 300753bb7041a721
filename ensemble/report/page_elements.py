"""Elements of a page: sections, paragraphs, tables, figures, quoted texts, formatted numbers.

Numbers appear on the page only through the functions from :func:`number` to :func:`any_value`, as ``<data value=…>``
with all digits: tables sort by this value, and a test finds each one in ``report.json``. All other text is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ensemble.statistics.interval_words import too_few

NOTHING = Markup()
MISSING = Markup("<span title='unknown'>–</span>")


@dataclass(frozen=True)
class Block:
    """One block of a section; the template reads the fields that its ``kind`` has."""

    kind: str  # text | table | figure | quotes
    text: Markup = NOTHING
    caption: str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    svg: Markup = NOTHING
    folded: bool = False  # a table that is shown after a click


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    blocks: list[Block]


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


def table(caption: str, head: list[str], rows: list[list[Any]], folded: bool = False) -> Block:
    return Block("table", caption=caption, head=head, rows=rows, folded=folded)


def figure(caption: str, svg: Markup) -> Block:
    return Block("figure", caption=caption, svg=svg)


def quotes(caption: str, rows: list[list[Any]]) -> Block:
    """Return quoted texts of users: rows of (title, text)."""
    return Block("quotes", caption=caption, rows=rows)
