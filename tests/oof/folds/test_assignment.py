"""Folds: a group is never split, folds are stratified, and they depend on seed and content only."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.config import Groups
from oof.folds import assignment
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from tests.fixtures.small_tables import sentence, table_of


def battles(n: int, n_groups: int, seed: int = 0) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n - n_groups)])
    table = table_of([f"prompt {group}" for group in groups], label=rng.integers(0, 3, n).tolist())
    return table, groups.astype(np.int64)


def n_split_groups(groups: NDArray[np.int64], folds: NDArray[np.int32]) -> int:
    return sum(len(set(folds[groups == group])) > 1 for group in set(groups.tolist()))


@settings(max_examples=40)
@given(n_groups=st.integers(10, 40), more=st.integers(0, 60), k=st.integers(2, 5), seed=st.integers(0, 2**31 - 1))
def test_a_group_is_never_split(n_groups: int, more: int, k: int, seed: int) -> None:
    table, groups = battles(n_groups + more, n_groups, seed % 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = assign_folds(table, groups, k, seed)
    assert n_split_groups(groups, folds) == 0
    assert set(folds.tolist()) == set(range(k))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), relabel=st.integers(0, 1000))
def test_shuffled_rows_and_renumbered_groups_change_no_fold(seed: int, relabel: int) -> None:
    table, groups = battles(120, 60)
    table = table.with_columns(pl.Series("wanted", assign_folds(table, groups, 5, 3)), pl.Series("group", groups))
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=seed)
    numbers = np.random.default_rng(relabel).permutation(1000)[shuffled["group"].to_numpy()]
    assert assign_folds(shuffled, numbers, 5, 3).tolist() == shuffled["wanted"].to_list()


def test_equal_texts_in_groups_of_a_column_do_not_depend_on_row_order() -> None:
    table = table_of(["same"] * 30, group_key=[f"k{i % 10}" for i in range(30)])
    table = table.with_columns(response_a=pl.lit("x").repeat_by(1), response_b=pl.lit("y").repeat_by(1))
    groups = group_battles(table, Groups(column="k"))
    table = table.with_columns(pl.Series("wanted", assign_folds(table, groups, 5, 0)))
    backwards = table.reverse()
    again = assign_folds(backwards, group_battles(backwards, Groups(column="k")), 5, 0)
    assert again.tolist() == backwards["wanted"].to_list()


def test_the_seed_changes_the_folds() -> None:
    table, groups = battles(200, 150)
    assert assign_folds(table, groups, 5, 0).dtype == np.int32
    assert assign_folds(table, groups, 5, 0).tolist() == assign_folds(table, groups, 5, 0).tolist()
    assert assign_folds(table, groups, 5, 0).tolist() != assign_folds(table, groups, 5, 1).tolist()


def test_the_folds_of_a_seed_are_the_same_in_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members and students are trained without a fold: were a battle in another one later, its label would be seen."""
    table, groups = battles(40, 30)
    few, many = with_extra(3, 30, 1), with_extra(20, 30, 1)
    assert "".join(map(str, assign_folds(table, groups, 4, 7))) == "2310022312020223301310203011100331231223"
    assert "".join(map(str, assign_folds(*many, 4, 7)[30:])) == "30131232033112223210"
    assert "".join(map(str, assign_folds(*few, 4, 7)[30:])) == "001"
    turns = table_of([["first turn", f"turn {i}"] for i in range(24)])
    assert "".join(map(str, assign_folds(turns, np.arange(24), 4, 7))) == "030030203111202311123322"
    nothing = [[""]] * 24
    hardly = table_of([""] * 12 + ["X"] * 6 + [" "] * 6, response_a=nothing, response_b=nothing)
    assert "".join(map(str, assign_folds(hardly, np.arange(24), 4, 7))) == "331213122331002013200120"
    monkeypatch.setattr(assignment, "MAX_UNITS", 12)
    assert "".join(map(str, assign_folds(table, groups, 4, 7))) == "0001122200313112333231310013120220000020"


def test_unlabelled_battles_change_no_fold_of_a_scored_one() -> None:
    rng = np.random.default_rng(0)
    prompts = [sentence(rng, 8) for _ in range(80)]
    table = table_of(prompts)
    more = table_of(
        [*prompts, *(sentence(rng, 8) for _ in range(40)), *prompts[:5]],
        role=["train"] * 80 + ["unlabelled"] * 40 + ["extra"] * 5,
        label=[i % 3 for i in range(80)] + [None] * 40 + [0] * 5,
    )
    alone = assign_folds(table, group_battles(table, Groups()), 5, 0)
    together = assign_folds(more, group_battles(more, Groups()), 5, 0)
    assert together[:80].tolist() == alone.tolist()
    assert together[80:120].tolist() == [-1] * 40
    assert together[120:].tolist() == alone[:5].tolist()


def test_roles_follow_their_group_and_test_battles_have_no_fold() -> None:
    roles = ["train"] * 20 + ["extra", "unlabelled", "test", "extra", "unlabelled"]
    groups = np.array([*range(20), 3, 4, 5, 90, 91])
    table = table_of(["x"] * 25, role=roles, label=[0, 1, 2, 0] * 5 + [0, None, None, 1, None])
    folds = assign_folds(table, groups, 4, 0)
    assert folds[[20, 21, 22, 24]].tolist() == [folds[3], folds[4], -1, -1]
    assert 0 <= folds[23] < 4


def with_extra(n_extra: int, n_groups: int, seed: int) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return 30 scored battles in 25 groups and extra ones, some of them in the scored battles' groups."""
    rng = np.random.default_rng(seed)
    scored = np.concatenate([np.arange(25), rng.integers(0, 25, 5)])
    groups = np.concatenate([scored, rng.integers(20, 20 + n_groups, n_extra)]).astype(np.int64)
    label = rng.integers(0, 3, len(groups)).tolist()
    roles = ["train"] * 30 + ["extra"] * n_extra
    return table_of([f"prompt {group}" for group in groups], label=label, role=roles), groups


@pytest.mark.slow
@settings(max_examples=60)
@given(n_extra=st.integers(1, 60), n_groups=st.integers(1, 50), k=st.integers(2, 7), seed=st.integers(0, 999))
def test_every_extra_battle_gets_one_fold_with_its_group_and_moves_no_scored_battle(
    n_extra: int, n_groups: int, k: int, seed: int
) -> None:
    table, groups = with_extra(n_extra, n_groups, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = assign_folds(table, groups, k, seed)
        alone = assign_folds(table[:30], groups[:30], k, seed)
    assert folds[:30].tolist() == alone.tolist()
    assert set(folds.tolist()) <= set(range(k))
    assert n_split_groups(groups, folds) == 0


@settings(max_examples=30)
@given(n_extra=st.sampled_from([1, 3, 6, 40]), seed=st.integers(0, 999))
def test_folds_of_extra_battles_depend_on_seed_and_content_only(n_extra: int, seed: int) -> None:
    table, groups = with_extra(n_extra, 30, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = table.with_columns(pl.Series("wanted", assign_folds(table, groups, 4, 3)), pl.Series("group", groups))
        shuffled = table.sample(fraction=1.0, shuffle=True, seed=seed)
        numbers = np.random.default_rng(seed).permutation(1000)[shuffled["group"].to_numpy()]
        assert assign_folds(shuffled, numbers, 4, 3).tolist() == shuffled["wanted"].to_list()


def test_extra_battles_are_balanced_over_the_folds_and_move_with_the_seed() -> None:
    n = 300
    label = [0, 1, 2] * 10 + ([0, 1, 1, 2] * n)[:n]
    table = table_of([f"p{i}" for i in range(30 + n)], label=label, role=["train"] * 30 + ["extra"] * n)
    groups = np.arange(30 + n)
    folds = assign_folds(table, groups, 5, 0)
    extra = np.array(label[30:])
    for c, size in ((0, 15), (1, 30), (2, 15)):
        assert np.bincount(folds[30:][extra == c]).tolist() == [size] * 5
    assert assign_folds(table, groups, 5, 1)[30:].tolist() != folds[30:].tolist()


def test_fewer_extra_groups_than_folds_are_held_out_once_each() -> None:
    label, roles = [0, 1, 2] * 10 + [0, 1, 0], ["train"] * 30 + ["extra"] * 3
    table = table_of([f"p{i}" for i in range(33)], label=label, role=roles)
    folds = assign_folds(table, np.array([*range(30), 50, 51, 50]), 7, 0)
    assert folds[30] == folds[32] != folds[31]
    assert min(folds[30:]) >= 0


@pytest.mark.parametrize("seed", range(8))
def test_extra_battles_of_one_class_are_spread_as_soon_as_each_fold_can_have_one(seed: int) -> None:
    label, roles = [0, 1, 2] * 10 + [0, 0, 1], ["train"] * 30 + ["extra"] * 3
    table = table_of([f"p{i}" for i in range(33)], label=label, role=roles)
    folds = assign_folds(table, np.arange(33), 2, seed)
    assert folds[30] != folds[31]


@pytest.mark.slow
def test_labels_are_stratified_at_the_size_of_the_competition() -> None:
    rng = np.random.default_rng(0)
    n = 57_477
    groups = rng.integers(0, 52_000, n)
    labels = rng.choice(3, n, p=[0.349, 0.342, 0.309])
    table = pl.concat([table_of([""]).drop("id", "label", "prompt")] * n).with_columns(
        pl.Series("id", [str(i) for i in range(n)]),
        pl.Series("label", labels, dtype=pl.Int8),
        pl.Series("prompt", [[f"p{group}"] for group in groups]),
    )
    folds = assign_folds(table, groups, 5, 0)
    counts = np.stack([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)])
    sizes = counts.sum(axis=1)
    assert np.abs(counts / sizes[:, None] - np.bincount(labels) / n).max() < 0.002
    assert max(sizes) - min(sizes) < 0.01 * n
    order = np.argsort(groups, kind="stable")
    same = groups[order][1:] == groups[order][:-1]
    assert (folds[order][1:] == folds[order][:-1])[same].all()


def test_bundles_hold_whole_groups_with_equal_label_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "MAX_UNITS", 40)
    table, groups = battles(400, 200)
    labels = table["label"].to_numpy()
    units = assignment._bundle(groups, labels, 0)
    assert len(set(units.tolist())) < 200
    for unit in set(units.tolist()):
        members = set(groups[units == unit].tolist())
        counts = {tuple(np.bincount(labels[groups == group], minlength=3)) for group in members}
        assert len(counts) == 1
        assert len(members) <= 5
    assert n_split_groups(groups, assign_folds(table, groups, 5, 0)) == 0


def test_groups_of_more_than_a_hundred_battles_are_not_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "MAX_UNITS", 2)
    groups = np.repeat(np.arange(8), [101] * 4 + [100] * 4)
    units = assignment._bundle(groups, np.zeros(len(groups), dtype=int), 0)
    assert [len(set(units[groups < 4])), len(set(units[groups >= 4])), len(set(units))] == [4, 1, 5]


# --- impossible folds


def refusal(table: pl.DataFrame, groups: NDArray[np.int64], k: int) -> str:
    with pytest.raises(UserError) as caught:
        assign_folds(table, groups, k, 0)
    return str(caught.value)


def test_fewer_groups_than_folds_are_refused_with_the_numbers() -> None:
    table, groups = battles(57, 3)
    message = refusal(table, groups, 5)
    assert "folds.k=5: the 57 train battles form only 3 group" in message
    assert "; lower folds.k to at most 3, or change groups.column" in message
    assert "; lower folds.k to at most 2, or change groups.column" in refusal(table, np.minimum(groups, 1), 5)
    assert set(assign_folds(table, groups, 3, 0)) == {0, 1, 2}


def test_one_group_is_refused() -> None:
    table, _ = battles(20, 5)
    message = refusal(table, np.zeros(20, np.int64), 2)
    assert "only 1 group" in message
    assert "; change groups.column" in message


@pytest.mark.parametrize("k", [-1, 0, 1])
def test_fewer_than_two_folds_are_refused(k: int) -> None:
    table, groups = battles(20, 10)
    with pytest.raises(UserError, match="at least 2 folds"):
        assign_folds(table, groups, k, 0)


def test_no_train_battles_are_refused() -> None:
    table, groups = battles(20, 10)
    with pytest.raises(UserError, match="no train battles"):
        assign_folds(table.with_columns(role=pl.lit("extra")), groups, 2, 0)


def test_a_train_battle_without_label_is_refused_with_its_place() -> None:
    table = table_of(["a", "b", "c", "d"], label=[0, None, 1, None])
    assert "battles.csv, row 2" in refusal(table, np.arange(4), 2)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    k=st.integers(2, 6),
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=7),
)
def test_any_groups_give_whole_groups_in_filled_folds_or_one_clear_error(
    sizes: list[int], k: int, labels: list[int]
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    label = list(itertools.islice(itertools.cycle(labels), len(groups)))
    table = table_of([f"p{g}" for g in groups], label=label)
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folds = assign_folds(table, groups, k, 0)
        except UserError as error:
            message = str(error)
    if message:
        assert f"folds.k={k}" in message
        return
    assert n_split_groups(groups, folds) == 0
    assert set(folds.tolist()) == set(range(k))


def test_a_rare_class_is_a_logged_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = table_of([f"p{i}" for i in range(40)], label=[0, 1] * 19 + [2, 2])
    assign_folds(table, np.arange(40), 5, 0)
    assign_folds(table[:38], np.arange(38), 5, 0)
    assign_folds(table, np.arange(40), 2, 0)  # two groups for two folds
    assert caplog.messages == [
        "class 'tie' occurs in only 2 group(s), so some of the 5 folds have no battle of it",
        "class 'tie' never occurs, so some of the 5 folds have no battle of it",
    ]


def test_a_group_larger_than_a_fold_is_a_logged_warning(caplog: pytest.LogCaptureFixture) -> None:
    table, _ = battles(60, 60)
    assign_folds(table, np.array([0] * 31 + [*range(1, 30)]), 2, 0)
    assert "31 of 60 train battles are one group" in caplog.text
    caplog.clear()
    assign_folds(table, np.array([0] * 30 + [*range(1, 31)]), 2, 0)
    assert not caplog.messages


def test_fifty_seven_battles_make_five_folds() -> None:
    table, groups = battles(57, 57)
    assert np.bincount(assign_folds(table, groups, 5, 0)).min() >= 10
