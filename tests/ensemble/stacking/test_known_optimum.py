"""A stack on synthetic logits whose best possible loss is known, and leaky variants that the label canary catches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from ensemble.features.design_matrix import build_design
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.lightgbm_stacker import Split, Stacker, fit_early_stopped
from ensemble.statistics.bootstrap import group_interval
from oof.config import Stack
from oof.metrics import log_loss, row_log_loss, softmax
from tests.fixtures.arenas import make_arena
from tests.fixtures.temperatures import fit_temperature

TIE, LENGTH, QUALITY = 0.8, 0.8, 1.5
SHARED, OWN = 0.5, (0.6, 0.9)  # standard deviations of the members' noise
TEMPERATURES = (1.0, 0.5)


def band(advantage: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = expit(advantage - TIE), expit(-advantage - TIE)
    return np.stack([a, b, 1 - a - b], axis=-1)


def posterior(scores: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the class probabilities given both members' scores: all is normal, so the posterior of q is as well."""
    covariance = SHARED**2 + np.diag(np.square(OWN))
    precision = np.linalg.inv(covariance)
    variance = 1 / (QUALITY**-2 + precision.sum())
    mean = variance * scores @ precision.sum(axis=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    advantage = mean[:, None] + np.sqrt(variance) * nodes + LENGTH * length[:, None]
    return np.asarray((band(advantage) * (weights / weights.sum())[:, None]).sum(axis=1))


def excess(n: int, folder: Path, trials: int) -> float:
    """Return the calibrated stack's loss above the optimum given its inputs, in nats."""
    rng = np.random.default_rng(7)
    quality, shared = rng.normal(0, QUALITY, n), rng.normal(0, SHARED, n)
    scores = np.stack([quality + shared + rng.normal(0, own, n) for own in OWN], axis=1)
    words = rng.integers(3, 60, size=(n, 2))
    length = np.log1p(words[:, 0]) - np.log1p(words[:, 1])
    truth = band(quality + LENGTH * length)
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    logits = {
        f"m{i}": np.repeat(np.log(band(scores[:, i]))[:, None] / t, 2, axis=1) for i, t in enumerate(TEMPERATURES)
    }
    sides = {f"response_{s}": [[" ".join(["word"] * w)] for w in words[:, i]] for i, s in enumerate("ab")}
    table = pl.DataFrame({"id": [str(i) for i in range(n)], "prompt": [["why?"]] * n, **sides})
    config = Stack(trials=trials, rounds=300, order="symmetric", workers=1)
    design, rows = build_design(table, logits), np.arange(n)
    result = cross_fit(design, labels, rows % 3, rows, config, 0, folder)
    optimum = posterior(scores, length)
    difference = row_log_loss(result.predictions["calibrated"], labels) - row_log_loss(optimum, labels)
    # Conditional on the inputs the labels follow the optimum: this expectation has far less noise than the difference.
    expected = (optimum * (np.log(optimum) - np.log(result.predictions["calibrated"]))).sum(axis=1).mean()
    assert abs(difference.mean() - expected) < 5 * difference.std() / np.sqrt(n)
    return float(expected)


@pytest.mark.slow
def test_the_calibrated_stack_is_near_the_known_optimum(tmp_path: Path) -> None:
    assert 0 <= excess(4000, tmp_path, trials=3) < 0.012


@pytest.mark.slow
@pytest.mark.timeout(2400)  # minutes of computing, on a machine that others use too
def test_with_50_000_battles_the_stack_is_within_5_millinats_of_the_optimum(tmp_path: Path) -> None:
    assert 0 <= excess(50_000, tmp_path, trials=10) < 0.005


def test_a_calibrator_alone_recovers_the_temperature_within_2_percent() -> None:
    rng = np.random.default_rng(3)
    advantage = rng.normal(0, 2, 50_000)
    probs = band(advantage)
    labels = (rng.random(len(probs))[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)
    for temperature in (0.5, 2.0):
        assert fit_temperature(np.log(probs) * temperature, labels) == pytest.approx(temperature, rel=0.02)


class TestCanary:
    """With permuted labels there is nothing to learn: a prediction that beats the prior has leaked."""

    n = 900

    def losses(self, probs: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
        prior = np.tile(np.bincount(labels, minlength=3) / len(labels), (len(labels), 1))
        gain = row_log_loss(probs, labels) - row_log_loss(prior, labels)
        return group_interval(gain, np.arange(len(labels)), seed=0, level=0.999)

    def permuted(self) -> tuple[object, NDArray[np.int64], NDArray[np.int64]]:
        arena = make_arena(self.n, seed=8)
        return arena, np.random.default_rng(1).permutation(arena.labels), arena.folds

    def test_no_combiner_beats_the_prior_without_leakage(self, tmp_path: Path) -> None:
        arena, labels, folds = self.permuted()
        result = cross_fit(arena.design, labels, folds, np.arange(self.n), Stack(trials=2, rounds=60), 0, tmp_path)
        for name, probs in result.predictions.items():
            assert self.losses(probs, labels)["high"] > 0, name
        assert log_loss(result.predictions["calibrated"], labels) < 1.15  # and it does not lose much either

    def test_scoring_the_rows_of_the_fit_is_caught(self) -> None:
        arena, labels, _ = self.permuted()
        params = {"learning_rate": 0.1, "num_leaves": 16, "min_data_in_leaf": 5}
        leaky = softmax(Stacker.fit(arena.design, labels, params, 60, 0).logits(arena.design))
        assert self.losses(leaky, labels)["high"] < 0

    def test_a_member_with_in_sample_logits_is_caught(self, tmp_path: Path) -> None:
        arena, labels, folds = self.permuted()
        noise = np.random.default_rng(2).normal(size=(self.n, 2, 3))
        seen = arena.logits | {"seen": (noise + 0.8 * np.eye(3)[labels][:, None]).astype(np.float32)}
        design = build_design(arena.table, seen)
        result = cross_fit(design, labels, folds, np.arange(self.n), Stack(trials=1, rounds=30), 0, tmp_path)
        assert self.losses(result.predictions["calibrated"], labels)["high"] < 0

    def test_tuning_on_the_fold_that_is_scored_is_caught(self) -> None:
        """The best of many noisy trials is chosen by the held-out rows' loss and scored on these rows."""
        arena, labels, folds = self.permuted()
        rest, held = np.flatnonzero(folds != 0)[:120], np.flatnonzero(folds == 0)
        scored, fresh = np.array_split(np.arange(len(held)), 2)
        both = np.append(rest, held)
        split = Split(arena.design.take(both), labels[both], np.arange(len(both)) >= len(rest))
        params = {"learning_rate": 0.2, "num_leaves": 8, "min_data_in_leaf": 3, "feature_fraction": 0.3}
        trials = [row_log_loss(softmax(fit_early_stopped(split, params, 40, s)[1]), labels[held]) for s in range(60)]
        prior = np.bincount(labels, minlength=3) / self.n
        gains = np.array(trials) + np.log(prior[labels[held]])
        best = gains[gains[:, scored].mean(axis=1).argmin()]
        # It looks better on the rows that chose it than on the other rows.
        assert best[scored].mean() - gains[:, scored].mean() < best[fresh].mean() - gains[:, fresh].mean() - 0.005
