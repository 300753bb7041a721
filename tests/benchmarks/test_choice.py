"""Settings and verdicts of the choice benchmark: groups stay whole, kinds of arenas are as named, intervals decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.choice_page import Outcome, merged, page, row_of, verdict
from benchmarks.quality.choice_settings import SETTINGS, Battles
from oof.classes import TIE


def made(name: str, seed: int) -> Battles:
    return SETTINGS[name].make(Path(), seed)


@pytest.mark.parametrize("name", ["8-groups-1200", "arena-200"])
def test_a_synthetic_setting_has_five_folds_of_whole_groups_and_depends_on_the_seed(name: str) -> None:
    battles = made(name, 0)
    assert len(np.unique(battles.folds)) == 5
    assert all(len(np.unique(battles.folds[battles.groups == group])) == 1 for group in np.unique(battles.groups))
    assert (made(name, 0).design.x == battles.design.x).all()
    assert (made(name, 1).labels != battles.labels).any()


def test_arenas_are_as_their_names_say() -> None:
    assert not (made("binary-700", 0).labels == TIE).any()
    assert len(np.unique(made("8-groups-1200", 0).groups)) == 8
    right = {}
    for name in ("weak-700", "strong-1200"):
        battles = made(name, 0)
        decided = battles.labels != TIE
        right[name] = (battles.design.pool[decided, 0, :2].argmax(axis=1) == battles.labels[decided]).mean()
    assert right["weak-700"] < 0.55 < 0.7 < right["strong-1200"]


def outcome(default: list[float], **others: list[float]) -> Outcome:
    """Return an outcome of twenty battles a seed, of which each has the seed's loss."""
    losses = {"default": default, **{name.replace("__", ":"): values for name, values in others.items()}}
    per_seed = [{name: np.full(20, values[i]) for name, values in losses.items()} for i in range(len(default))]
    return Outcome("setting", [{"groups": np.arange(20), **seed} for seed in per_seed])


NOISE = [0.0, 0.001, -0.001, 0.002, -0.002, 0.0]


def test_a_default_that_is_always_behind_the_best_candidate_is_called_behind() -> None:
    losses = [1 + noise for noise in NOISE]
    behind = outcome([1.01 + noise for noise in NOISE[::-1]], combiner__mean=losses, prior=[1.1] * 6)
    assert verdict(behind) == "**behind**"
    near = outcome([loss + 0.0015 for loss in losses], combiner__mean=losses, prior=[1.1] * 6)
    assert verdict(near) == "within 0.002"
    noisy = outcome(
        [loss + d for loss, d in zip(losses, [0.1, -0.06, 0.09, -0.08, 0.1, -0.09], strict=True)], prior=losses
    )
    assert verdict(noisy) == "not significantly behind"


def test_seeds_of_the_same_battles_have_an_interval_over_groups() -> None:
    """One group in two favours the default: seeds agree to the last digit, and other groups might not."""
    losses = {"groups": np.arange(20), "default": np.full(20, 1.0), "prior": 1.0 + np.where(np.arange(20) % 2, 1, -1.2)}
    shared, drawn = (Outcome("setting", [losses] * 6, same_battles) for same_battles in (True, False))
    assert verdict(shared) == "not significantly behind"
    assert verdict(drawn) == "**behind**"
    assert SETTINGS["pandalm"].same_battles
    assert not SETTINGS["king2-700"].same_battles
    assert not SETTINGS["arena-200"].same_battles


def test_a_baseline_that_beats_the_default_is_named() -> None:
    losses = [1 + noise for noise in NOISE]
    worse = outcome([loss + 0.001 for loss in losses], text=losses, length_only=[2.0] * 6)
    assert verdict(worse) == "within 0.002, **behind TF-IDF**"


def test_two_seeds_have_an_interval_over_groups_and_peers_may_lack_seeds() -> None:
    few = outcome([1.0, 1.2], combiner__mean=[0.9, 1.3])
    few.per_seed[0]["autogluon"] = np.full(20, 0.75)
    interval = few.behind("combiner:mean")
    assert interval["low"] == interval["high"] == pytest.approx(0.0)  # each battle loses in one seed what it gains
    assert few.behind("autogluon")["value"] == pytest.approx(0.25)
    lines = page([row_of(few, "abc")])
    assert "worse in 1" in lines[1]
    assert lines[-5].split(" | ")[-2:] == ["+0.2500 [+0.2500, +0.2500] (1)", "abc |"]
    assert few.best() == "combiner:mean"


def test_a_call_replaces_the_rows_of_its_settings_and_keeps_the_others(tmp_path: Path) -> None:
    one, two = (replace(outcome([loss] * 6, prior=[1.1] * 6), setting=name) for name, loss in (("b", 1.0), ("a", 1.2)))
    path, order = tmp_path / "choice.json", ["a", "b", "c"]
    merged(path, [row_of(one, "first"), row_of(two, "first")], order)
    again = replace(one, per_seed=[{**losses, "default": losses["default"] + 1} for losses in one.per_seed])
    rows = merged(path, [row_of(again, "second")], order)
    assert [(row.setting, row.losses["default"], row.commit) for row in rows] == [
        ("a", 1.2, "first"),
        ("b", 2, "second"),
    ]
    assert merged(path, [], order) == rows
    assert "In 0 of 2 settings" in page(rows)[0]
