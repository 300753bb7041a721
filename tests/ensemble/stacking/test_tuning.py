"""Studies: resuming, pruning, damage, and inner folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import ensemble.stacking.tuning as tuning
from ensemble.stacking.lightgbm_stacker import ExtraTrees, Split, Stacker, fit_early_stopped
from ensemble.stacking.tuning import Tuned, inner_folds, tune
from oof.common.errors import UserError
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import Arena, make_arena

COMPLETE, PRUNED = TrialState.COMPLETE, TrialState.PRUNED


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(240)


def run(arena: Arena, journal: Path, trials: int = 14, labels: np.ndarray | None = None) -> Tuned:
    labels = arena.labels if labels is None else labels
    return tune(arena.design, labels, arena.folds, arena.groups, trials, 10, 0, journal)


def same(a: Tuned, b: Tuned) -> bool:
    return a.params == b.params and a.rounds == b.rounds and np.array_equal(a.logits, b.logits)


def history(journal: Path) -> list[tuple[str, dict[str, float], list[float]]]:
    """Return state, parameters and reported values of each completed or pruned trial."""
    name = json.loads(journal.read_text().splitlines()[0])["study_name"]
    storage = JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(states=(COMPLETE, PRUNED))
    return [(trial.state.name, trial.params, list(trial.intermediate_values.values())) for trial in trials]


def test_a_study_killed_in_a_trial_ends_like_an_uninterrupted_one(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls, last = tuning.fit_early_stopped, 0, 10**6

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "fit_early_stopped", counted)
    whole = run(arena, tmp_path / "whole.log")
    total = calls
    for kills, last in enumerate((1, 5, total - 2)):  # the first fit, an early trial, one past TPE's random start
        calls, journal = 0, tmp_path / f"killed-{kills}.log"
        with pytest.raises(KeyboardInterrupt):
            run(arena, journal)
        last, calls = 10**6, 0
        assert same(run(arena, journal), whole)
        assert history(journal) == history(tmp_path / "whole.log")


def test_more_trials_begin_with_the_same_ones(arena: Arena, tmp_path: Path) -> None:
    run(arena, tmp_path / "grown.log", trials=5)
    assert same(run(arena, tmp_path / "grown.log", trials=12), run(arena, tmp_path / "once.log", trials=12))


@pytest.mark.parametrize("damage", ["torn", "garbled", "binary"])
def test_a_damaged_journal_does_not_change_the_result(arena: Arena, tmp_path: Path, damage: str) -> None:
    whole = run(arena, tmp_path / "a.log", trials=4)
    journal = tmp_path / "a.log"
    written = journal.read_bytes()
    if damage == "torn":
        journal.write_bytes(written[:-30])
    elif damage == "garbled":
        journal.write_bytes(written[:200] + b"}{" + written[202:])
    else:
        journal.write_bytes(b"\x00\xff\n" * 5)
    assert same(run(arena, journal, trials=4), whole)


def test_a_journal_of_other_labels_is_not_reused(arena: Arena, tmp_path: Path) -> None:
    other = (arena.labels + 1) % 3
    fresh = run(arena, tmp_path / "fresh.log", trials=3, labels=other)
    run(arena, tmp_path / "used.log", trials=3)
    assert same(run(arena, tmp_path / "used.log", trials=3, labels=other), fresh)


def test_a_lock_left_by_a_dead_process_does_not_block_the_study(arena: Arena, tmp_path: Path) -> None:
    run(arena, tmp_path / "a.log", trials=1)
    (tmp_path / "a.log.lock").write_text("")
    run(arena, tmp_path / "a.log", trials=2)


@pytest.mark.slow
def test_a_pruned_trial_would_hardly_have_won(tmp_path: Path) -> None:
    arena = make_arena(2400, seed=4)
    journal = tmp_path / "a.log"
    best = tune(arena.design, arena.labels, arena.folds, arena.groups, 16, 60, 0, journal)
    trials = history(journal)
    pruned = [(params, values) for state, params, values in trials if state == "PRUNED"]
    assert 2 <= len(pruned) <= 14
    assert all(len(values) % tuning.BLOCKS == 0 and len(values) < 3 * tuning.BLOCKS for _, values in pruned)
    splits = [Split(arena.design, arena.labels, arena.folds == fold) for fold in range(3)]

    def early_stopped_loss(params: dict[str, Any]) -> float:
        logits = np.empty((2400, 3))
        for split in splits:
            logits[split.held] = fit_early_stopped(split, params, 60, 0).logits
        return log_loss(softmax(logits), arena.labels)

    smallest, losses = early_stopped_loss(best.params), [early_stopped_loss(params) for params, _ in pruned]
    assert min(losses) > smallest - 5e-4  # a trial is judged by some folds, so a close one may be lost
    assert np.mean(losses) > smallest + 1e-3


def test_the_rounds_of_a_fold_s_logits_are_those_of_the_other_folds(arena: Arena, tmp_path: Path) -> None:
    tuned = tune(arena.design, arena.labels, arena.folds, arena.groups, 1, 80, 0, tmp_path / "a.log")
    splits = [Split(arena.design, arena.labels, arena.folds == fold) for fold in range(3)]
    best = [fit_early_stopped(split, tuned.params, 80, 0).rounds for split in splits]
    assert tuned.rounds == round(sum(best) / 3)
    for fold in range(3):
        rest, held = np.flatnonzero(arena.folds != fold), np.flatnonzero(arena.folds == fold)
        rounds = round((sum(best) - best[fold]) / 2)
        alone = Stacker.fit(arena.design.take(rest), arena.labels[rest], tuned.params, rounds, 0)
        np.testing.assert_allclose(tuned.logits[held], alone.logits(arena.design.take(held)), atol=1e-6)


def test_extra_trees_have_fixed_parameters_and_the_rounds_of_their_inner_folds(arena: Arena) -> None:
    params = {"extra_trees": True, "learning_rate": 0.06, "num_leaves": 15, "min_data_in_leaf": 20}
    params |= {"feature_fraction": 0.6, "bagging_fraction": 0.5, "lambda_l1": 0.1, "lambda_l2": 1.0}
    trees = tuning.fit_extra_trees(arena.design, arena.labels, arena.folds, 400, 0)
    splits = [Split(arena.design, arena.labels, arena.folds == fold, ExtraTrees) for fold in range(3)]
    best = [fit_early_stopped(split, params, 400, 0).rounds for split in splits]
    assert (trees.params, trees.rounds) == (params, round(sum(best) / 3))
    rest, held = np.flatnonzero(arena.folds != 1), np.flatnonzero(arena.folds == 1)
    alone = ExtraTrees.fit(arena.design.take(rest), arena.labels[rest], params, round((best[0] + best[2]) / 2), 0)
    np.testing.assert_allclose(trees.logits[held], alone.logits(arena.design.take(held)), atol=1e-6)


def test_a_study_begins_with_the_same_parameters_for_any_seed(arena: Arena, tmp_path: Path) -> None:
    tuned = tune(arena.design, arena.labels, arena.folds, arena.groups, 1, 10, 99, tmp_path / "a.log")
    assert tuned.params == tuning.first_parameters(len(arena.labels))


def test_trials_that_share_binned_data_do_not_influence_each_other(arena: Arena) -> None:
    held = arena.folds == 0
    one = tuning.FIRST
    other = {**one, "min_data_in_leaf": 5, "num_leaves": 16, "bagging_fraction": 0.9, "lambda_l2": 10.0}
    shared = Split(arena.design, arena.labels, held)
    results = [fit_early_stopped(shared, params, 30, seed) for params, seed in ((one, 0), (other, 3), (one, 0))]
    for n, (params, seed) in enumerate(((one, 0), (other, 3), (one, 0))):
        alone = fit_early_stopped(Split(arena.design, arena.labels, held), params, 30, seed)
        assert alone.rounds == results[n].rounds
        np.testing.assert_array_equal(alone.logits, results[n].logits)


def test_the_logits_kept_by_early_stopping_equal_those_of_the_stacker(arena: Arena) -> None:
    held = arena.folds == 0
    stopped = fit_early_stopped(Split(arena.design, arena.labels, held), tuning.FIRST, 40, 0)
    rest = np.flatnonzero(~held)
    stacker = Stacker.fit(arena.design.take(rest), arena.labels[rest], tuning.FIRST, stopped.rounds, 0)
    expected = softmax(stacker.logits(arena.design.take(np.flatnonzero(held))))
    np.testing.assert_allclose(softmax(stopped.logits), expected, atol=1e-9)


@given(
    n_outer=st.integers(1, 5),
    group=st.lists(st.integers(0, 30), min_size=12, max_size=60),
    seed=st.integers(0, 5),
)
def test_inner_folds_keep_groups_whole_and_lie_within_the_outer_ones(n_outer: int, group: list[int], seed: int) -> None:
    groups = np.array(group)
    labels = np.random.default_rng(seed).integers(3, size=len(groups))
    folds = groups % n_outer * 2  # whole groups, and numbers with gaps, as where an outer fold is held out
    if len(np.unique(groups)) == 1:
        with pytest.raises(UserError, match="one group"):
            inner_folds(labels, folds, groups, seed)
        return
    inner = inner_folds(labels, folds, groups, seed)
    assert sorted(set(inner)) == list(range(inner.max() + 1))
    assert inner.max() >= 1
    for values, within in ((groups, inner), (inner, folds)):
        assert all(len(np.unique(within[values == value])) == 1 for value in np.unique(values))
    present = np.unique(folds)
    if len(present) >= 3:
        assert len(np.unique(inner)) == len(present)
    elif all(len(np.unique(groups[folds == fold])) >= 4 for fold in present):
        assert len(np.unique(inner)) >= 4, "a quarter is held out, not a half"
    assert np.array_equal(inner, inner_folds(labels, folds, groups, seed))
