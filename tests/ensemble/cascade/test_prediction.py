"""A cascade at work: budgets and times that are kept, and kills after which the result is the same.

Models and clock are simulated: logits are looked up by id, and each call takes its seconds on the clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ensemble.cascade import prediction
from ensemble.cascade.levels import LevelFunctions, Scored, levels_of
from ensemble.cascade.policy import AB, BA, Frontier
from ensemble.cascade.policy_choice import Candidates
from ensemble.cascade.prediction import Cascade
from ensemble.cascade.request import Request
from oof.classes import ORDERS, WINNER_COLUMNS
from oof.common.errors import UserError

SECONDS = {AB: 1.0, BA: 1.0, "large": 10.0, "small": 6.0}
LEVELS = levels_of(SECONDS)
N, PRIOR = 83, np.array([0.4, 0.4, 0.2])


def battles(n: int, seed: int) -> tuple[Scored, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (n, 1, 3))
    labels = (rng.random(n)[:, None] > softmax(truth[:, 0], axis=1).cumsum(axis=1)).sum(axis=1)
    student = truth * 0.7 + rng.normal(0, 0.8, (n, 1, 3)) + rng.normal(0, 0.2, (n, 2, 3))
    members = {
        name: (truth + rng.normal(0, 0.5, (n, 1, 3)) + np.zeros((1, 2, 1))).astype(np.float32)
        for name in ("large", "small")
    }
    return Scored(student, members, softmax(truth[:, 0] + rng.normal(0, 0.1, (n, 3)), axis=1)), labels


NEW, _ = battles(N, 1)


@cache
def fitted() -> tuple[LevelFunctions, Candidates]:
    oof, labels = battles(500, 0)
    rows = np.arange(500)
    functions = LevelFunctions.fit(LEVELS, oof, labels, rows, 0)
    outputs = [functions.output(name, oof) for name in LEVELS.names]
    return functions, Candidates.fit(LEVELS, lambda _: outputs, rows, labels, rows, 0)


@dataclass
class Simulated:
    """Models that take ``slowness`` times the run's seconds, and a clock that their work moves."""

    slowness: Callable[[float], float] = lambda now: 1.0
    now: float = 0.0
    pieces: list[tuple[float, int]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def _rows(self, unit: str, table: pl.DataFrame) -> np.ndarray:
        self.now += SECONDS.get(unit, 0.0) * table.height * self.slowness(self.now)
        return table["id"].cast(pl.Int64).to_numpy()

    def student(self, table: pl.DataFrame, order: str) -> np.ndarray:
        at = ORDERS.index(order)
        return NEW.student[self._rows((AB, BA)[at], table), at]

    def member(self, name: str, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        rows = self._rows(name, table)
        return NEW.members[name][rows], np.repeat(rows[:, None], 6, axis=1)

    def ensemble(self, table: pl.DataFrame, logits: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
        rows = self._rows("stack", table)
        for name, values in logits.items():
            np.testing.assert_array_equal(values, NEW.members[name][rows])
        np.testing.assert_array_equal(counts[:, 0], rows)
        assert NEW.ensemble is not None
        return NEW.ensemble[rows]


def tables() -> Iterator[pl.DataFrame]:
    ids = pl.DataFrame({"id": [str(i) for i in range(N)]})
    yield from (ids[start : start + 30] for start in range(0, N, 30))


def run(folder: Path, request: Request, models: Simulated, rows: int = 7) -> tuple[np.ndarray, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    cascade = Cascade(request, LEVELS, fitted, PRIOR, models, folder, rows, models.clock)
    parts, summary = cascade.predict(tables())
    frame = pl.concat([pl.read_parquet(part) for part in parts])
    assert frame["id"].to_list() == [str(i) for i in range(N)]
    return frame.select(WINNER_COLUMNS).to_numpy(), summary["cascade"]


ALL = (SECONDS["large"] + SECONDS["small"]) * N  # the ensemble's seconds for all battles


@pytest.mark.parametrize("budget", [0.07, 0.2, 0.4, 0.7, 1.0])
def test_a_budget_is_kept_and_answers_are_those_of_the_policy(tmp_path: Path, budget: float) -> None:
    models = Simulated(slowness=lambda now: 3.0)
    probs, summary = run(tmp_path / "p", Request(budget=budget), models)
    assert models.now <= 3.0 * budget * ALL + 1e-6
    assert summary["cost"] == pytest.approx(models.now / 3.0 / ALL)
    outputs = {name: fitted()[0].output(name, NEW).probs for name in LEVELS.names}
    own = np.array([[np.allclose(probs[i], outputs[name][i]) for name in LEVELS.names] for i in range(N)])
    assert own.any(axis=1).all()
    for name, share in summary["shares"].items():
        assert share <= own[:, LEVELS.names.index(name)].mean() + 1e-9
    assert sum(summary["shares"].values()) == pytest.approx(1)


def test_more_battles_than_the_budget_pays_for_do_not_overrun_it(tmp_path: Path) -> None:
    functions, candidates = fitted()
    eager = next(f for f in candidates.frontiers if f.chain == (1, 3) and f.kind == "gain")
    everything = Frontier("gain", (1, 3), eager.gains, np.array([0.4]), np.array([0.0]), np.array([[-np.inf]]))
    alike = {(f.kind, f.chain): f for f in [everything]}
    held = [replace(fold, frontiers=alike) for fold in candidates.held]
    only = replace(candidates, frontiers=[everything], held=held)
    summaries = []
    for _ in range(2):  # the second call reads what the first has stored
        models = Simulated()
        (tmp_path / "p").mkdir(exist_ok=True)
        arguments = (LEVELS, lambda: (functions, only), PRIOR, models, tmp_path / "p", 7, models.clock)
        summaries.append(Cascade(Request(budget=0.5), *arguments).predict(tables())[1]["cascade"])
    assert 0.45 <= summaries[0]["cost"] <= 0.5
    assert summaries[0] == summaries[1]


def test_the_ends_are_the_student_and_the_ensemble(tmp_path: Path) -> None:
    everything = Request(thresholds=(-1e9,), levels=("student", "ensemble"))
    nothing = Request(thresholds=(1e9,), levels=("student", "ensemble"))
    np.testing.assert_allclose(run(tmp_path / "a", everything, Simulated())[0], NEW.ensemble, atol=1e-12)
    student = softmax(NEW.student.mean(axis=1), axis=1)
    np.testing.assert_allclose(run(tmp_path / "b", nothing, Simulated())[0], student, atol=1e-12)


@pytest.mark.slow
@given(st.floats(0.08, 1.3), st.floats(0.2, 5.0), st.floats(0.2, 5.0), st.floats(0.0, 1.0), st.integers(1, 20))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_time_is_overrun_by_at_most_one_piece(
    tmp_path_factory: pytest.TempPathFactory, share: float, first: float, later: float, at: float, rows: int
) -> None:
    limit = share * ALL * first  # from ``at`` on, everything takes ``later`` times as long
    models = Simulated(slowness=lambda now: first if now < at * limit else later)
    try:
        _, summary = run(tmp_path_factory.mktemp("t"), Request(seconds=limit), models, rows)
    except UserError:  # not even one order fits
        assert models.now <= limit + rows * max(first, later)
        return
    largest = LEVELS.seconds_of([0, 1, 2, 3]) * rows * max(first, later)
    assert models.now <= limit + largest
    assert summary["seconds"] == pytest.approx(models.now)


def test_a_time_at_the_expected_speed_is_kept_and_used(tmp_path: Path) -> None:
    models = Simulated()
    _, summary = run(tmp_path / "p", Request(seconds=0.5 * ALL), models)
    assert 0.4 * ALL <= models.now <= 0.5 * ALL
    assert summary["shares"]["ensemble"] > 0.1 or summary["shares"]["student+small"] > 0.1


def test_a_machine_that_slows_down_leaves_battles_to_cheaper_levels(tmp_path: Path) -> None:
    models = Simulated(slowness=lambda now: 1.0 if now < N else 10.0)  # after one order of all battles
    probs, summary = run(tmp_path / "p", Request(seconds=0.5 * ALL), models)
    assert models.now <= 0.5 * ALL + 10.0 * 7 * LEVELS.seconds_of([0, 1, 2, 3])
    assert summary["shares"]["one_order"] > 0.2
    assert np.isfinite(probs).all()


def test_a_time_that_is_too_short_for_one_order_is_refused_after_two_pieces(tmp_path: Path) -> None:
    models = Simulated(slowness=lambda now: 100.0)
    with pytest.raises(UserError, match=r"one order of the student needs about 2 h 18 min for 83 battles"):
        run(tmp_path / "p", Request(seconds=3000), models)
    assert models.now <= 3000


@pytest.mark.slow
@pytest.mark.parametrize("request_", [Request(budget=0.45), Request(seconds=0.45 * ALL)], ids=["budget", "time"])
def test_killed_anywhere_it_continues_to_the_same_submission(
    tmp_path: Path, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, summary = run(tmp_path / "whole", request_, Simulated(), rows=28)
    until_kill = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any) -> Any:
            until_kill[0] -= 1
            if until_kill[0] == 0:
                raise KeyboardInterrupt
            return call(*arguments)

        return killed

    for name in ("write_parquet", "write_json"):
        monkeypatch.setattr(prediction, name, counted(getattr(prediction, name)))
    for name in ("student", "member", "ensemble"):
        monkeypatch.setattr(Simulated, name, counted(getattr(Simulated, name)))
    kills = 0
    while True:
        kills += 1
        until_kill[0], folder = kills, tmp_path / f"killed-{kills}"
        try:
            run(folder, request_, Simulated(), rows=28)
            break
        except KeyboardInterrupt:
            until_kill[0] = -1
            probs, again = run(folder, request_, Simulated(), rows=28)
        np.testing.assert_array_equal(probs, expected)
        assert json.dumps(again) == json.dumps(summary)
    assert kills > 12
