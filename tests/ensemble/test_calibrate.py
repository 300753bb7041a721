from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from ensemble.calibrate import Calibrator, fit_calibrator, fit_first_shown, fit_temperature
from oof.errors import UserError
from oof.metrics import log_loss, softmax


def planted(n: int, temperature: float, first_shown: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn at ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, size=(n, 3))
    probs = softmax(logits / temperature + first_shown * np.array([1, -1, 0]))
    return logits, (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose decision function is its input."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Scores:
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_agrees_with_scikit_learn(temperature: float) -> None:
    logits, labels = planted(2000, temperature)
    model = CalibratedClassifierCV(FrozenEstimator(Scores().fit(logits, labels)), method="temperature")
    theirs = model.fit(logits, labels).predict_proba(logits)
    ours = softmax(logits / fit_temperature(logits, labels))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_planted_temperature_is_recovered(temperature: float) -> None:
    logits, labels = planted(60_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.02)


def test_a_planted_first_shown_term_is_recovered_and_chosen() -> None:
    logits, labels = planted(20_000, 1.5, first_shown=0.15)
    both = fit_first_shown(logits, labels)
    assert both.temperature == pytest.approx(1.5, rel=0.05)
    assert both.first_shown == pytest.approx(0.15, abs=0.03)
    chosen = fit_calibrator("temperature", "auto", logits, labels, np.arange(20_000), seed=0)
    assert chosen.first_shown == pytest.approx(both.first_shown)
    assert fit_calibrator("temperature", "symmetric", logits, labels, np.arange(20_000), 0).first_shown == 0


def test_auto_refuses_a_first_shown_term_that_is_not_there() -> None:
    chosen = 0
    for seed in range(20):
        logits, labels = planted(600, 1.0, seed=seed)
        chosen += fit_calibrator("temperature", "auto", logits, labels, np.arange(600), seed).first_shown != 0
    assert chosen <= 5  # one standard error lets one in six through


def test_calibration_never_worsens_the_rows_it_is_fitted_on() -> None:
    for seed in range(10):
        logits, labels = planted(200, 1.7, seed=seed)
        assert log_loss(softmax(logits / fit_temperature(logits, labels)), labels) <= log_loss(softmax(logits), labels)


def test_broken_logits_are_refused() -> None:
    logits, labels = planted(50, 1.0)
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="1 rows"):
        fit_temperature(logits, labels)
    perfect = np.eye(3)[labels] * 0.01
    with pytest.raises(UserError, match="bound"):
        fit_temperature(perfect, labels)


def test_none_is_the_identity() -> None:
    logits, labels = planted(50, 3.0)
    calibrator = fit_calibrator("none", "auto", logits, labels, np.arange(50), 0)
    np.testing.assert_allclose(calibrator.apply(logits), softmax(logits))
    assert Calibrator(**calibrator.to_dict()) == calibrator
