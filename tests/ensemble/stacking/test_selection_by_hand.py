"""The choice among candidates and the useful members against independent computations of their rules."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize, minimize_scalar

from ensemble.features.design_matrix import build_design, design_of
from ensemble.stacking.combiners import COMBINERS, LogPool, Mean
from ensemble.stacking.log_pool import fit_convex_pool
from ensemble.stacking.selection import (
    KINDS,
    POOL_RIDGE,
    ROWS,
    Pool,
    _near_the_best,
    choose,
    choose_out_of_fold,
    out_of_fold,
    useful_members,
)
from oof.metrics import log_loss, log_softmax, row_log_loss, softmax
from tests.fixtures.arenas import make_arena


def error_by_hand(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of a mean whose rows are independent between groups only."""
    sums = [(values[groups == g] - values.mean()).sum() for g in np.unique(groups)]
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def candidates(n: int, seed: int, noises: list[float]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return logits of candidates that see the truth through noise, labels, and (n,) groups of ever more rows."""
    rng = np.random.default_rng(seed)
    groups = np.sort((60 * rng.random(n) ** 2).astype(int))
    truth = rng.normal(0, 1, (n, 3)) + rng.normal(0, 0.6, (60, 3))[groups]
    labels = (rng.random(n)[:, None] > softmax(truth).cumsum(axis=1)[:, :2]).sum(axis=1)
    return (
        {kind: truth + rng.normal(0, noise, (n, 3)) for kind, noise in zip(COMBINERS, noises, strict=False)},
        labels,
        groups,
    )


def centred(logits: dict[str, np.ndarray]) -> np.ndarray:
    logp = np.stack([log_softmax(z) for z in logits.values()], axis=1)
    return np.asarray(logp - logp.mean(axis=2, keepdims=True))


def best_factor(z: np.ndarray, labels: np.ndarray) -> float:
    """Return the factor of (n, 3) logits with the smallest log loss."""
    return float(minimize_scalar(lambda w: log_loss(softmax(w * z), labels), bounds=(0, 20)).x)


def test_candidates_are_listed_from_simple_to_complex() -> None:
    combiners = ("mean", "log_pool", "greedy", "logistic", "extra_trees", "lightgbm")
    assert ("prior", "length_only", "text", "plain_mean", *combiners) == KINDS
    assert combiners == ROWS


def test_a_candidate_is_clearly_behind_beyond_three_standard_errors_at_its_best_temperature() -> None:
    above = []
    for seed in range(6):
        logits, labels, groups = candidates(500, seed, [0.6, 0.8, 0.9, 1.0])
        logits["mean"] = 3 * logits["mean"]  # not its scale counts
        pool = centred(logits)
        losses = [row_log_loss(softmax(best_factor(z, labels) * z), labels) for z in pool.transpose(1, 0, 2)]
        least = min(losses, key=lambda rows: float(rows.mean()))
        behind = [(rows - least).mean() / max(error_by_hand(rows - least, groups), 1e-12) for rows in losses]
        np.testing.assert_array_equal(_near_the_best(pool, labels, groups), np.array(behind) <= 3)
        above += behind
    assert any(2 < z < 3 for z in above)
    assert any(3 < z < 4 for z in above)


def test_a_useless_candidate_of_data_without_ties_is_as_bad_as_a_coin_and_no_worse() -> None:
    """Its best factor is 0, which must not give ties a third of the mass."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    weak = 0.02 * np.where(labels == 0, 1.0, -1.0) + rng.normal(0, 0.3, 200)  # barely better than a coin
    pool = np.stack([np.stack([z, -z, np.full(200, -2000.0)], axis=1) for z in (weak, -weak)], axis=1)
    assert _near_the_best(pool, labels, np.arange(200)).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_pool_s_ridge_is_divided_by_the_effective_groups(seed: int) -> None:
    logits, labels, groups = candidates(400, seed, [0.6, 0.65])
    pool, sizes = centred(logits), np.unique(groups, return_counts=True)[1]
    effective = 400**2 / (sizes**2).sum()
    assert effective < 0.7 * len(sizes)

    def loss(w: float) -> float:
        mixed = softmax(w * pool[:, 0] + (1 - w) * pool[:, 1])
        return log_loss(mixed, labels) + POOL_RIDGE / effective * 2 * (w - 0.5) ** 2

    expected = minimize_scalar(loss, bounds=(0, 1)).x
    weights = choose("pool", logits, labels, groups).weights
    np.testing.assert_allclose(list(weights.values()), [expected, 1 - expected], atol=2e-3)


def test_candidates_below_a_hundredth_of_the_pool_are_left_out_and_the_others_weigh_one() -> None:
    smallest: list[float] = []
    logits, labels, _ = candidates(300, 0, [0.5, 0.6])
    noise, groups = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300)
    for amplitude in np.linspace(0.005, 0.006, 40):
        logits["greedy"] = logits["plain_mean"] + amplitude * noise  # it knows nothing of its own
        pool = centred(logits)
        assert _near_the_best(pool, labels, groups).all()
        weights = fit_convex_pool(pool, labels, POOL_RIDGE / 300)
        smallest.append(weights.min())
        choice, kept = choose("pool", logits, labels, groups), weights >= 0.01
        assert list(choice.weights) == [kind for kind, is_kept in zip(logits, kept, strict=True) if is_kept]
        np.testing.assert_allclose(list(choice.weights.values()), weights[kept] / weights[kept].sum(), atol=1e-12)
        named = [part.rsplit(" ", 1) for part in choice.reason.removeprefix("a pool of ").split(", ")]
        assert named == [[k, f"{w:.2f}"] for k, w in sorted(choice.weights.items(), key=lambda item: -item[1])]
    assert any(1e-4 < weight < 0.01 for weight in smallest)
    assert any(0.01 < weight < 0.03 for weight in smallest)


def test_auto_is_the_simplest_within_one_standard_error_of_the_best_by_groups() -> None:
    chosen, single_rows = [], []
    for seed in range(30):
        logits, labels, groups = candidates(300, seed, [0.9, 0.85, 0.8, 0.75, 0.7])
        losses = {kind: row_log_loss(softmax(z), labels) for kind, z in logits.items()}
        best = min(losses, key=lambda kind: float(losses[kind].mean()))

        def simplest(by: np.ndarray, losses: dict[str, np.ndarray] = losses, best: str = best) -> str:
            for kind, rows in losses.items():
                if kind == best or (rows - losses[best]).mean() <= error_by_hand(rows - losses[best], by):
                    return kind
            raise AssertionError

        smallest, auto = (choose(setting, logits, labels, groups) for setting in ("best", "auto"))
        assert (smallest.kind, smallest.weights) == (best, {best: 1.0})
        assert (auto.kind, auto.weights) == (simplest(groups), {auto.kind: 1.0})
        assert f"({losses[auto.kind].mean():.4f})" in auto.reason
        chosen.append(auto.kind)
        single_rows.append(simplest(np.arange(300)))
    assert len(set(chosen)) >= 3
    assert chosen != single_rows  # the groups matter


def test_out_of_fold_logits_are_those_of_fits_on_the_other_folds() -> None:
    arena = make_arena(200, seed=3)
    for kind in (Mean, LogPool):
        logits = out_of_fold([kind.kind], arena.design, arena.labels, arena.folds)[kind.kind]
        for fold in range(3):
            rest, held = np.flatnonzero(arena.folds != fold), np.flatnonzero(arena.folds == fold)
            fitted = kind.fit(arena.design.take(rest), arena.labels[rest])
            np.testing.assert_array_equal(logits[held], fitted.logits(arena.design.take(held)))


def test_the_calibrator_s_logits_are_those_of_the_other_folds_choices() -> None:
    logits, labels, groups = candidates(400, 5, [0.7, 0.8, 0.9])
    folds = groups % 3
    for setting in ("pool", "best"):
        ours = choose_out_of_fold(setting, logits, labels, groups, folds)
        for fold in range(3):
            rest, held = folds != fold, folds == fold
            choice = choose(setting, {kind: z[rest] for kind, z in logits.items()}, labels[rest], groups[rest])
            mixed = sum(w * log_softmax(logits[kind][held]) for kind, w in choice.weights.items())
            np.testing.assert_allclose(softmax(ours[held]), softmax(np.asarray(mixed)), atol=1e-12)


def test_of_one_candidate_the_combiner_is_that_one() -> None:
    arena = make_arena(80)
    fitted = {"mean": Mean.fit(arena.design, arena.labels), "log_pool": LogPool.fit(arena.design, arena.labels)}
    logits = {kind: combiner.logits(arena.design) for kind, combiner in fitted.items()}
    assert Pool.of(choose("log_pool", logits, arena.labels, arena.groups), fitted) is fitted["log_pool"]


@pytest.mark.slow
def test_useful_members_are_better_than_the_prior_by_more_than_a_standard_error_of_the_groups() -> None:
    by_group, by_row = [], []
    for seed in range(3):
        arena = make_arena(120, seed=seed)
        twice = np.repeat(np.arange(120), 2)  # every battle is there two times, and is one group
        rng = np.random.default_rng(seed)
        logits = {f"m{i}": (0.1 * i * arena.logits["one"] + rng.normal(0, 1, (120, 2, 3))).astype(np.float32)
                  for i in range(7)}  # fmt: skip
        logits["reversed"] = -arena.logits["one"]
        design, labels, folds = build_design(arena.table, logits).take(twice), arena.labels[twice], arena.folds[twice]
        expected = []
        for i, name in enumerate(design.members):
            gain = np.empty(240)
            for fold in range(3):
                rest, held = folds != fold, folds == fold
                z, ties = design.pool[:, i], (labels[rest] == 2).mean()
                prior = np.array([(1 - ties) / 2, (1 - ties) / 2, ties])

                def loss(p: np.ndarray, z: np.ndarray = z[rest], y: np.ndarray = labels[rest]) -> float:
                    return log_loss(softmax(p[0] * z + np.array([0, 0, p[1]])), y)

                weight, tie = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6}).x
                alone = softmax(max(weight, 0) * z[held] + np.array([0, 0, tie]))
                gain[held] = np.log(alone[np.arange(held.sum()), labels[held]] / prior[labels[held]])
            if gain.mean() > error_by_hand(gain, twice):
                expected.append(name)
            by_group.append(gain.mean() > error_by_hand(gain, twice))
            by_row.append(gain.mean() > error_by_hand(gain, np.arange(240)))
        assert useful_members(design, labels, folds, twice) == expected
    assert 0.2 < np.mean(by_group) < 0.8
    assert by_group != by_row  # the groups matter


def test_useless_members_are_kept_where_there_is_nothing_else_alone() -> None:
    arena = make_arena(300, seed=1)
    rng = np.random.default_rng(1)
    noise = {name: rng.normal(0, 1, (300, 2, 3)).astype(np.float32) for name in ("x", "y")}
    rows = arena.labels, arena.folds, arena.groups
    bare = design_of(arena.design.ids, pl.DataFrame(), {}, noise)
    assert "between" in bare.families.values()
    assert useful_members(bare, *rows) == ["x", "y"]
    assert useful_members(build_design(arena.table, noise), *rows) == []
    flat = np.zeros((300, 2, 3), dtype=np.float32)  # its gain is 0, and so is the error
    with_one = design_of(arena.design.ids, pl.DataFrame(), {}, noise | {"flat": flat, "one": arena.logits["one"]})
    assert useful_members(with_one, *rows) == ["one"]
