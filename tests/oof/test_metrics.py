"""Metrics against scikit-learn and brute force; intervals against their nominal coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from oof import metrics

logit_rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-30, 30))


def predictions(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return n calibrated probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probs = metrics.softmax(rng.normal(size=(n, 3)))
    return probs, (rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 2)


@settings(max_examples=100, deadline=None)
@given(logits=logit_rows, seed=st.integers(0, 99))
def test_log_loss_accuracy_and_brier_equal_scikit_learn(logits: NDArray[np.float64], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, len(logits))
    probs = metrics.softmax(logits)
    clipped = np.maximum(probs, 1e-15)
    clipped /= clipped.sum(axis=1, keepdims=True)
    assert metrics.log_loss(probs, labels) == pytest.approx(sk.log_loss(labels, clipped, labels=[0, 1, 2]), abs=1e-9)
    assert metrics.brier(probs, labels) == pytest.approx(
        sk.brier_score_loss(labels, clipped, labels=[0, 1, 2], scale_by_half=False), abs=1e-9
    )
    if (np.sort(probs)[:, 2] > np.sort(probs)[:, 1]).all():
        assert metrics.accuracy(probs, labels) == pytest.approx(sk.accuracy_score(labels, probs.argmax(axis=1)))


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows)
def test_softmax_is_exp_of_log_softmax_and_ignores_shifts(logits: NDArray[np.float64]) -> None:
    assert metrics.softmax(logits) == pytest.approx(np.exp(metrics.log_softmax(logits)))
    assert metrics.softmax(logits + 700) == pytest.approx(metrics.softmax(logits))
    assert metrics.softmax(logits.astype(np.float32)).dtype == np.float64


def test_zero_probability_costs_a_clipped_loss() -> None:
    assert metrics.row_log_loss(np.array([[1.0, 0, 0]]), np.array([1])) == pytest.approx(-np.log(1e-15))


def test_uniform_guess_scores_ln_3() -> None:
    assert metrics.log_loss(np.full((5, 3), 1 / 3), np.array([0, 1, 2, 1, 0])) == pytest.approx(np.log(3))


def test_per_class_losses_average_to_the_whole() -> None:
    probs, labels = predictions(300)
    each = metrics.per_class_log_loss(probs, labels)
    weights = np.bincount(labels, minlength=3) / 300
    assert sum(w * each[c] for w, c in zip(weights, metrics.CLASSES, strict=True)) == pytest.approx(
        metrics.log_loss(probs, labels)
    )
    assert metrics.per_class_log_loss(probs[:1], np.array([0]))["tie"] is None


def test_tie_recall_equals_scikit_learn() -> None:
    probs, labels = predictions(300)
    expected = sk.recall_score(labels, probs.argmax(axis=1), labels=[2], average=None)[0]
    assert metrics.tie_recall(probs, labels) == pytest.approx(expected)
    assert metrics.tie_recall(probs[:2], np.array([0, 1])) is None


def test_shared_maximum_counts_in_parts() -> None:
    assert metrics.accuracy(np.array([[0.4, 0.4, 0.2]]), np.array([1])) == 0.5
    assert metrics.accuracy(np.full((1, 3), 1 / 3), np.array([2])) == pytest.approx(1 / 3)


def test_calibration_error_by_brute_force() -> None:
    probs, labels = predictions(307)
    top = probs.max(axis=1)
    hit = probs.argmax(axis=1) == labels
    order = np.argsort(top)
    expected = bias = 0.0
    for b in range(15):
        rows = [i for place, i in enumerate(order) if place * 15 // 307 == b]
        expected += abs(hit[rows].mean() - top[rows].mean()) * len(rows) / 307
        bias += np.sqrt(2 / np.pi * (top[rows] * (1 - top[rows])).sum()) / 307
    assert metrics.top_label_ece(probs, labels) == pytest.approx({"ece": expected, "bias": bias})


def test_stated_bias_is_the_calibration_error_of_calibrated_predictions() -> None:
    found = [metrics.top_label_ece(*predictions(1500, seed)) for seed in range(60)]
    ece, bias = (np.mean([one[key] for one in found]) for key in ("ece", "bias"))
    assert ece == pytest.approx(bias, rel=0.07)


def test_overconfidence_shows_far_above_the_bias() -> None:
    probs, labels = predictions(3000)
    sharp = metrics.softmax(2 * np.log(probs))
    found = metrics.top_label_ece(sharp, labels)
    assert found["ece"] > 5 * found["bias"]


def test_calibration_error_does_not_depend_on_row_order_even_with_equal_confidences() -> None:
    rng = np.random.default_rng(0)
    probs = np.array([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]])[rng.integers(0, 2, 200)]
    labels = rng.integers(0, 3, 200)
    shuffle = rng.permutation(200)
    assert metrics.top_label_ece(probs, labels) == pytest.approx(metrics.top_label_ece(probs[shuffle], labels[shuffle]))


def test_scores_are_plain_json() -> None:
    found = metrics.scores(*predictions(50))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        ([[2.0, -1.0, 0.0]], [0]),  # logits
        ([[0.5, 0.5, np.nan]], [0]),
        ([[0.5, 0.4, 0.4]], [0]),
        ([[0.5, 0.5]], [0]),
        ([[0.5, 0.25, 0.25]], [3]),
        ([[0.5, 0.25, 0.25]], [-1]),
        ([[0.5, 0.25, 0.25]], [0.5]),
        ([[0.5, 0.25, 0.25]], [0, 1]),
        (np.empty((0, 3)), []),
    ],
)
def test_what_is_no_prediction_is_refused(probs: list[list[float]], labels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"probabilities|labels|rows"):
        metrics.row_log_loss(np.array(probs), np.array(labels))


# --- intervals


def test_interval_equals_a_plain_bootstrap_of_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    values = rng.normal(size=300) + rng.normal(size=40)[groups]
    means = []
    for _ in range(3000):
        drawn = np.concatenate([values[groups == g] for g in rng.choice(np.unique(groups), 40)])
        means.append(drawn.mean())
    found = metrics.group_interval(values, groups, 0)
    assert found["value"] == pytest.approx(values.mean())
    width = found["high"] - found["low"]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.08 * width)


@pytest.mark.parametrize("n_groups", [60, 300])
def test_interval_covers_the_true_mean_as_often_as_it_says(n_groups: int) -> None:
    covered = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 6, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        values = rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
        found = metrics.group_interval(values, groups, seed, resamples=400)
        covered += found["low"] <= 0 <= found["high"]
    assert 0.92 <= covered / 500 <= 0.98


def test_bundles_of_groups_give_the_width_of_the_groups_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20_000), rng.integers(1, 4, 20_000))
    values = rng.exponential(size=20_000)[groups] + rng.normal(size=len(groups))
    bundled = metrics.group_interval(values, groups, 0)
    monkeypatch.setattr(metrics, "MAX_UNITS", 10**9)
    exact = metrics.group_interval(values, groups, 0, resamples=1000)
    assert bundled["value"] == exact["value"]
    assert bundled["high"] - bundled["low"] == pytest.approx(exact["high"] - exact["low"], rel=0.12)


def test_interval_of_singletons_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    found = metrics.group_interval(values, np.arange(4000), 0)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))


def test_grouping_widens_the_interval_of_dependent_rows() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=100), 10)
    grouped = metrics.group_interval(values, np.repeat(np.arange(100), 10), 0)
    alone = metrics.group_interval(values, np.arange(1000), 0)
    assert grouped["high"] - grouped["low"] > 2.5 * (alone["high"] - alone["low"])


def test_interval_is_deterministic_and_ignores_row_order_and_names_of_groups() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=200), rng.integers(0, 50, 200)
    found = metrics.group_interval(values, groups, 7)
    assert found == metrics.group_interval(values, groups, 7)
    assert found != metrics.group_interval(values, groups, 8)
    shuffle = rng.permutation(200)
    assert found == pytest.approx(metrics.group_interval(values[shuffle], 3 * groups[shuffle] + 1, 7))


def test_interval_memory_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.random.default_rng(0).normal(size=500), np.arange(500)
    whole = metrics.group_interval(values, groups, 0)
    monkeypatch.setattr(metrics, "BATCH_VALUES", 500 * 7)
    assert metrics.group_interval(values, groups, 0) == pytest.approx(whole)


def test_paired_difference_resolves_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    hard = rng.exponential(size=2000)
    groups = np.arange(2000)
    first, second = hard + 0.01 * rng.normal(size=2000), hard + 0.005 + 0.01 * rng.normal(size=2000)
    found = metrics.paired_difference(first, second, groups, 0)
    assert found["high"] < 0
    assert found["value"] == pytest.approx((first - second).mean())
    alone = metrics.group_interval(first, groups, 0)
    assert found["high"] - found["low"] < 0.1 * (alone["high"] - alone["low"])


def test_equal_models_differ_by_exactly_zero() -> None:
    losses = np.random.default_rng(0).exponential(size=100)
    found = metrics.paired_difference(losses, losses, np.arange(100), 0)
    assert found == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_one_group_has_a_mean_and_no_interval() -> None:
    found = metrics.group_interval(np.arange(5.0), np.zeros(5, np.int64), 0)
    assert found["value"] == 2.0
    assert np.isnan([found["low"], found["high"]]).all()


@pytest.mark.parametrize(("values", "groups"), [([], []), ([1.0], [0, 1]), ([np.inf, 1.0], [0, 1]), ([[1.0]], [[0]])])
def test_interval_refuses_what_has_no_mean(values: list[float], groups: list[int]) -> None:
    with pytest.raises(ValueError, match=r"shapes|finite"):
        metrics.group_interval(np.array(values), np.array(groups), 0)
