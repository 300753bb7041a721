"""Design matrix: joined by id, swapped exactly, finite, and with unique columns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ensemble.features.design_matrix import build_design, join_logits
from oof.classes import swap_orders
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame
from tests.fixtures.arenas import make_arena, swap_table


def test_a_swapped_battle_has_the_swapped_features_and_swapping_twice_changes_nothing() -> None:
    arena = make_arena(40)
    swapped = build_design(swap_table(arena.table), {n: swap_orders(z) for n, z in arena.logits.items()})
    np.testing.assert_array_equal(swapped.x, arena.design.x_swapped)
    np.testing.assert_array_equal(swapped.x_swapped, arena.design.x)
    np.testing.assert_allclose(swapped.pool, arena.design.pool[:, :, [1, 0, 2]])


def test_swapped_logits_follow_the_definition() -> None:
    logits = np.arange(6.0).reshape(1, 2, 3)
    np.testing.assert_array_equal(swap_orders(logits)[0], [[4, 3, 5], [1, 0, 2]])


def test_logits_are_joined_by_id() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    frame = logits_frame(pl.Series("id", list("abcde")), logits, 0).sample(fraction=1, shuffle=True, seed=1)
    np.testing.assert_array_equal(join_logits(list("edcba"), frame), logits[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.head(3), "2 battles missing"),
        (lambda f: f.with_columns(id=pl.Series(["a", "b", "c", "d", "z"])), "1 unknown"),
        (lambda f: pl.concat([f, f.head(1)]), "1 repeated"),
        (lambda f: f.with_columns(ab_a=pl.lit(float("nan"))), "5 battles have logits that are not finite"),
        (lambda f: f.drop("ba_tie"), "missing column 'ba_tie'"),
    ],
)
def test_logits_that_do_not_fit_are_refused_with_counts(change: object, message: str) -> None:
    frame = logits_frame(pl.Series("id", list("abcde")), np.zeros((5, 2, 3)), 0)
    with pytest.raises(UserError, match=message):
        join_logits(list("abcde"), change(frame))


def test_text_features_have_the_values_that_their_names_say() -> None:
    table = pl.DataFrame(
        {
            "id": ["x"],
            "prompt": [["hello there"]],
            "response_a": [["one two three", ""]],
            "response_b": [["I am sorry, **no**", "- a list"]],
        }
    )
    design = build_design(table, {"m": np.zeros((1, 2, 3))})
    row = dict(zip(design.names, design.x[0].tolist(), strict=True))
    assert row["log_words_a"] == pytest.approx(np.log(4))
    assert row["log_words_b"] == pytest.approx(np.log(8))
    assert row["log_words_diff"] == pytest.approx(np.log(4) - np.log(8), abs=1e-6)
    assert row["log_chars_a"] == pytest.approx(np.log(15))  # 13 characters and the newline between the turns
    assert (row["empty_a"], row["empty_b"], row["identical"]) == (0.5, 0, 0)
    assert (row["refusal_a"], row["refusal_b"]) == (0, 1)
    assert row["bold_diff"] == pytest.approx(-np.log(3))
    assert row["list_diff"] == pytest.approx(-np.log(2))


def test_no_name_of_a_member_can_hide_another_column() -> None:
    table = make_arena(20).table
    logits = np.random.default_rng(0).normal(size=(20, 2, 3))
    plain = build_design(table, {"m": logits})
    for name in ("mean", "log_words", "log_chars", "between", "turns", "code", "empty"):
        assert len(set(build_design(table, {name: logits}).names)) == len(plain.names)


def test_certain_members_give_finite_features() -> None:
    logits = np.zeros((20, 2, 3))
    logits[:, :, 0] = 5000.0
    design = build_design(make_arena(20).table, {"sure": logits, "surer": -logits})
    assert np.isfinite(design.x).all()
    assert np.isfinite(design.pool).all()
