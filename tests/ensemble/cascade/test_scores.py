"""Scores of a cascade: by hand, against scipy and scikit-learn, and blind to which response is A."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.linear_model import Ridge
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ensemble.cascade.scores import KINDS, RANDOM, GainModel, Output, expected_gain, features, score
from oof.metrics import CLIP

SWAPPED = [1, 0, 2]


def output(n: int, seed: int, disagreement: bool = True) -> Output:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), n)
    return Output(probs, rng.random(n) if disagreement else None, rng.random(n))


def test_scores_by_hand() -> None:
    one = Output(np.array([[0.2, 0.7, 0.1], [1.0, 0.0, 0.0]]), np.array([0.3, 0.4]), np.array([0.5, 0.6]))
    np.testing.assert_allclose(score("margin", one), [0.5, 0.0])
    np.testing.assert_allclose(score("entropy", one), [entropy([0.2, 0.7, 0.1]), 0.0])
    assert score("disagreement", one) is one.disagreement
    assert score(RANDOM, one) is one.chance
    assert score("disagreement", Output(one.probs)) is None


def test_features_by_hand_and_without_a_disagreement() -> None:
    one = Output(np.array([[0.2, 0.7, 0.1]]), np.array([0.3]))
    expected = [0.5, entropy([0.2, 0.7, 0.1]), 0.1, np.log(0.7 / 0.2), 0.7]
    np.testing.assert_allclose(features(one), [[*expected, 0.3]])
    np.testing.assert_allclose(features(Output(one.probs)), [expected])
    certain = features(Output(np.array([[1.0, 0.0, 0.0]])))
    assert certain[0, 3] == pytest.approx(-np.log(CLIP))


def test_the_expected_gain_is_the_divergence_of_the_next_level_from_this_one() -> None:
    before, after = output(50, 0), output(50, 1)
    expected = [entropy(p, q) for p, q in zip(after.probs, before.probs, strict=True)]
    np.testing.assert_allclose(expected_gain(before, after), expected)
    sure = Output(np.array([[1.0, 0.0, 0.0]]))
    assert np.isfinite(expected_gain(sure, Output(np.array([[0.0, 0.5, 0.5]])))).all()


@pytest.mark.parametrize("disagreement", [True, False])
def test_the_gain_model_is_scikit_learn_s_ridge_on_clipped_squares_and_products(disagreement: bool) -> None:
    before, after = output(300, 2, disagreement), output(300, 3)
    outlier = before.probs.copy()
    outlier[0] = [1 - 2e-12, 1e-12, 1e-12]  # more than four standard deviations from the mean
    before = Output(outlier, before.disagreement)
    scaler = StandardScaler().fit(features(before))
    terms = PolynomialFeatures(2, include_bias=False)

    def design(of: Output) -> np.ndarray:
        return np.asarray(terms.fit_transform(np.clip(scaler.transform(features(of)), -4, 4)))

    assert np.abs(scaler.transform(features(before))).max() > 4
    ridge = Ridge(alpha=10.0).fit(design(before), expected_gain(before, after))
    new = output(100, 4, disagreement)
    model = GainModel.fit(before, after)
    np.testing.assert_allclose(model.predict(new), ridge.predict(design(new)), rtol=1e-6, atol=1e-9)
    again = GainModel.from_dict(json.loads(json.dumps(model.to_dict())))
    np.testing.assert_array_equal(again.predict(new), model.predict(new))


def test_a_feature_that_does_not_vary_is_left_alone() -> None:
    before = Output(np.tile([0.2, 0.3, 0.5], (20, 1)))
    model = GainModel.fit(before, output(20, 1))
    np.testing.assert_allclose(model.predict(before), expected_gain(before, output(20, 1)).mean())


def test_swapping_the_responses_changes_no_score() -> None:
    one, after = output(40, 5), output(40, 6)
    two = Output(one.probs[:, SWAPPED], one.disagreement, one.chance)
    np.testing.assert_allclose(features(two), features(one))
    for kind in (*KINDS[1:], RANDOM):
        np.testing.assert_array_equal(score(kind, two), score(kind, one))
    model = GainModel.fit(one, after)
    np.testing.assert_allclose(model.predict(two), model.predict(one))


def test_some_battles_of_an_output_keep_their_columns() -> None:
    whole, rows = output(10, 7), np.array([3, 1])
    part = whole.take(rows)
    for name in ("probs", "disagreement", "chance"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
    assert Output(whole.probs).take(rows).disagreement is None
