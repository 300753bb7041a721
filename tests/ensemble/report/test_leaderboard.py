"""Ranks of the leaderboard against planted losses."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.report.leaderboard import ranks


def test_predictors_that_are_not_shown_to_differ_share_a_rank() -> None:
    rng = np.random.default_rng(0)
    battle, noise = rng.normal(1, 0.5, 400), rng.normal(0, 0.1, 400)
    losses = {
        "worst": battle + 0.5 + rng.normal(0, 0.1, 400),
        "first": battle,
        "equal": battle + noise - noise.mean() + 0.003,
        "later": battle + 0.2 + rng.normal(0, 0.1, 400),
        "bayes": battle - 0.3,
    }
    found = ranks(losses, np.arange(400), 0)
    assert {name: row["rank"] for name, row in found.items()} == {
        "first": 1, "equal": 1, "later": 3, "worst": 4, "bayes": None,
    }  # fmt: skip
    assert found["first"]["behind"] is None
    assert found["later"]["behind"]["value"] == pytest.approx(float((losses["later"] - battle).mean()))
    assert found["later"]["behind"]["low"] > 0


def test_too_few_groups_give_no_ranks() -> None:
    losses = {"one": np.linspace(0, 1, 50), "two": np.linspace(0, 1, 50) + 0.5}
    assert ranks(losses, np.arange(50) % 5, 0)["two"] == {"rank": None, "behind": None}
