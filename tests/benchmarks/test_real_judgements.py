"""Data and stages of ``make quality``: the reported and the development half share no prompt, seconds add up."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import run_stage
from benchmarks.quality.real_battles import COLUMNS, FILES, read_judgements, sample_half
from benchmarks.quality.real_judgements import FULL, RECIPES, prepare


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(1, 100))
def test_the_halves_share_no_prompt_and_do_not_depend_on_the_order_of_rows(numbers: list[int], n: int) -> None:
    table = pl.DataFrame({"id": range(len(numbers)), "prompt": [f"prompt {i}" for i in numbers]})
    halves = {half: sample_half(table, half, len(numbers)) for half in ("report", "develop")}
    prompts = {half: set(part["prompt"]) for half, part in halves.items()}
    assert not prompts["report"] & prompts["develop"]
    assert sum(part.height for part in halves.values()) == table.height
    assert set(sample_half(table.reverse(), "report", table.height)["prompt"]) == prompts["report"]
    few = sample_half(table, "report", n)
    assert few.height == min(n, halves["report"].height)
    assert few["id"].is_sorted()


def test_battles_of_the_other_half_train_and_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = [json.dumps([f"Debate {i % 10}.\nStance: for\nWhich argument convinces more?"]) for i in range(80)]
    text = [json.dumps([f"because {i}"]) for i in range(80)]
    columns = {"id": [str(i) for i in range(80)], "prompt": side, "response_a": text, "response_b": text[::-1]}
    columns |= {name: ["1" if name == "winner_tie" else "0"] * 80 for name in COLUMNS[4:]}
    pl.DataFrame(columns).write_csv(tmp_path / FILES["arguments"][0])  # named as the real file
    monkeypatch.setitem(RECIPES, "arguments", RECIPES["arguments"] | {"battles": 12, "others": 7})
    arguments = argparse.Namespace(data=tmp_path, models=tmp_path, half="report")
    prepare("arguments", tmp_path / "out", arguments, FULL)
    everything = read_judgements([tmp_path / FILES["arguments"][0]])
    trained = pl.read_csv(tmp_path / "out" / "battles.csv", infer_schema=False)
    reported = trained["id"].is_in(json.loads((tmp_path / "out" / "reported.json").read_text("utf-8")))
    for rows, half, n in ((reported, "report", 12), (~reported, "develop", 7)):
        assert trained.filter(rows).height == n
        assert set(trained.filter(rows)["prompt"]) <= set(sample_half(everything, half, 80)["prompt"])


def test_a_stage_s_seconds_add_up_over_calls_and_a_failure_ends_the_script(tmp_path: Path) -> None:
    run_stage(tmp_path, "oof", [sys.executable, "-c", "import time; time.sleep(0.3)"])
    first = json.loads((tmp_path / "spent.json").read_text("utf-8"))["oof"]
    assert first["seconds"] >= 0.3
    assert first["peak_gb"] > 0
    with pytest.raises(SystemExit) as ended:
        run_stage(tmp_path, "oof", [sys.executable, "-c", "raise SystemExit(3)"])
    assert ended.value.code == 3
    assert json.loads((tmp_path / "spent.json").read_text("utf-8"))["oof"]["seconds"] > first["seconds"]
