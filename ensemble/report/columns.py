"""Layout of the blocks of a section in two columns, and widths of tables.

The page's style sheet shows a pair of columns side by side where the page is wide. What goes under what is decided
here, from estimated heights, because CSS has no layout that fills the shorter column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from ensemble.report.page_elements import Block, striptags

HALF = 68  # characters of a table that fits into half a row, with GAP between its columns
PHONE = 48  # characters of a table that fits on a phone
GAP = 2
SMALL = 0.83  # width of a character of an interval, which is set smaller
APART = 2  # blocks from a half one to the neighbour that moves up beside it

# Estimated heights in pixels
WIDTH, LINE, LETTERS, ROW, TITLE, SPACE = 490, 25, 62, 31, 34, 14
SLACK = 80  # that a column may be longer than the other one
BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def fitted(block: Block) -> Block:
    """Return a table with its layout: whether it fits into half a row and on a phone, and its row titles there."""
    half = _width(block, narrow=False) <= HALF
    wide = _width(block, narrow=True) > PHONE
    return replace(block, half=half and not block.folded, narrow=half, wide=wide, spans=_spans(block))


def _width(block: Block, narrow: bool) -> float:
    """Return the characters that the columns take; ``narrow``: with intervals below their values."""
    columns: list[float] = []
    for title, *cells in zip(block.head, *block.rows, strict=True):
        words = _longest_word(title)  # headings break between words
        columns.append(max([words, *(_length(cell, narrow) for cell in cells)]))
    if narrow and columns:  # there the first column is wrapped
        columns[0] = max(_longest_word(striptags(row[0])) for row in [block.head, *block.rows])
    return sum(columns) + GAP * len(columns)


def _longest_word(words: str) -> int:
    return max(map(len, words.split(" ")))  # not at spaces without a break


def _length(cell: Any, narrow: bool) -> float:
    if not isinstance(cell, Markup):
        return len(str(cell))
    shown, *small = re.split(r"<small>(.*?)</small>", str(cell))
    value = len(Markup(shown).striptags())  # noqa: S704  # a part of safe HTML, measured only
    interval = SMALL * len(Markup(small[0]).striptags()) if small else 0.0  # noqa: S704
    return max(value, interval) if narrow else value + interval


def _spans(block: Block) -> list[int]:
    """Return the widths, in twelfths, of the cells that are a row's title on a phone: one, or two if both are words."""
    if len(block.head) < 3 or any("<data" in str(row[1]) for row in block.rows):
        return [12]
    return [2, 10] if all(len(striptags(row[0])) <= 4 for row in block.rows) else [4, 8]


def in_columns(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with those of half a row side by side, and what follows under the shorter column.

    A half block without a neighbour stands beside the text after it, or takes a whole row.
    """
    arranged: list[Block] = []
    waiting = [fitted(block) if block.kind == "table" else block for block in blocks]
    while waiting:
        block = waiting.pop(0)
        if not block.half:
            arranged.append(block)
            continue
        near = _neighbour(waiting)
        left, right = [block], [] if near is None else [waiting.pop(near)]
        while waiting and _fits(waiting[0], left, right):
            shorter = left if _height(left) < _height(right) else right
            shorter.append(waiting.pop(0))
        if right:
            arranged.append(Block("columns", columns=(left, right)))
        else:
            arranged.append(replace(block, half=False))
    return arranged


def _neighbour(waiting: list[Block]) -> int | None:
    """Return the place of the block that moves up beside a half one; None if each near one has a partner after it."""
    near = next((k for k, block in enumerate(waiting[: APART + 1]) if block.half), None)
    if near:
        run = [block.half for block in waiting[near:]]
        if (run.index(False) if False in run else len(run)) % 2 == 0:
            return None
    return near


def _fits(block: Block, left: list[Block], right: list[Block]) -> bool:
    """Return whether a block fits under, or beside, the shorter of two columns."""
    heights = sorted([_height(left), _height(right)])
    movable = block.kind == "text" or (bool(right) and (block.half or block.narrow))
    return movable and heights[0] + SPACE + _height([block]) <= heights[1] + SLACK


def _height(blocks: list[Block]) -> float:
    """Return the estimated height of a column."""
    return sum(_block_height(block) for block in blocks) + SPACE * max(len(blocks) - 1, 0)


def _block_height(block: Block) -> float:
    if block.kind == "text":
        return LINE * -(-len(block.text.striptags()) // LETTERS)
    if block.kind == "figure":
        box = BOX.search(block.svg)
        aspect = float(box[2]) / float(box[1]) if box else 0.7
        return WIDTH * aspect + LINE * -(-len(block.caption) // LETTERS)
    return TITLE if block.folded else TITLE + ROW * (1.5 + len(block.rows))
