"""Design matrix: joined by id, swapped exactly, finite, and with unique columns."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from ensemble.features.design_matrix import (
    Design,
    add_member,
    add_terms,
    build_design,
    describe,
    design_of,
    join_logits,
    with_counts,
)
from oof.classes import swap_orders, with_tie
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS, logits_frame
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


def test_logits_of_whole_number_ids_are_joined_as_float32() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2, 3))
    joined = join_logits(["30", "10", "20"], logits_frame(pl.Series("id", [10, 20, 30]), logits, 0))
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, logits[[2, 0, 1]].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.head(3), "2 battles missing"),
        (lambda f: f.with_columns(id=pl.Series(["a", "b", "c", "d", "z"])), "1 unknown"),
        (lambda f: pl.concat([f, f.head(1)]), "1 repeated"),
        (lambda f: f.with_columns(ab_a=pl.lit(float("nan"))), "5 battles have logits that are not finite"),
        (lambda f: f.with_columns(ba_tie=pl.Series([0.0, 0, float("inf"), 0, 0])), "1 battles have logits that are"),
        (lambda f: f.drop("ba_tie"), "missing column 'ba_tie'"),
        (lambda f: f[1:], "1 battles missing, 0 unknown, 0 repeated; .*; first missing: a$"),
        (lambda f: pl.concat([f, f[1:3], f[1:2]]), "0 battles missing, 0 unknown, 3 repeated; .*; first repeated: b$"),
        (
            lambda f: pl.concat([f.with_columns(pl.col("id") + "x"), f]),
            "0 battles missing, 5 unknown, 0 repeated; .*; first unknown: ax$",
        ),
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


def row_of(logits: dict[str, np.ndarray], i: int) -> dict[str, float]:
    """Return battle i's columns of its members' (n, 2, 3) logits, by their definitions with scipy and plain Python."""
    columns, means, probs = {}, [], []
    for name, values in logits.items():
        ab, ba = (values[i, order] - values[i, order].mean() for order in (0, 1))  # centred: a constant changes nothing
        z = (ab + ba) / 2
        p = np.exp(z) / np.exp(z).sum()
        columns |= {
            f"{name}:margin": z[0] - z[1],
            f"{name}:tie": z[2],
            f"{name}:margin_ab": ab[0] - ab[1],
            f"{name}:margin_ba": ba[0] - ba[1],
            f"{name}:tie_ab": ab[2],
            f"{name}:tie_ba": ba[2],
            # Both orders are in class order: A is shown first in ab, and last in ba.
            f"{name}:first_shown": (ab[0] - ab[1]) - (ba[0] - ba[1]),
            f"{name}:entropy": entropy(p),
            f"{name}:disagreement": max(abs(x - y) for x, y in zip(ab, ba, strict=True)),
        }
        means.append(z)
        probs.append(p)
    margins, ties = [z[0] - z[1] for z in means], [z[2] for z in means]
    votes = Counter(int(np.argmax(z)) for z in means)
    columns |= {
        "between::margin": np.mean(margins),
        "between::spread": np.std(margins),
        "between::tie": np.mean(ties),
        "between::tie_spread": np.std(ties),
        "between::agreement": max(votes.values()) / len(means),
    }
    for k in range(len(means)):
        for j in range(k):
            columns[f"between::divergence_{j}_{k}"] = jensenshannon(probs[j], probs[k]) ** 2
    return columns


def three_members(n: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        name: rng.normal(rng.normal(size=3), scale, size=(n, 2, 3)) for name, scale in (("x", 1), ("y", 3), ("z", 0.3))
    }


def bare(logits: dict[str, np.ndarray]) -> Design:
    """Return the design of battles without features."""
    n = len(next(iter(logits.values())))
    return design_of([f"b{i}" for i in range(n)], pl.DataFrame(), {}, logits)


def test_each_column_of_the_logits_has_its_definition_in_both_orders() -> None:
    logits = three_members()
    design = bare(logits)
    swapped = {name: values[:, ::-1][:, :, [1, 0, 2]] for name, values in logits.items()}
    for x, given in ((design.x, logits), (design.x_swapped, swapped)):
        for i in range(50):
            expected = row_of(given, i)
            assert list(expected) == design.names
            np.testing.assert_allclose(x[i], list(expected.values()), rtol=1e-5, atol=1e-6)
    assert design.x.dtype == design.x_swapped.dtype == np.float32


def test_the_pool_holds_centred_log_probabilities_of_the_mean_of_both_orders() -> None:
    logits = three_members()
    pool = bare(logits).pool
    assert pool.shape == (50, 3, 3)
    assert pool.dtype == np.float64
    for m, values in enumerate(logits.values()):
        mean = (values[:, 0] + values[:, 1]) / 2
        np.testing.assert_allclose(pool[:, m], mean - mean.sum(axis=1, keepdims=True) / 3, atol=1e-12)


def test_columns_are_found_by_their_family() -> None:
    arena = make_arena(12)
    design = arena.design
    assert [design.names[i] for i in design.columns("member:two")] == [n for n in design.names if n.startswith("two:")]
    assert len(design.columns("member:two")) == 9
    assert [design.names[i] for i in design.columns("between")] == [
        n for n in design.names if n.startswith("between::")
    ]
    assert set(design.families) == set(design.names)
    assert design.columns("lengths")
    assert design.columns("no such family") == []
    assert design.members == ["one", "two"]
    assert design.ids == arena.table["id"].to_list()
    assert set(describe()) >= {"member:NAME", "between", "lengths"}
    assert describe()["between"].startswith("Agreement of the members: mean and spread of their margins")


def test_rows_of_a_design_are_taken_together() -> None:
    logits = three_members()
    rows = np.array([7, 3, 3])
    taken, one_by_one = bare(logits).take(rows), bare({name: values[rows] for name, values in logits.items()})
    for name in ("x", "x_swapped", "pool"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(one_by_one, name))
    assert taken.ids == ["b7", "b3", "b3"]
    assert (taken.names, taken.members) == (one_by_one.names, one_by_one.members)


def test_a_member_that_is_added_has_the_columns_of_one_that_was_there_and_changes_no_other() -> None:
    logits = three_members()
    first = {name: logits[name] for name in ("x", "y")}
    before, together = bare(first), bare(logits)
    after = add_member(before, "z", logits["z"])
    assert after.names[: len(before.names)] == before.names
    assert [after.names[i] for i in after.columns("member:z")] == after.names[len(before.names) :]
    for name in ("x", "x_swapped"):
        old, new, all_of_them = (getattr(design, name) for design in (before, after, together))
        np.testing.assert_array_equal(new[:, : len(before.names)], old)
        np.testing.assert_array_equal(new[:, len(before.names) :], all_of_them[:, together.columns("member:z")])
        assert new.dtype == np.float32
    np.testing.assert_array_equal(after.pool, together.pool)
    assert after.members == ["x", "y", "z"]
    assert before.members == ["x", "y"]  # the design is not changed


@pytest.mark.parametrize("shape", [(5, 2, 3), (4, 1, 3), (4, 2, 2), (4, 3)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"logits of m: expected finite numbers of shape \(4, 2, 3\)"):
        design_of(list("abcd"), pl.DataFrame(), {}, {"m": np.zeros(shape)})


def test_logits_that_are_not_finite_and_no_logits_are_refused() -> None:
    one_infinite = np.zeros((4, 2, 3))
    one_infinite[2, 1, 0] = np.inf
    with pytest.raises(UserError, match="logits of m: expected finite"):
        design_of(list("abcd"), pl.DataFrame(), {}, {"good": np.zeros((4, 2, 3)), "m": one_infinite})
    with pytest.raises(UserError, match="no member's logits"):
        design_of(list("abcd"), pl.DataFrame(), {}, {})


def test_token_counts_are_joined_by_id_where_a_file_has_them() -> None:
    table = make_arena(3).table
    counts = pl.DataFrame({"id": ["b2", "b0", "b1"], **{name: [2, 0, 1] for name in COUNT_COLUMNS}})
    assert with_counts(table, counts).select(COUNT_COLUMNS).rows() == [(i,) * len(COUNT_COLUMNS) for i in range(3)]
    assert with_counts(table, counts.drop(COUNT_COLUMNS[-1])).columns == table.columns


def assert_equal_designs(one: Design, other: Design) -> None:
    for name in ("x", "x_swapped", "pool", "orders"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("names", "families", "members", "ids", "ties"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("members", [["two"], ["one", "three"], ["three", "two", "one"], ["one", "two", "three"]])
def test_a_design_with_some_members_is_the_one_that_is_made_of_them(members: list[str]) -> None:
    arena = make_arena(15)
    logits = arena.logits | {"three": np.random.default_rng(0).normal(size=(15, 2, 3)).astype(np.float32)}
    kept = add_terms(build_design(arena.table, logits), arena.table).keep(members)
    assert_equal_designs(kept, build_design(arena.table, {name: logits[name] for name in members}))
    assert kept.terms is not None


def test_a_design_without_members_has_the_columns_of_texts_and_a_missing_member_is_named() -> None:
    arena = make_arena(5)
    none = arena.design.keep([])
    assert none.names == [
        n for n in arena.design.names if arena.design.families[n].split(":")[0] not in ("member", "between")
    ]
    assert none.x.shape == (5, len(none.names))
    np.testing.assert_array_equal(none.x, arena.design.x[:, : len(none.names)])
    with pytest.raises(UserError, match="the member 'five', whose logits"):
        arena.design.keep(["one", "five"])


def test_one_order_is_one_for_every_member_and_battle() -> None:
    both = three_members(4)
    single = {name: np.repeat(values[:, :1], 2, axis=1) for name, values in both.items()}
    assert bare(single).one_order
    assert not bare(both).one_order
    assert not bare(single | {"y": both["y"]}).one_order
    one_battle = single["z"].copy()
    one_battle[2, 1, 0] += 1
    assert not bare(single | {"z": one_battle}).one_order
    assert bare(single | {"z": one_battle}).take(np.array([0, 3])).one_order


def test_orders_are_the_logits_that_were_given() -> None:
    logits = three_members(6)
    orders = bare(logits).orders
    assert orders.dtype == np.float32
    for i, values in enumerate(logits.values()):
        np.testing.assert_array_equal(orders[:, i], values.astype(np.float32))
    added = add_member(bare({"x": logits["x"]}), "y", logits["y"])
    np.testing.assert_array_equal(added.orders, orders[:, :2])
    assert added.orders.dtype == np.float32


def test_terms_belong_to_their_battles_and_need_texts() -> None:
    table = make_arena(6).table
    design = add_terms(bare({"m": np.zeros((6, 2, 3))}), table)
    assert design.terms is not None
    words = [[len(response[0].split()) for response in table[f"response_{side}"]] for side in "ab"]
    np.testing.assert_allclose(design.terms.log_words, np.log1p(np.array(words)).T)
    rows = np.array([4, 1])
    taken = design.take(rows).terms
    assert taken is not None
    np.testing.assert_array_equal(taken.log_words, design.terms.log_words[rows])
    assert (taken.a != design.terms.a[rows]).nnz == 0
    empty = table.with_columns(pl.lit([""]).alias(name) for name in ("prompt", "response_a", "response_b"))
    assert add_terms(bare({"m": np.zeros((6, 2, 3))}), empty).terms is None
    assert bare({"m": np.zeros((6, 2, 3))}).take(rows).terms is None


def test_a_member_that_joins_others_without_ties_has_none_either() -> None:
    logits = three_members(7)
    pinned = {name: with_tie(values[..., :2]) for name, values in logits.items()}
    assert bare(logits).ties
    assert bare(pinned | {"z": logits["z"]}).ties  # one member that knows ties is enough
    two = bare({name: pinned[name] for name in ("x", "y")})
    assert not two.ties
    added = add_member(two, "z", logits["z"])
    np.testing.assert_array_equal(added.orders[:, 2], pinned["z"].astype(np.float32))
    np.testing.assert_array_equal(added.pool, bare(pinned).pool)
