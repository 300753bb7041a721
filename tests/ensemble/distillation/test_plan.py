"""Plan of the students: a fold's temperature comes from the other folds."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.distillation.plan import cross_fitted_temperature
from ensemble.stacking.calibration import fit_temperature


def test_the_temperature_of_a_fold_does_not_depend_on_its_labels() -> None:
    rng = np.random.default_rng(1)
    logits, labels, folds = rng.normal(size=(300, 3)), rng.integers(3, size=300), np.arange(300) % 3
    logits[np.arange(300), labels] += 1
    probs, temperatures = cross_fitted_temperature(logits, labels, folds)
    changed = labels.copy()
    changed[folds == 0] = (labels[folds == 0] + 1) % 3
    again, _ = cross_fitted_temperature(logits, np.where(folds == 0, changed, labels), folds)
    np.testing.assert_array_equal(again[folds == 0], probs[folds == 0])
    assert temperatures[1] == pytest.approx(fit_temperature(logits[folds != 1], labels[folds != 1]))
