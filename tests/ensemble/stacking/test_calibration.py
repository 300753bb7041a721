"""One suite for every calibrator, and single ones against scikit-learn, scipy, probmetrics and planted parameters."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ensemble.stacking import calibration
from ensemble.stacking.calibration import (
    CALIBRATORS,
    Calibrator,
    fit_calibrator,
    identity_if_better,
    shrunk_temperature,
)
from ensemble.stacking.calibration_fit import InSampleError
from ensemble.stacking.leakage import temperature_with_error
from oof.classes import with_tie
from oof.common.errors import UserError
from oof.config import Stack
from oof.metrics import log_loss, log_softmax, row_log_loss, softmax
from tests.fixtures.temperatures import fit_temperature


def planted(n: int, temperature: float, position_bias: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 3) logits, and labels drawn from their softmax at ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, size=(n, 3))
    probs = softmax(logits / temperature + position_bias * np.array([1, -1, 0]))
    return logits, (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)


def fit_symmetric(kind: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
    return fit_calibrator(kind, "symmetric", logits, labels, np.arange(len(labels)), 0)


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


def test_a_planted_position_bias_is_recovered_and_chosen() -> None:
    logits, labels = planted(20_000, 1.5, position_bias=0.15)
    always = fit_calibrator("temperature", "position", logits, labels, np.arange(20_000), seed=0)
    assert always.temperature == pytest.approx(1.5, rel=0.05)
    assert always.position_bias == pytest.approx(0.15, abs=0.03)
    assert fit_calibrator("temperature", "auto", logits, labels, np.arange(20_000), seed=0) == always
    assert fit_calibrator("temperature", "symmetric", logits, labels, np.arange(20_000), 0).position_bias == 0


def test_a_calibrator_that_changes_no_loss_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    logits = with_tie(planted(50, 1.0)[0][:, :2])
    fitted = Calibrator(without_ties=True)
    assert identity_if_better(fitted, logits, np.arange(50) % 2) == fitted
    assert not caplog.records


def test_auto_refuses_a_position_bias_that_does_not_exist() -> None:
    chosen = 0
    for seed in range(20):
        logits, labels = planted(600, 1.0, seed=seed)
        chosen += fit_calibrator("temperature", "auto", logits, labels, np.arange(600), seed).position_bias != 0
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
def test_logits_that_know_the_labels_are_not_calibrated_and_a_warning_is_logged(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.arange(60) % 3
    fitted = fit_calibrator("temperature", order, np.eye(3)[labels] * 0.01, labels, np.arange(60), 0)
    assert fitted == Calibrator()
    assert "in-sample predictions given" in caplog.text


def test_every_term_has_the_meaning_that_the_table_says() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)) * 2
    a, b, tie = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).T
    raw = np.stack(
        [a ** (1.3 / 1.6) * np.exp(0.2), b ** (1 / 1.3 / 1.6) * np.exp(-0.2), tie ** (0.6 / 1.6) / 2], axis=1
    )
    calibrator = Calibrator(1.6, 0.2, 0.6, -np.log(2), 1.3)
    np.testing.assert_allclose(calibrator.apply(logits), raw / raw.sum(axis=1, keepdims=True), rtol=1e-12)
    raw = np.stack([a ** (1 / 1.6), b ** (1 / 1.6), tie ** (0.6 / 1.6) / 2], axis=1)
    np.testing.assert_allclose(calibrator.symmetric().apply(logits), raw / raw.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(calibrator.apply(logits + 7), calibrator.apply(logits), rtol=1e-12)


def test_one_temperature_is_shrunk_by_its_standard_error() -> None:
    """The large-sample rule log T * max(0, 1 - SE^2 / log(T)^2), with an error that another module computes."""
    groups = np.arange(20_000) // 2
    logits, labels = planted(20_000, 1.03, seed=2)
    temperature, error = temperature_with_error(log_softmax(logits), labels, groups)
    assert 1.5 < np.log(temperature) / (error / temperature) < 5
    factor = 1 - (error / temperature / np.log(temperature)) ** 2
    assert np.log(shrunk_temperature(logits, labels, groups)) == pytest.approx(factor * np.log(temperature), rel=0.02)


def test_a_shrunk_temperature_is_1_where_the_labels_are_known_or_battles_are_few(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = np.arange(60) % 3
    assert shrunk_temperature(np.eye(3)[labels] * 0.01, labels, np.arange(60)) == 1
    assert "the temperature stays 1" in caplog.text
    logits, labels = planted(20_000, 1.7)
    assert shrunk_temperature(logits, labels, np.zeros(20_000, dtype=int)) == 1  # one group is no evidence
    assert shrunk_temperature(logits, labels, np.arange(20_000)) == pytest.approx(1.7, rel=0.03)
    with pytest.raises(UserError, match="rows have logits that are not finite"):
        shrunk_temperature(logits * np.nan, labels, np.arange(20_000))


def expected_cost(kind: str, order: str, n: int, groups: int, spread: float, temperature: float, seeds: int) -> float:
    """Return the mean log loss that calibrating adds on new battles, under the known probabilities of their labels.

    Args:
        kind: of the calibrator.
        order: ``stack.order``; the terms for one order of the responses are fitted with "auto", too.
        n: battles.
        groups: of them; each group favours classes of its own.
        spread: standard deviation of that favour.
        temperature: at which the logits would be calibrated.
        seeds: drawn data sets.
    """
    costs = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(n + 2000, 3)) * [1.2, 1.2, 0.6]
        truth = softmax(logits / temperature)
        of_group = np.arange(n) % groups
        probs = softmax(logits[:n] / temperature + rng.normal(0, spread, (groups, 3))[of_group])
        labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)
        fitted = fit_calibrator(kind, order, logits[:n], labels, of_group, seed, one_order=True)
        change = np.log(fitted.apply(logits[n:])) - np.log(softmax(logits[n:]))
        costs.append(-(truth[n:] * change).sum(axis=1).mean())
    return float(np.mean(costs))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["symmetric", "auto"])
@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_calibrating_does_not_harm_few_battles_few_groups_or_calibrated_logits(kind: str, order: str) -> None:
    assert expected_cost(kind, order, 6, 6, 0.0, 1.0, seeds=100) < 0.002
    assert expected_cost(kind, order, 300, 300, 0.0, 1.0, seeds=30) < 0.002
    assert expected_cost(kind, order, 400, 8, 0.3, 1.0, seeds=30) < 0.0005
    assert expected_cost(kind, order, 400, 8, 0.6, 1.0, seeds=30) < 0.001


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_real_temperature_gains_what_the_known_one_gains(kind: str) -> None:
    logits = np.random.default_rng(0).normal(size=(100_000, 3)) * [1.2, 1.2, 0.6]
    truth = softmax(logits / 1.35)
    possible = (truth * (np.log(truth) - np.log(softmax(logits)))).sum(axis=1).mean()
    assert possible > 0.012
    assert -expected_cost(kind, "auto", 4000, 4000, 0.0, 1.35, seeds=5) > 0.95 * possible
    assert -expected_cost(kind, "auto", 300, 300, 0.0, 1.35, seeds=30) > 0.7 * possible


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_asymmetric_terms_are_fitted_for_one_order_and_else_where_they_pay(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = planted(1500, 1.3, position_bias=0.06, seed=3)
    groups = np.arange(1500)
    fit = fit_calibrator(kind, "position", logits, labels, groups, 0)
    assert fit.position_bias > 0
    assert fit_calibrator(kind, "auto", logits, labels, groups, 0, one_order=True) == fit
    assert fit_calibrator(kind, "symmetric", logits, labels, groups, 0, one_order=True) == fit.symmetric()
    swapped = [1, 0, 2]
    both = np.concatenate([logits, logits[:, swapped]]), np.concatenate([labels, np.array(swapped)[labels]])
    assert fit_calibrator(kind, "auto", *both, np.tile(groups, 2), 0) == Calibrator(
        **vars(fit_calibrator(kind, "symmetric", *both, np.tile(groups, 2), 0))
    )
    monkeypatch.setattr(calibration, "_asymmetry_pays", lambda *_: False)
    assert fit_calibrator(kind, "auto", logits, labels, groups, 0, one_order=True) == fit


def test_auto_decides_by_the_cross_validated_gain_and_its_standard_error_as_by_hand() -> None:
    ratios, groups = [], np.arange(400) // 2
    for seed in range(16):
        logits, labels = planted(400, 1.3, position_bias=0.13, seed=seed)
        fold = np.random.default_rng(seed).integers(5, size=200)[groups]
        gain = np.zeros(400)
        for k in range(5):
            rest, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            fit = fit_calibrator("temperature", "position", logits[rest], labels[rest], groups[rest], 0)
            odds = np.log(fit.apply(logits[held])) - np.log(fit.symmetric().apply(logits[held]))
            gain[held] = odds[np.arange(len(held)), labels[held]]
        sums = (gain - gain.mean()).reshape(200, 2).sum(axis=1)
        ratios.append(gain.mean() / (np.sqrt(np.square(sums).sum() * 200 / 199) / 400))
        fitted = fit_calibrator("temperature", "auto", logits, labels, groups, seed)
        assert (fitted.position_bias != 0) == (ratios[-1] > 1), seed
    assert sum(0 < ratio < 1 for ratio in ratios) > 1
    assert sum(1 < ratio < 4 for ratio in ratios) > 1


def test_bias_and_scale_of_the_first_response_are_fitted_by_vector_scaling() -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 2, size=(10_000, 3)), Calibrator(1.2, -0.2, 0.8, 0.3, 1.15)
    probs = truth.apply(logits)
    labels = (rng.random(10_000)[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)
    fitted = fit_calibrator("vector", "position", logits, labels, np.arange(10_000), 0)
    assert fitted.position_bias == pytest.approx(-0.2, abs=0.05)
    assert fitted.position_scale == pytest.approx(1.15, abs=0.05)
    costs = [
        (probs * (np.log(probs) - np.log(c.apply(logits)))).sum(axis=1).mean() for c in (fitted, fitted.symmetric())
    ]
    assert costs[0] < 0.002 < 0.007 < costs[1]
    assert fit_calibrator("temperature", "position", logits, labels, np.arange(10_000), 0).position_scale == 1


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_asymmetric_terms_do_not_pay_where_a_fold_has_no_battles(n_groups: int) -> None:
    logits, labels = planted(3000, 1.0, position_bias=0.5)
    fitted = fit_calibrator("temperature", "auto", logits, labels, np.arange(3000) % n_groups, 0)
    assert fitted.position_bias == 0
    assert fitted == Calibrator() or n_groups > 1


def test_asymmetric_terms_do_not_pay_where_a_part_looks_in_sample() -> None:
    labels = np.arange(60) % 3
    logits, wrong, groups = np.eye(3)[labels] * 3.0, np.arange(1, 18, 3), np.arange(60)
    labels[wrong], groups[wrong] = 0, 60  # A won where B looks better, in one group: without it, the rest is in-sample
    assert fit_calibrator("temperature", "position", logits, labels, groups, 0).position_bias > 0.2
    assert fit_calibrator("temperature", "auto", logits, labels, groups, 0).position_bias == 0


def test_none_is_the_identity() -> None:
    logits, labels = planted(50, 3.0)
    calibrator = fit_calibrator("none", "auto", logits, labels, np.arange(50), 0)
    np.testing.assert_allclose(calibrator.apply(logits), softmax(logits))


def test_files_of_a_calibrator_name_the_position_bias_first_shown() -> None:
    saved = {"temperature": 2.0, "first_shown": 0.1, "first_shown_scale": 1.5, "tie_scale": 0.5, "tie_bias": -0.2}
    saved |= {"without_ties": True}
    assert Calibrator(2.0, 0.1, 0.5, -0.2, 1.5, True).to_dict() == saved
    assert Calibrator.from_dict(saved) == Calibrator(2.0, 0.1, 0.5, -0.2, 1.5, True)
    assert Calibrator.from_dict({"temperature": 2.0, "first_shown": 0.1}) == Calibrator(2.0, 0.1)


def test_vector_scaling_recovers_planted_parameters() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(60_000, 3))
    probs = Calibrator(1.6, 0.0, 0.6, -0.4).apply(logits)
    labels = (rng.random(len(logits))[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)
    fitted = fit_symmetric("vector", logits, labels)
    assert fitted.temperature == pytest.approx(1.6, rel=0.03)
    assert fitted.tie_scale == pytest.approx(0.6, abs=0.03)
    assert fitted.tie_bias == pytest.approx(-0.4, abs=0.03)


def test_vector_scaling_nears_scikit_learns_free_regression() -> None:
    """A free regression on both orders contains ours, and is hardly better on these labels."""
    logits, labels = planted(1500, 1.4)
    z = logits - logits.mean(axis=1, keepdims=True)
    ours = row_log_loss(fit_symmetric("vector", logits, labels).apply(logits), labels).mean()
    both, y = np.concatenate([z, z[:, [1, 0, 2]]]), np.concatenate([labels, np.array([1, 0, 2])[labels]])
    free = LogisticRegression(C=1e6, max_iter=2000).fit(both, y)  # a full matrix: it contains ours
    theirs = row_log_loss(free.predict_proba(z), labels).mean()
    assert theirs - 1e-6 <= ours <= theirs + 2e-3


@pytest.mark.parametrize("kind", CALIBRATORS)
class TestEveryCalibrator:
    """The suite that a new entry of CALIBRATORS must pass."""

    def test_gives_distributions_and_swaps_exactly(self, kind: str) -> None:
        logits, labels = planted(400, 2.0)
        calibrator = fit_symmetric(kind, logits, labels)
        probs = calibrator.apply(logits)
        np.testing.assert_allclose(probs.sum(axis=1), 1)
        np.testing.assert_array_equal(calibrator.apply(logits[:, [1, 0, 2]]), probs[:, [1, 0, 2]])
        np.testing.assert_array_equal(calibrator.symmetric().apply(logits), probs)

    def test_is_never_worse_than_none_on_its_rows(self, kind: str) -> None:
        for seed in range(5):
            logits, labels = planted(57, 1.7, seed=seed)
            fitted = fit_symmetric(kind, logits, labels)
            assert log_loss(fitted.apply(logits), labels) <= log_loss(softmax(logits), labels) + 1e-7

    def test_is_the_same_from_its_parameters_and_on_a_second_fit(self, kind: str) -> None:
        logits, labels = planted(200, 0.7)
        fitted = fit_symmetric(kind, logits, labels)
        assert Calibrator.from_dict(fitted.to_dict()) == fitted == fit_symmetric(kind, logits, labels)

    def test_has_a_position_bias_only_where_one_is_fitted(self, kind: str) -> None:
        logits, labels = planted(400, 1.3, position_bias=0.5)
        assert fit_symmetric(kind, logits, labels).position_bias == 0
        biased = fit_calibrator(kind, "position", logits, labels, np.arange(400), 0)
        without = biased.symmetric().apply(logits)
        np.testing.assert_array_equal(biased.symmetric().apply(logits[:, [1, 0, 2]]), without[:, [1, 0, 2]])
        assert biased.position_bias > 0.3 or kind == "none"

    def test_accepts_an_absent_class_and_refuses_nan(self, kind: str) -> None:
        logits, labels = planted(57, 1.0)
        assert np.isfinite(fit_symmetric(kind, logits, np.minimum(labels, 1)).apply(logits)).all()
        logits[0, 0] = np.nan
        with pytest.raises(UserError, match="1 rows"):
            fit_symmetric(kind, logits, labels)


def test_a_fit_that_is_worse_than_none_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = planted(500, 1.0)
    assert identity_if_better(Calibrator(1e5), logits, labels) == Calibrator()
    assert "left out" in caplog.text


@pytest.mark.parametrize("truth", [Calibrator(0.8, 0, 1.3, 0.4), Calibrator(1.9, 0, 0.7, -0.3)])
def test_calibrators_agree_with_probmetrics(truth: Calibrator) -> None:
    calibrators = pytest.importorskip("probmetrics.calibrators", reason="probmetrics is optional: pip install it")
    import torch
    from probmetrics.distributions import CategoricalLogits

    rng = np.random.default_rng(0)
    logits = log_softmax(rng.normal(0, 2, size=(10_000, 3)))
    labels = (rng.random(10_000)[:, None] > truth.apply(logits).cumsum(axis=1)[:, :2]).sum(axis=1)
    # Theirs treats A and B apart; on battles in both orders the best calibrator does not.
    logits = np.concatenate([logits, logits[:, [1, 0, 2]]])
    labels = np.concatenate([labels, np.array([1, 0, 2])[labels]])
    given = CategoricalLogits(torch.tensor(logits)), torch.tensor(labels)
    temperature = calibrators.TemperatureScalingCalibrator().fit_torch(*given).predict_proba_torch(given[0])
    plain = softmax(logits / fit_temperature(logits, labels))
    np.testing.assert_allclose(plain, temperature.get_probs().numpy(), atol=1e-3)
    ours = fit_calibrator("vector", "symmetric", logits, labels, np.tile(np.arange(10_000), 2), 0).apply(logits)
    for name in ("SVSCalibrator", "SMSCalibrator"):  # with ridges that hardly count here
        theirs = getattr(calibrators, name)().fit(softmax(logits), labels).predict_proba(softmax(logits))
        np.testing.assert_allclose(ours, theirs, atol=0.02, err_msg=name)
        assert log_loss(ours, labels) == pytest.approx(log_loss(theirs, labels), abs=1e-4), name


def test_the_setting_offers_every_calibrator() -> None:
    (setting,) = (field for field in fields(Stack) if field.name == "calibrator")
    assert set(setting.metadata["choices"]) == set(CALIBRATORS)
