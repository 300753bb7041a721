"""``make quality`` reports on prompts that its development half does not have."""

from __future__ import annotations

import sys

import polars as pl
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(ROOT / "benchmarks"))
from quality import sample


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(1, 100))
def test_the_halves_share_no_prompt_and_do_not_depend_on_the_order_of_rows(numbers: list[int], n: int) -> None:
    table = pl.DataFrame({"id": range(len(numbers)), "prompt": [f"prompt {i}" for i in numbers]})
    halves = {half: sample(table, half, len(numbers)) for half in ("report", "develop")}
    prompts = {half: set(part["prompt"]) for half, part in halves.items()}
    assert not prompts["report"] & prompts["develop"]
    assert sum(part.height for part in halves.values()) == table.height
    assert set(sample(table.reverse(), "report", table.height)["prompt"]) == prompts["report"]
    few = sample(table, "report", n)
    assert few.height == min(n, halves["report"].height)
    assert few["id"].is_sorted()
