"""Plan of the students: settings that it refuses, the battles that it uses, temperatures of folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.distillation import plan as planning
from ensemble.distillation.plan import cross_fitted_temperature
from ensemble.stacking.calibration import shrunk_temperature
from oof import config as configuration
from oof.common.errors import UserError
from oof.metrics import softmax
from tests.fixtures.demo_run import ROOT
from tests.fixtures.temperatures import fit_temperature


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


def test_conflicting_settings_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = configuration.load(ROOT / "configs" / "demo.yaml", [f"run={tmp_path}"])
    dora = replace(config.distill.student, lora=configuration.Lora(dora=True))
    remedy = "set distill.student.lora.dora=false, or do without"
    for changes, message in (
        ({"teacher": "nested"}, "folds.k"),
        ({"losses": configuration.Losses(kl=0)}, "are all 0"),
        ({"variants": ["int4"]}, "int4"),
        ({"student": configuration.Member()}, "checkpoint is empty"),
        (
            {"start": "member", "student": dora},
            f"distill.start=member averages .*; {remedy}",
        ),
        (
            {"final": "fold_average", "student": dora},
            f"distill.final=fold_average .*; {remedy}",
        ),
        ({"seeds": 2, "student": dora}, f"distill.seeds=2 averages .*; {remedy}"),
    ):
        two_folds = replace(config, distill=replace(config.distill, **changes), folds=configuration.Folds(k=2))
        with pytest.raises(UserError, match=message):
            planning.plan_student(two_folds)
    with pytest.raises(UserError, match="stack, members, gemma2, llama3_1"):
        planning.teacher_names(replace(config, distill=replace(config.distill, teachers="gemma3")))
