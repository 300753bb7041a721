from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stack_fixtures import Arena, make_arena

import ensemble.tuning as tuning
from ensemble.tuning import Tuned, tune


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(240)


def run(arena: Arena, journal: Path, trials: int = 14, labels: np.ndarray | None = None) -> Tuned:
    labels = arena.labels if labels is None else labels
    return tune(arena.design, labels, arena.folds, arena.groups, trials, 10, 0, journal)


def same(a: Tuned, b: Tuned) -> bool:
    return a.params == b.params and a.rounds == b.rounds and a.loss == b.loss and np.array_equal(a.logits, b.logits)


def test_a_study_killed_in_a_trial_ends_as_one_that_was_not(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(arena, tmp_path / "whole.log")
    fit, calls = tuning.fit_early_stopped, 0

    def killed(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 40:  # in the middle of trial 13, past TPE's random start
            raise KeyboardInterrupt
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "fit_early_stopped", killed)
    with pytest.raises(KeyboardInterrupt):
        run(arena, tmp_path / "killed.log")
    monkeypatch.setattr(tuning, "fit_early_stopped", fit)
    assert same(run(arena, tmp_path / "killed.log"), whole)


def test_more_trials_begin_with_the_same_ones(arena: Arena, tmp_path: Path) -> None:
    run(arena, tmp_path / "grown.log", trials=5)
    assert same(run(arena, tmp_path / "grown.log", trials=12), run(arena, tmp_path / "once.log", trials=12))


@pytest.mark.parametrize("damage", ["torn", "garbled", "binary"])
def test_a_damaged_journal_costs_trials_not_the_result(arena: Arena, tmp_path: Path, damage: str) -> None:
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


def test_a_lock_left_by_a_dead_process_does_not_hold_up_the_study(arena: Arena, tmp_path: Path) -> None:
    run(arena, tmp_path / "a.log", trials=1)
    (tmp_path / "a.log.lock").write_text("")
    run(arena, tmp_path / "a.log", trials=2)
