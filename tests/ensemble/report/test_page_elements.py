"""Layout of blocks in two columns, bars of intervals, cells of every type."""

from __future__ import annotations

import pytest

from ensemble.report.page_elements import Block, bar, in_columns, number, table


def shape(kinds: str) -> str:
    """Return the layout of blocks: h = half, anything else = whole row; H = a half block that takes a whole row."""
    blocks = in_columns([Block(kind, half=kind == "h") for kind in kinds])
    return "".join(block.kind.upper() if block.kind == "h" and not block.half else block.kind for block in blocks)


@pytest.mark.parametrize(
    ("before", "after"),
    [("hh", "hh"), ("h", "H"), ("hxh", "hhx"), ("xhhhx", "xhhHx"), ("hxxh", "HxxH"), ("", ""), ("hxhh", "hhxH")],
)
def test_half_blocks_come_in_pairs(before: str, after: str) -> None:
    assert shape(before) == after


def test_a_narrow_table_takes_half_a_row_and_a_folded_or_wide_one_a_whole() -> None:
    row = ["a", number(0.5)]
    assert table("t", ["long heading of words", "value"], [row]).half
    assert not table("t", ["name", "value"], [row], folded=True).half
    assert not table("t", ["name", "value"], [["a" * 70, number(0.5)]]).half


def test_bars_stay_on_their_scale() -> None:
    inside = bar({"low": 0.0, "value": 0.25, "high": 2.0}, (0.0, 1.0))
    assert "left:0.0%;width:100.0%" in inside
    assert 'em style="left:25.0%' in inside
    assert "beyond" in bar({"low": 1.5, "value": 2.0, "high": 3.0}, (0.0, 1.0))
    assert "left:50.0%;width:0.0%" in bar({"low": None, "value": 0.5, "high": None}, (0.0, 1.0))
