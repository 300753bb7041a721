from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ensemble.stacking.calibration import (
    Calibrator,
    InSampleError,
    fit_calibrator,
    fit_first_shown,
    fit_temperature,
    fit_vector,
    refuse_worse,
)
from oof.common.errors import UserError
from oof.metrics import log_loss, row_log_loss, softmax


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
    with pytest.raises(InSampleError, match="bound"):
        fit_temperature(perfect, labels)


@pytest.mark.parametrize("order", ["symmetric", "auto"])
def test_logits_that_know_the_verdicts_are_left_as_they_are_and_said(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.arange(60) % 3
    fitted = fit_calibrator("temperature", order, np.eye(3)[labels] * 0.01, labels, np.arange(60), 0)
    assert fitted == Calibrator()
    assert "in-sample predictions given" in caplog.text


def test_none_is_the_identity() -> None:
    logits, labels = planted(50, 3.0)
    calibrator = fit_calibrator("none", "auto", logits, labels, np.arange(50), 0)
    np.testing.assert_allclose(calibrator.apply(logits), softmax(logits))
    assert Calibrator(**calibrator.to_dict()) == calibrator


def test_vector_scaling_recovers_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(60_000, 3))
    planted_one = Calibrator(1.6, 0.0, 0.6, -0.4)
    probs = planted_one.apply(logits)
    labels = (rng.random(len(logits))[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)
    found = fit_vector(logits, labels)
    assert found.temperature == pytest.approx(1.6, rel=0.03)
    assert found.tie_scale == pytest.approx(0.6, abs=0.03)
    assert found.tie_bias == pytest.approx(-0.4, abs=0.03)


def test_vector_scaling_nears_scikit_learns_free_regression() -> None:
    """Of these labels a free regression on mirrored rows knows little more than ours, which it contains."""
    logits, labels = planted(1500, 1.4)
    z = logits - logits.mean(axis=1, keepdims=True)
    ours = row_log_loss(fit_vector(logits, labels).apply(logits), labels).mean()
    both, y = np.concatenate([z, z[:, [1, 0, 2]]]), np.concatenate([labels, np.array([1, 0, 2])[labels]])
    free = LogisticRegression(C=1e6, max_iter=2000).fit(both, y)  # a full matrix: it contains ours
    theirs = row_log_loss(free.predict_proba(z), labels).mean()
    assert theirs - 1e-6 <= ours <= theirs + 2e-3


@pytest.mark.parametrize("kind", ["temperature", "vector", "none"])
class TestEveryCalibrator:
    """One suite for all kinds."""

    @staticmethod
    def fit(kind: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
        return fit_calibrator(kind, "symmetric", logits, labels, np.arange(len(labels)), 0)

    def test_gives_distributions_and_exchanges_sides_exactly(self, kind: str) -> None:
        logits, labels = planted(400, 2.0)
        calibrator = self.fit(kind, logits, labels)
        probs = calibrator.apply(logits)
        np.testing.assert_allclose(probs.sum(axis=1), 1)
        np.testing.assert_array_equal(calibrator.apply(logits[:, [1, 0, 2]]), probs[:, [1, 0, 2]])
        np.testing.assert_array_equal(calibrator.apply_symmetric(logits), probs)

    def test_is_never_worse_than_none_on_its_rows(self, kind: str) -> None:
        for seed in range(5):
            logits, labels = planted(57, 1.7, seed=seed)
            fitted = self.fit(kind, logits, labels)
            assert log_loss(fitted.apply(logits), labels) <= log_loss(softmax(logits), labels) + 1e-7

    def test_is_the_same_from_its_parameters_and_on_a_second_fit(self, kind: str) -> None:
        logits, labels = planted(200, 0.7)
        fitted = self.fit(kind, logits, labels)
        assert Calibrator(**fitted.to_dict()) == fitted == self.fit(kind, logits, labels)

    def test_survives_an_absent_class_and_refuses_nan(self, kind: str) -> None:
        logits, labels = planted(57, 1.0)
        assert np.isfinite(self.fit(kind, logits, np.minimum(labels, 1)).apply(logits)).all()
        logits[0, 0] = np.nan
        with pytest.raises(UserError, match="1 rows"):
            self.fit(kind, logits, labels)


def test_a_fit_that_is_worse_than_none_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = planted(500, 1.0)
    assert refuse_worse(Calibrator(1e5), logits, labels) == Calibrator()
    assert "left out" in caplog.text


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_calibrators_agree_with_probmetrics(temperature: float) -> None:
    calibrators = pytest.importorskip("probmetrics.calibrators", reason="probmetrics is optional: pip install it")
    import torch
    from probmetrics.distributions import CategoricalLogits

    logits, labels = planted(2000, temperature)
    logits[:, 2] *= 1.5  # the tie has a scale of its own
    # Theirs treats A and B apart; on battles and their mirror images the best does not.
    logits, labels = (
        np.concatenate([logits, logits[:, [1, 0, 2]]]),
        np.concatenate([labels, np.array([1, 0, 2])[labels]]),
    )
    logits -= logits.mean(axis=1, keepdims=True)
    given = CategoricalLogits(torch.tensor(logits)), torch.tensor(labels)
    ours = {
        "TemperatureScalingCalibrator": softmax(logits / fit_temperature(logits, labels)),
        "VectorScalingCalibrator": fit_vector(logits, labels).apply(logits),
    }
    for name, probs in ours.items():
        theirs = getattr(calibrators, name)().fit_torch(*given).predict_proba_torch(given[0]).get_probs().numpy()
        np.testing.assert_allclose(probs, theirs, atol=1e-3, err_msg=name)  # where the optimisers stopped
