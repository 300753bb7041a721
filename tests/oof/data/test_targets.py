"""Training targets: soft labels where they are known, one-hot labels elsewhere; fold jobs train on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from oof.__main__ import main
from oof.data.synth import write_arena
from oof.data.targets import training_targets
from oof.jobs.cache_keys import battles_key
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import table_of


def test_soft_labels_replace_the_one_hot_label_where_they_are_known() -> None:
    table = table_of(["p", "q", "r", "s"], label=[0, 1, 2, None])
    assert training_targets(table).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    soft = table.with_columns(
        pl.Series("soft_a", [0.6, None, 0.0, None]),
        pl.Series("soft_b", [0.2, None, 0.0, None]),
        pl.Series("soft_tie", [0.2, None, 1.0, None]),
    )
    assert training_targets(soft).tolist() == [[0.6, 0.2, 0.2], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert battles_key(soft) != battles_key(table)


@pytest.mark.slow
def test_a_fold_job_trains_on_soft_labels_and_is_scored_on_the_majority(tmp_path: Path) -> None:
    write_arena(tmp_path, 60, seed=3, test_battles=1)
    rows = pl.read_csv(tmp_path / "train.csv").rename(
        {f"winner_{name}": votes for name, votes in zip(("model_a", "model_b", "tie"), VOTES, strict=True)}
    )
    runs = {}
    for name, table in {
        "hard": rows,
        "soft": rows.with_columns(pl.col(VOTES[2]) + 1, *(pl.col(v) * 3 for v in VOTES[:2])),
    }.items():
        table.write_csv(tmp_path / f"{name}.csv")
        runs[name] = tmp_path / f"run {name}"
        arguments = [f"data.train={tmp_path}/{name}.csv", f"run={runs[name]}", "folds.k=2", "data.synth.battles=0"]
        assert main(["oof", str(ROOT / "configs" / "demo.yaml"), *arguments, *QUICK]) == 0
    hard, soft = (pl.read_parquet(run / "battles.parquet") for run in runs.values())
    assert hard["label"].equals(soft["label"])
    assert soft.select("soft_a", "soft_b", "soft_tie").unique().height == 3
    logits = [pl.read_parquet(run / "oof" / "gemma2" / "logits.parquet").sort("id") for run in runs.values()]
    ties = [frame.select("ab_tie").to_numpy() for frame in logits]
    assert not np.allclose(*ties)


VOTES = ("votes_a", "votes_b", "votes_tie")
QUICK = ["members.gemma2.train.epochs=1", "members.llama3_1.train.epochs=1"]
