"""Synthetic arena: the competition's schema, verdicts drawn from known probabilities, planted causes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.data import synth


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arena")
    synth.write_arena(out, 6000, seed=11, test_battles=50)
    return out


def test_files_have_the_competition_schema(arena: Path) -> None:
    train, test = pl.read_csv(arena / "train.csv"), pl.read_csv(arena / "test.csv")
    assert train.columns == ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNER_COLUMNS]
    assert test.columns == ["id", "prompt", "response_a", "response_b"]
    assert set(train["id"]).isdisjoint(test["id"])
    assert train.select(pl.sum_horizontal(WINNER_COLUMNS)).to_series().to_list() == [1] * 6000


def test_verdicts_follow_the_true_probabilities(arena: Path) -> None:
    """The mean log score of drawn verdicts is the mean entropy of the truth, within five standard errors."""
    train, truth = pl.read_csv(arena / "train.csv"), pl.read_csv(arena / "truth.csv")[:6000]
    assert truth["id"].to_list() == train["id"].to_list()
    p, y = truth.select(WINNER_COLUMNS).to_numpy(), train.select(WINNER_COLUMNS).to_numpy().argmax(axis=1)
    surprise = -np.log(p[np.arange(len(y)), y]) + (p * np.log(p)).sum(axis=1)
    assert abs(surprise.mean()) < 5 * surprise.std() / np.sqrt(len(y))


def test_length_alone_closes_at_most_a_third_of_the_gap(arena: Path) -> None:
    train, truth = pl.read_csv(arena / "train.csv"), pl.read_csv(arena / "truth.csv")[:6000]
    y = train.select(WINNER_COLUMNS).to_numpy().argmax(axis=1)
    words = np.log1p(
        np.array(
            [
                [len(" ".join(t or "" for t in json.loads(r)).split()) for r in train[c]]
                for c in ("response_a", "response_b")
            ]
        )
    ).T
    x = np.column_stack([words, words[:, 0] - words[:, 1], abs(words[:, 0] - words[:, 1])])
    held = np.arange(len(y)) % 2 == 0
    length = log_loss(y[held], LogisticRegression(max_iter=2000).fit(x[~held], y[~held]).predict_proba(x[held]))
    prior = log_loss(y[held], np.tile(np.bincount(y[~held]) / (~held).sum(), (held.sum(), 1)))
    bayes = log_loss(y[held], truth.select(WINNER_COLUMNS).to_numpy()[held])
    assert prior - bayes > 0.2
    assert 0.05 < (prior - length) / (prior - bayes) <= 0.35


def test_odd_values_of_real_data_are_planted(arena: Path) -> None:
    train = pl.read_csv(arena / "train.csv")
    turns = [json.loads(r) for r in train["response_a"]]
    assert any(None in t for t in turns)
    assert any("" in t for t in turns)
    assert any(len(t) > 1 for t in turns)
    assert any("\\ud83d" in r for r in train["response_a"])
    assert any(not r.isascii() for r in (x for t in turns for x in t if x) if "\ud83d" not in r)
    prompts = [" ".join(json.loads(p)[0].lower().split()).strip("?. ") for p in train["prompt"]]
    assert len(set(prompts)) < 0.9 * len(prompts)


def test_the_seed_determines_the_arena(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synth.write_arena(tmp_path / name, 40, seed, test_battles=5)
    read = {
        name: [(tmp_path / name / f).read_bytes() for f in ("train.csv", "test.csv", "truth.csv")] for name in "abc"
    }
    assert read["a"] == read["b"]
    assert read["a"] != read["c"]


def test_swapping_the_responses_negates_the_advantage_except_the_position_bias() -> None:
    prompts, a, b, _ = synth.make_battles(50, 3)
    assert len(prompts) == 50
    for x, y in zip(a, b, strict=True):
        assert synth.advantage(x, y) - synth.POSITION == pytest.approx(-(synth.advantage(y, x) - synth.POSITION))


def test_wrong_arguments_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        synth.write_arena(tmp_path, 0, 1)
