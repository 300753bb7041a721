"""The subset of train battles: its size, its nesting, and what it depends on."""

from __future__ import annotations

import polars as pl
import pytest

from oof.data.subset import draw_subset, subset_size


def table(n: int = 200) -> pl.DataFrame:
    roles = ["train" if i % 4 else "extra" for i in range(n)]
    return pl.DataFrame({"id": [f"b{i}" for i in range(n)], "role": roles})


def ids(frame: pl.DataFrame, role: str = "train") -> set[str]:
    return set(frame.filter(pl.col("role") == role)["id"])


@pytest.mark.parametrize(("share", "n"), [(1.0, 150), (0.5, 75), (0.1, 15), (0.001, 1)])
def test_a_subset_has_its_share_of_train_battles_and_all_of_the_others(share: float, n: int) -> None:
    drawn = draw_subset(table(), share, 0)
    assert len(ids(drawn)) == n == subset_size(150, share)
    assert ids(drawn, "extra") == ids(table(), "extra")
    assert drawn["id"].to_list() == [name for name in table()["id"] if name in set(drawn["id"])]


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    small, large = (ids(draw_subset(table(), share, 3)) for share in (0.2, 0.6))
    assert small < large


def test_a_subset_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    one, other = (draw_subset(table(), 0.5, seed) for seed in (0, 1))
    assert ids(one) != ids(other)
    assert ids(draw_subset(table().reverse(), 0.5, 0)) == ids(one)
