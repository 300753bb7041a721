"""Plan of the students: a fold's temperature comes from the other folds, and is 1 where these say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.distillation.plan import cross_fitted_temperature
from ensemble.stacking.calibration import fit_temperature, shrunk_temperature
from oof.metrics import softmax


def test_the_temperature_of_a_fold_does_not_depend_on_its_labels() -> None:
    rng = np.random.default_rng(1)
    logits, labels, folds = rng.normal(size=(300, 3)), rng.integers(3, size=300), np.arange(300) % 3
    logits[np.arange(300), labels] += 1
    logits *= 3
    groups = np.arange(300) // 2
    probs, temperatures = cross_fitted_temperature(logits, labels, folds, groups)
    changed = labels.copy()
    changed[folds == 0] = (labels[folds == 0] + 1) % 3
    again, _ = cross_fitted_temperature(logits, np.where(folds == 0, changed, labels), folds, groups)
    np.testing.assert_array_equal(again[folds == 0], probs[folds == 0])
    rest = folds != 1
    assert temperatures[1] == shrunk_temperature(logits[rest], labels[rest], groups[rest])
    assert 2 < temperatures[1] < fit_temperature(logits[rest], labels[rest])
    np.testing.assert_allclose(probs[folds == 1], softmax(logits[folds == 1] / temperatures[1]))


def test_students_of_one_prompt_or_with_separable_logits_keep_the_temperature_1(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(0)
    right = 2 * rng.normal(size=(300, 3))
    labels = (rng.random(300)[:, None] > softmax(right).cumsum(axis=1)[:, :2]).sum(axis=1)
    logits, folds = 3 * right, np.arange(300) % 3
    assert cross_fitted_temperature(logits, labels, folds % 2, folds % 2)[1] == [1, 1]  # the other fold is one prompt
    assert min(cross_fitted_temperature(logits, labels, folds, np.arange(300))[1]) > 2
    assert not caplog.records
    # The training is over when this runs: it ends in a warning, not in an error.
    assert cross_fitted_temperature(np.eye(3)[labels], labels, folds, np.arange(300))[1] == [1, 1, 1]
    assert "the temperature stays 1" in caplog.text
