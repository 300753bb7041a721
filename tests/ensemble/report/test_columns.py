"""Layout of blocks in two columns, and of tables on narrow pages."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from ensemble.report.columns import fitted, in_columns
from ensemble.report.page_elements import Block, interval, number, table, text


def shape(blocks: list[Block]) -> str:
    """Return the layout by the blocks' captions: [left|right], H = a half block that takes a whole row."""

    def name(block: Block) -> str:
        return block.caption or "t"

    parts = []
    for block in in_columns(blocks):
        if block.kind == "columns":
            parts.append("[" + "|".join("".join(map(name, column)) for column in block.columns) + "]")
        else:
            parts.append(name(block))
    return "".join(parts)


def figure_of(name: str, height: int) -> Block:
    return Block("figure", caption=name, half=True, svg=Markup(f'<svg viewBox="0 0 490 {height}">'))  # noqa: S704  # ours


KINDS = {
    "f": figure_of("f", 400),
    "s": figure_of("s", 150),
    "t": text("A short sentence."),
    "x": Block("battles", caption="x"),
    "n": table("n", ["a", "b"], [["one", "two"]]),
    "o": table("o", ["a", "b"], [["one", "two"]], folded=True),
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ff", "[f|f]"),
        ("f", "f"),
        ("fxf", "[f|f]x"),
        ("xfffx", "x[f|f]fx"),
        ("fxxxf", "fxxxf"),
        ("", ""),
        ("fxff", "fx[f|f]"),  # the last two have each other
        ("ft", "[f|t]"),
        ("fx", "fx"),
        ("fst", "[f|st]"),
        ("sft", "[st|f]"),
        ("fno", "[f|no]"),
        ("fntx", "[f|nt]x"),
        ("fss", "[f|ss]"),
    ],
)
def test_half_blocks_stand_side_by_side_and_the_shorter_column_is_filled(before: str, after: str) -> None:
    assert shape([KINDS[kind] for kind in before]) == after


@pytest.mark.parametrize("before", ["nftsonxf", "ttnnff", "ffffft", "otnxsfn"])
def test_no_block_is_lost(before: str) -> None:
    assert sorted(shape([KINDS[kind] for kind in before]).translate(str.maketrans("", "", "[|]"))) == sorted(before)


def test_a_narrow_table_takes_half_a_row_and_a_folded_or_wide_one_a_whole() -> None:
    row = ["a", number(0.5)]
    assert fitted(table("t", ["long heading of words", "value"], [row])).half
    assert not fitted(table("t", ["name", "value"], [row], folded=True)).half
    assert not fitted(table("t", ["name", "value"], [["a" * 70, number(0.5)]])).half


def test_a_table_that_is_too_wide_for_a_phone_has_its_rows_as_lists_under_their_titles() -> None:
    value = interval({"value": 0.5, "low": 0.25, "high": 0.75})
    assert not fitted(table("t", ["name", "one", "two"], [["a", value, value]])).wide
    many = ["name", *(f"column {i}" for i in range(6))]
    wide = fitted(table("t", many, [["a", *[value] * 6]]))
    assert wide.wide
    assert wide.spans == [12]
    assert fitted(table("t", ["of", "name", "loss"], [["long word", "a", value]])).spans == [4, 8]
    assert fitted(table("t", ["rank", "name", "loss"], [["1 =", "a", value]])).spans == [2, 10]
