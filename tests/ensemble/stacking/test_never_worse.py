"""Guarantee of stage two: over twenty seeds, the default is as good as the best single candidate, to 0.002 nats.

The best candidate is the one with the smallest mean loss over the seeds, which nobody knows beforehand. Losses are
cross-fitted, as the table shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble.features.design_matrix import Design, add_terms, build_design
from ensemble.stacking.cross_fit import cross_fit
from oof.config import Stack
from oof.metrics import log_loss
from tests.fixtures.arenas import make_arena

SEEDS = 20
N = 1000
NOT_CANDIDATES = {"stack", "calibrated", "teacher"}

Battles = tuple[Design, np.ndarray, np.ndarray, np.ndarray]


def strong_members(seed: int) -> Battles:
    arena = make_arena(N, seed=seed)
    return add_terms(arena.design, arena.table), arena.labels, arena.folds, arena.groups


def members_that_learned_nothing(seed: int) -> Battles:
    arena, rng = make_arena(N, seed=seed), np.random.default_rng(seed)
    logits = {name: rng.normal(0, 0.3, z.shape).astype(np.float32) for name, z in arena.logits.items()}
    return add_terms(build_design(arena.table, logits), arena.table), arena.labels, arena.folds, arena.groups


def few_groups(seed: int) -> Battles:
    arena = make_arena(N, seed=seed)
    groups = np.random.default_rng(seed).integers(12, size=N)
    return add_terms(arena.design, arena.table), arena.labels, groups % 3, groups


def fold_jobs_of_other_scales(seed: int) -> Battles:
    """Logits that stage two did not bring to one scale."""
    arena, rng = make_arena(N, seed=seed), np.random.default_rng(seed)
    logits = {}
    for name, values in arena.logits.items():
        scale, tie = np.exp(rng.normal(0, 0.3, 3))[arena.folds], rng.normal(0, 0.3, 3)[arena.folds]
        moved = values * scale[:, None, None] + tie[:, None, None] * np.array([0, 0, 1])
        logits[name] = moved.astype(np.float32)
    return add_terms(build_design(arena.table, logits), arena.table), arena.labels, arena.folds, arena.groups


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "battles",
    [
        strong_members,
        members_that_learned_nothing,
        few_groups,
        fold_jobs_of_other_scales,
    ],
)
def test_the_default_is_as_good_as_the_best_candidate(battles: Callable[[int], Battles], tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        design, labels, folds, groups = battles(seed)
        result = cross_fit(design, labels, folds, groups, Stack(trials=2, rounds=100), 0, tmp_path / str(seed))
        for name, probs in result.predictions.items():
            losses.setdefault(name, []).append(log_loss(probs, labels))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    best = min(value for name, value in means.items() if name not in NOT_CANDIDATES)
    assert means["calibrated"] < best + 0.002, means
