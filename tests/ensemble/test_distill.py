from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from ensemble.calibrate import fit_temperature
from ensemble.distill import cross_fitted_temperature
from ensemble.student import distill_loss


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (1.0, 0.3), (5.0, 0.9), (2.0, 0.0)])
def test_the_loss_is_its_formula(temperature: float, weight: float) -> None:
    rng = np.random.default_rng(0)
    logits, teacher, labels = rng.normal(size=(8, 3)), rng.dirichlet(np.ones(3), 8), rng.integers(3, size=8)
    targets = np.concatenate([teacher, np.eye(3)[labels]], axis=1)
    ours = distill_loss(torch.tensor(logits), torch.tensor(targets), temperature, weight).numpy()
    soft = softmax(np.log(np.maximum(teacher, 1e-8)) / temperature, axis=1)
    kl = entropy(soft, softmax(logits / temperature, axis=1), axis=1)
    hard = -log_softmax(logits, axis=1)[np.arange(8), labels]
    np.testing.assert_allclose(ours, weight * temperature**2 * kl + (1 - weight) * hard, atol=1e-9)


def test_a_perfect_student_has_no_soft_loss() -> None:
    teacher = torch.softmax(torch.randn(5, 3), dim=1)
    targets = torch.cat([teacher, torch.eye(3)[[0, 1, 2, 0, 1]]], dim=1)
    assert distill_loss(teacher.log() + 3, targets, 2.0, 1.0).abs().max() < 1e-6


def test_each_fold_is_calibrated_by_the_others_alone() -> None:
    rng = np.random.default_rng(1)
    logits, labels, folds = rng.normal(size=(300, 3)), rng.integers(3, size=300), np.arange(300) % 3
    logits[np.arange(300), labels] += 1
    probs, temperatures = cross_fitted_temperature(logits, labels, folds)
    changed = labels.copy()
    changed[folds == 0] = (labels[folds == 0] + 1) % 3
    again, _ = cross_fitted_temperature(logits, np.where(folds == 0, changed, labels), folds)
    np.testing.assert_array_equal(again[folds == 0], probs[folds == 0])
    assert temperatures[1] == pytest.approx(fit_temperature(logits[folds != 1], labels[folds != 1]))
