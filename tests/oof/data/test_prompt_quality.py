"""Prompt quality: junk prompts are left out of training and of nothing else."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from oof.common.errors import UserError
from oof.config import Config, Data, Folds
from oof.data.prompt_quality import SCORES, prompt_flags, prompt_quality
from oof.jobs.dataset import draft_battles, leave_out_junk, load_battles


def test_a_quality_is_the_lowest_score_of_the_kinds_found() -> None:
    texts = pl.Series(["[INST] hi [/INST]", "hi", "", "What is the time in Oslo?", "ha " * 40])
    flags = prompt_flags(texts)
    expected = [min([SCORES[kind] for kind in flags.columns if row[kind]], default=1.0) for row in flags.to_dicts()]
    assert prompt_quality(texts).tolist() == expected
    assert expected[2:] == [0.0, 1.0, 0.3]


def test_junk_keeps_its_fold_and_its_score_but_weighs_nothing_in_training(tmp_path: Path) -> None:
    rows = 40
    frame = pl.DataFrame(
        {
            "id": range(rows),
            "prompt": [
                f'["{"asdfghjkl qwertyuiop" if i % 4 == 0 else f"How far is town {i} from the sea"}"]'
                for i in range(rows)
            ],
            "response_a": ['["one"]'] * rows,
            "response_b": ['["two"]'] * rows,
            "winner_model_a": [int(i % 3 == 0) for i in range(rows)],
            "winner_model_b": [int(i % 3 == 1) for i in range(rows)],
            "winner_tie": [int(i % 3 == 2) for i in range(rows)],
        }
    )
    frame.write_csv(tmp_path / "train.csv")
    tables = {}
    for name, least in (("all", 0.0), ("good", 0.5)):
        data = Data(train=[str(tmp_path / "train.csv")], min_prompt_quality=least)
        config = Config(run=str(tmp_path / name), data=data, folds=Folds(k=2))
        draft_battles(config).write()
        tables[name] = load_battles(Path(config.run))
    assert tables["all"].drop("weight").equals(tables["good"].drop("weight"))
    junk = tables["good"]["prompt"].list.first().str.starts_with("asdf")
    assert tables["good"]["weight"].to_list() == (~junk).cast(pl.Float64).to_list()
    assert tables["all"]["weight"].to_list() == [1.0] * rows


def test_nothing_left_to_train_on_is_refused() -> None:
    table = pl.DataFrame({"prompt": [["hi"]], "role": ["train"], "weight": [1.0]})
    with pytest.raises(UserError, match="min_prompt_quality"):
        leave_out_junk(table, 0.5)
    assert leave_out_junk(table, 0.0)[1] == 0
