"""Teacher that knows the models' names: planted strengths are found, and no label reaches its own battle's target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.distillation.model_names import PRIOR, fit_effects, with_model_names
from ensemble.distillation.plan import plan_student
from oof import config as configuration
from oof.classes import swap_classes
from oof.common.errors import UserError
from oof.metrics import log_loss, softmax
from tests.fixtures.demo_run import small_arguments

N, MODELS = 1500, 6
RNG = np.random.default_rng(0)
STRENGTHS = np.linspace(-1.5, 1.5, MODELS)
NUMBERS = np.array([RNG.choice(MODELS, 2, replace=False) for _ in range(N)])
TEXT = RNG.normal(size=(N, 3))
LEAD = (STRENGTHS[NUMBERS[:, 0]] - STRENGTHS[NUMBERS[:, 1]]) / 2
TRUE = softmax(TEXT + np.stack([LEAD, -LEAD, np.zeros(N)], axis=1))
LABELS = (RNG.random(N)[:, None] > TRUE.cumsum(axis=1)[:, :2]).sum(axis=1)
FOLDS = np.arange(N) % 3
TABLE = pl.DataFrame({side: [f"model {i}" for i in NUMBERS[:, k]] for k, side in enumerate(("model_a", "model_b"))})


def test_planted_strengths_bring_the_teacher_near_the_true_probabilities() -> None:
    ensemble = softmax(TEXT)
    named = with_model_names(ensemble, TABLE, LABELS, FOLDS)
    assert log_loss(named, LABELS) < log_loss(ensemble, LABELS) - 0.03
    assert np.abs(named - TRUE).mean() < np.abs(ensemble - TRUE).mean() / 2
    np.testing.assert_allclose(named.sum(axis=1), 1)


def test_no_label_of_a_fold_reaches_the_targets_of_the_fold() -> None:
    changed = np.where(FOLDS == 1, (LABELS + 1) % 3, LABELS)
    before, after = (with_model_names(softmax(TEXT), TABLE, labels, FOLDS) for labels in (LABELS, changed))
    np.testing.assert_array_equal(before[FOLDS == 1], after[FOLDS == 1])
    assert (before[FOLDS == 0] != after[FOLDS == 0]).any()


def test_swapping_the_responses_swaps_the_targets() -> None:
    swapped = TABLE.select(model_a="model_b", model_b="model_a")
    labels = np.array([1, 0, 2])[LABELS]
    named = with_model_names(softmax(TEXT), TABLE, LABELS, FOLDS)
    np.testing.assert_allclose(
        with_model_names(swap_classes(softmax(TEXT)), swapped, labels, FOLDS), swap_classes(named), atol=1e-4
    )


def test_battles_without_names_and_new_models_keep_the_ensemble_s_probabilities() -> None:
    first = FOLDS == 0
    names = TABLE.with_columns(
        model_a=pl.when(pl.Series(first)).then(pl.lit("zzz new")).otherwise("model_a"),
        model_b=pl.when(pl.Series(first)).then(None).otherwise("model_b"),
    )
    named = with_model_names(softmax(TEXT), names, LABELS, FOLDS)
    np.testing.assert_allclose(named[first], softmax(TEXT)[first], atol=1e-12)
    assert np.abs(named[~first] - softmax(TEXT)[~first]).mean() > 0.01


def test_a_tie_that_cannot_be_stays_impossible() -> None:
    two = softmax(TEXT) * [1, 1, 0]
    named = with_model_names(two / two.sum(axis=1, keepdims=True), TABLE, np.minimum(LABELS, 1), FOLDS)
    assert (named[:, 2] == 0).all()
    np.testing.assert_allclose(named.sum(axis=1), 1)


def test_the_fit_is_an_optimum_of_the_penalised_likelihood() -> None:
    models = NUMBERS + 1
    effects = fit_effects(TEXT, models, LABELS)
    assert (effects[:, 0] == 0).all()
    assert np.corrcoef(effects[0, 1:], STRENGTHS)[0, 1] > 0.95

    def loss(effects: np.ndarray) -> float:
        lead = (effects[0][models[:, 0]] - effects[0][models[:, 1]]) / 2
        ties = effects[1][models[:, 0]] + effects[1][models[:, 1]]
        probs = softmax(TEXT + np.stack([lead, -lead, ties], axis=1))
        return float(N * log_loss(probs, LABELS) + (effects**2).sum() / (2 * PRIOR**2))

    rng = np.random.default_rng(1)
    for _ in range(20):
        step = 0.02 * rng.normal(size=effects.shape)
        step[:, 0] = 0
        assert loss(effects + step) > loss(effects)


def test_names_change_the_targets_of_scored_battles_alone_and_need_the_stack_as_teacher(small_run: Path) -> None:
    path, *overrides = small_arguments(small_run)
    before, named = (
        plan_student(configuration.load(path, [*overrides, *more])) for more in ((), ("distill.names=true",))
    )
    assert (before.teacher_probs != named.teacher_probs).any()
    assert before.key != named.key
    assert named.depends.keys() - before.depends.keys() == {"distill.names"}
    for other in ("distill.teacher=nested", "distill.teachers=members"):
        with pytest.raises(UserError, match=r"distill\.names=true .* set distill\.names=false"):
            plan_student(configuration.load(path, [*overrides, "distill.names=true", other]))


def test_battles_without_any_name_are_refused() -> None:
    empty = TABLE.with_columns(model_a=pl.lit(None, pl.String), model_b=pl.lit(None, pl.String))
    with pytest.raises(UserError, match=r"no battle has the columns model_a and model_b.*set distill\.names=false"):
        with_model_names(softmax(TEXT), empty, LABELS, FOLDS)
