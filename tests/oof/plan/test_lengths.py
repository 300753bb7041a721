"""Estimated tokens come from the data, or else from the arena's lengths."""

from __future__ import annotations

from oof import config as configuration
from oof.plan.lengths import battle_lengths


def test_token_counts_come_from_the_data_or_else_from_the_arena_s_lengths() -> None:
    demo = battle_lengths(configuration.load("configs/demo.yaml"))
    assert len(demo.train) == 2000
    assert 50 < demo.train.mean() < 180
    assert demo.test is not None
    assert len(demo.test) == 300
    arena = battle_lengths(configuration.load("configs/lmsys.yaml"))
    assert len(arena.train) == 57_477
    assert arena.test is None
    assert abs((arena.train > 2048).mean() - 0.045) < 0.03


def test_a_subset_has_fewer_battles() -> None:
    half = ["data.subset=0.5"]
    assert len(battle_lengths(configuration.load("configs/demo.yaml", half)).train) == 1000
    assert len(battle_lengths(configuration.load("configs/lmsys.yaml", half)).train) == round(57_477 / 2)
