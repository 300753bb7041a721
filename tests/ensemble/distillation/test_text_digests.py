"""Digests of texts: the keys of older runs, whatever the size of the parts, and one hash per distinct battle."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.distillation import text_digests
from oof.common.digests import digest, digest_of_lists
from tests.fixtures.small_tables import texts_table

TURNS = st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, max_size=2)
BATTLES = st.lists(st.tuples(TURNS, TURNS, TURNS), max_size=9)


@settings(max_examples=30)
@given(BATTLES, st.integers(1, 10))
def test_a_table_s_key_is_that_of_its_columns_as_lists(battles: list[tuple[list[str], ...]], rows: int) -> None:
    table = texts_table(battles)  # type: ignore[arg-type]
    with patch.object(text_digests, "ROWS", rows):
        key, hashes = text_digests.texts_key(table), text_digests.battle_hashes(table)
    assert key == digest(*(table[name].to_list() for name in ("id", "prompt", "response_a", "response_b")))
    assert [hashes.to_list().index(value) for value in hashes] == [battles.index(battle) for battle in battles]


def test_empty_parts_and_lists_change_no_digest() -> None:
    assert digest_of_lists([[1], [], [None, {"b": 1, "a": 2}]], [[]], []) == digest([1, None, {"b": 1, "a": 2}], [], [])
