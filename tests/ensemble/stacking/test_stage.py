"""Stage two: which members it suspects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import suspected_members
from oof.config import Config, Stack
from tests.fixtures.arenas import make_arena
from tests.fixtures.demo_run import ROOT


def test_logits_from_elsewhere_are_suspected_and_a_run_s_own_fold_jobs_are_not() -> None:
    arena = make_arena(300)
    seen = arena.logits["two"] / 3 + 3 * np.eye(3, dtype=np.float32)[arena.labels][:, None]
    inputs = Inputs(arena.table, arena.labels, arena.groups, arena.folds, arena.logits | {"two": seen})
    elsewhere = Config(stack=Stack(logits={"one": "one.csv", "two": "two.csv"}))
    assert list(suspected_members(elsewhere, inputs)) == ["two"]
    assert suspected_members(Config(), inputs) == {}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("verdicts", ["model_a model_b", "model_a model_b tie"])
def test_no_library_warns_about_a_dozen_battles(tmp_path: Path, verdicts: str) -> None:
    """A class is absent or rarer than folds, texts are equal, and no fit has enough rows to converge on anything."""
    winner = [*verdicts.split(), *["model_a", "model_b"] * 5][:12]
    battles = {"id": [str(i) for i in range(12)], "winner": winner, "prompt": list("abcdefghijkl")}
    pl.DataFrame(battles | {"response_a": ["x y"] * 12, "response_b": ["z"] * 12}).write_csv(tmp_path / "battles.csv")
    probs = dict(zip(("a", "b", "tie"), np.random.default_rng(0).dirichlet(np.ones(3), 12).T, strict=True))
    pl.DataFrame({"id": battles["id"]} | probs).write_csv(tmp_path / "m.csv")
    words = [f"data.train=[{tmp_path / 'battles.csv'}]", f"stack.logits={{m: {tmp_path / 'm.csv'}}}", "folds.k=2"]
    demo = str(ROOT / "configs" / "demo.yaml")
    assert main(["stack", demo, f"run={tmp_path / 'run'}", *words, "stack.trials=2", "stack.rounds=5"]) == 0
