"""Stack: equality with the stage of a run, scikit-learn's conventions, shapes, features and messages."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from ensemble import Stack
from ensemble.stacking.arrays import members_of
from ensemble.stacking.job_scales import JobScales, fit_job_scales
from ensemble.stacking.stage import load_inputs, load_stack, read_predictions
from oof import UserError, group_folds
from oof.classes import swap_orders
from oof.config.load import load
from oof.metrics import log_loss
from tests.fixtures.arenas import Arena, make_arena
from tests.fixtures.demo_run import ROOT, small_arguments

COLUMNS = "the data of this check have a number of columns that is not three per member"
EXPECTED_FAILURES = dict.fromkeys(
    (
        "check_classifier_data_not_an_array",
        "check_classifiers_classes",
        "check_classifiers_train",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_overwrite_params",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
    ),
    COLUMNS,
)
SIMPLE: dict[str, Any] = {"k": 2, "final": "log_pool"}


@pytest.mark.slow
@parametrize_with_checks([Stack(k=2, final="log_pool")], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learn_accepts_the_estimator(estimator: Stack, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(150)


@pytest.fixture(scope="module")
def stack(arena: Arena) -> Stack:
    return Stack(**SIMPLE).fit(arena.logits, arena.labels, groups=arena.groups)


def test_the_same_inputs_as_a_run_give_the_same_probabilities(small_run: Path) -> None:
    config = load(small_arguments(small_run)[0], small_arguments(small_run)[1:])
    inputs = load_inputs(config)
    settings = {name: getattr(config.stack, name) for name in ("trials", "rounds", "final", "calibrator", "order")}
    stack = Stack(k=config.folds.k, random_state=config.seed, **settings)
    stack.fit(inputs.logits, inputs.labels, groups=inputs.groups, folds=inputs.folds, features=inputs.table)
    predictions = read_predictions(small_run / "stack" / "predictions.parquet", inputs.table["id"])
    np.testing.assert_array_equal(stack.oof_proba_, predictions["calibrated"])
    for name in ("prior", "length_only", "mean", "stack", "calibrated", "combiner:lightgbm", "combiner:logistic"):
        assert stack.log_loss_[name] == log_loss(predictions[name], inputs.labels)
    final = load_stack(config, inputs)
    expected = final.predict(final.design(inputs.table, inputs.logits))
    np.testing.assert_array_equal(stack.predict_proba(inputs.logits, features=inputs.table), expected)


@pytest.mark.slow
def test_models_of_given_folds_are_brought_to_one_scale_and_those_of_drawn_folds_are_not(arena: Arena) -> None:
    uneven = {name: values * (1 + arena.folds[:, None, None]) for name, values in arena.logits.items()}
    drawn = Stack(**SIMPLE).fit(uneven, arena.labels, groups=arena.groups)
    assert drawn.job_scales_ == JobScales()
    given = Stack(**SIMPLE).fit(uneven, arena.labels, groups=arena.groups, folds=arena.folds)
    assert given.job_scales_ == fit_job_scales(uneven, arena.folds, arena.groups)
    scaled = given.job_scales_.out_of_fold(uneven, arena.folds)
    again = Stack(**SIMPLE).fit(scaled, arena.labels, groups=arena.groups, folds=arena.folds)
    assert given.log_loss_["mean"] == pytest.approx(again.log_loss_["mean"], abs=0.01)
    assert not np.allclose(given.oof_proba_, drawn.oof_proba_, atol=0.05)


def test_groups_and_folds_come_from_the_prompts_of_the_battles(small_run: Path) -> None:
    inputs = load_inputs(load(small_arguments(small_run)[0], small_arguments(small_run)[1:]))
    stack = Stack(**SIMPLE).fit(inputs.logits, inputs.labels, features=inputs.table)
    np.testing.assert_array_equal(stack.folds_, group_folds(inputs.table, 2))
    assert all(len(set(stack.folds_[inputs.groups == group])) == 1 for group in inputs.groups)


def test_no_battle_of_a_group_has_a_part_in_its_own_probabilities(arena: Arena, stack: Stack) -> None:
    held = stack.folds_ == 0
    changed = np.where(held, (arena.labels + 1) % 3, arena.labels)
    again = Stack(**SIMPLE).fit(arena.logits, changed, groups=arena.groups, folds=stack.folds_)
    np.testing.assert_array_equal(again.oof_proba_[held], stack.oof_proba_[held])
    assert not np.array_equal(again.oof_proba_[~held], stack.oof_proba_[~held])


@pytest.mark.slow
def test_it_is_no_worse_than_the_simplest_where_members_are_alike() -> None:
    arena = make_arena(600, seed=4)
    stack = Stack(k=3, trials=2, rounds=30).fit(arena.logits, arena.labels, groups=arena.groups)
    assert stack.combiner_ == "pool"
    assert stack.reason_.startswith("a pool of ")
    assert stack.log_loss_["calibrated"] == log_loss(stack.oof_proba_, arena.labels)
    assert stack.log_loss_["calibrated"] < min(stack.log_loss_["mean"], stack.log_loss_["prior"])


@pytest.mark.slow
def test_every_shape_of_the_same_logits_gives_the_same(arena: Arena) -> None:
    both = np.stack(list(arena.logits.values()), axis=1)  # (n, m, 2, 3)
    one = both.mean(axis=2)  # (n, m, 3)
    flat, names = one.reshape(len(one), -1), [f"{m}{c}" for m in "xy" for c in "abt"]
    labels, groups = arena.labels, arena.groups
    words = np.array(["a", "b", "tie"])[labels]

    def fitted(logits: Any, y: Any = labels, of: Any = groups) -> Stack:
        return Stack(**SIMPLE).fit(logits, y, groups=of)

    expected = fitted(one)
    shapes: list[Stack] = [
        fitted(flat),
        fitted(pl.DataFrame(flat, names), pl.Series(labels), pl.Series(groups)),
        fitted({"x": one[:, 0], "y": one[:, 1]}, words, [f"group {group:04d}" for group in groups]),
    ]
    try:
        import pandas
    except ImportError:
        pass
    else:
        shapes.append(fitted(pandas.DataFrame(flat, columns=names), pandas.Series(words), pandas.Series(groups)))
    for other in shapes:
        np.testing.assert_array_equal(other.oof_proba_, expected.oof_proba_)
    for i, logits in enumerate(arena.logits.values()):
        np.testing.assert_array_equal(members_of(both)[f"m{i}"], logits)
        np.testing.assert_array_equal(members_of(flat.tolist())[f"m{i}"][:, 0], one[:, i])
    assert expected.n_features_in_ == 6
    np.testing.assert_array_equal(shapes[0].predict_proba(one), expected.predict_proba(flat))


def test_swapping_a_and_b_swaps_the_probabilities(arena: Arena, stack: Stack) -> None:
    swapped = {name: swap_orders(logits) for name, logits in arena.logits.items()}
    probs = Stack(**SIMPLE, order="symmetric").fit(arena.logits, arena.labels, groups=arena.groups)
    np.testing.assert_allclose(
        probs.predict_proba(swapped)[:, [1, 0, 2]], probs.predict_proba(arena.logits), atol=1e-12
    )


def test_classes_are_written_as_the_labels_are(arena: Arena, stack: Stack) -> None:
    probs = stack.predict_proba(arena.logits)
    assert stack.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(stack.predict(arena.logits), probs.argmax(axis=1))
    words = np.array(["a", "b", "tie"])
    named = Stack(**SIMPLE).fit(arena.logits, words[arena.labels], groups=arena.groups)
    assert named.classes_.tolist() == ["a", "b", "tie"]
    np.testing.assert_array_equal(named.predict(arena.logits), words[probs.argmax(axis=1)])
    assert stack.score(np.concatenate([z.mean(axis=1) for z in arena.logits.values()], axis=1), arena.labels) > 0.4


@pytest.mark.slow
def test_scikit_learn_s_tools_work_with_it(arena: Arena) -> None:
    stack = Stack(**SIMPLE, random_state=3)
    assert clone(stack).get_params() == stack.get_params()
    assert stack.set_params(k=4).k == 4
    assert repr(Stack(k=3)) == "Stack(k=3)"
    flat = np.concatenate([z.mean(axis=1) for z in arena.logits.values()], axis=1)
    splits = list(GroupKFold(2).split(flat, groups=arena.groups))
    probs = cross_val_predict(Stack(**SIMPLE), flat, arena.labels, cv=splits, method="predict_proba")
    assert log_loss(probs, arena.labels) < 1.09
    fitted = Stack(**SIMPLE).fit(flat, arena.labels)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(flat), fitted.predict_proba(flat))  # noqa: S301


@pytest.mark.slow
@pytest.mark.parametrize("library", ["polars", "pandas", "numpy"])
def test_features_are_read_by_lightgbm(library: str) -> None:
    rng = np.random.default_rng(0)
    labels, longer = np.tile([0, 1], 400), np.tile([1.0, -1.0], 400) + rng.normal(0, 1, 800)
    columns = {"words_a": np.where(longer > 0, longer, 0), "words_b": np.where(longer < 0, -longer, 0)}
    numbers: Any = np.stack(list(columns.values()), axis=1)
    frame = numbers if library == "numpy" else pytest.importorskip(library).DataFrame(columns)
    settings: dict[str, Any] = {"k": 2, "trials": 1, "rounds": 60, "final": "lightgbm"}
    stack = Stack(**settings).fit(rng.normal(0, 1, (800, 3)), labels, features=frame)
    if library == "numpy":  # columns without names stay the same when A and B are swapped, so they say nothing
        assert stack.log_loss_["calibrated"] > 0.65
    else:
        assert stack.log_loss_["calibrated"] < 0.55
    assert stack.predict_proba(np.zeros((800, 3)), features=frame).shape == (800, 3)


TWO = np.zeros((12, 3))
LABELS = [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": np.zeros((12, 4))}, "n_features = 4, but each member has 3 columns, in the order a, b, tie"),
        ({"X": np.zeros((12, 2, 2))}, r"expected \(n, 3\), or \(n, 2, 3\) in both orders, not"),
        ({"X": {"m": TWO, "n": TWO[:5]}}, "as many rows for each member"),
        ({"X": {"m": TWO, "n": TWO + np.inf}}, "logits of n: some are larger"),
        ({"X": {"m": TWO * np.nan}}, "logits of m: expected finite numbers"),
        ({"X": {"m": [["x"] * 3] * 12}}, "expected numbers"),
        ({"y": [0, 1, 3] * 4}, "Unknown label type: 3 in row 2; write 0"),
        ({"y": ["a", "b", "draw"] * 4}, "Unknown label type: 'draw' in row 2; write 0"),
        ({"y": ["b"] * 12}, "y: only one class, 'b', occurs; give battles of at least two classes"),
        ({"y": LABELS[:3]}, "inconsistent numbers of samples"),
        ({"groups": [1, 2]}, r"groups: expected the shape \(12,\), not \(2,\)"),
        ({"groups": [0] * 12}, "k=2: the 12 train battles form only 1 group.*or give other groups"),
        ({"folds": [0, 1] * 6, "groups": [0, 0, *range(10)]}, "belong to one group.*give other folds or other groups"),
        ({"folds": [-1, 1] * 6}, "leave out battles without a fold"),
        ({"features": np.zeros((3, 2))}, "features: 3 rows, but the logits have 12"),
        ({"features": np.zeros(12)}, "features: expected"),
        ({"features": pl.DataFrame({"n_a": [0.0] * 12})}, "'n_a' needs its counterpart 'n_b'"),
        ({"features": pl.DataFrame({"n": ["x"] * 12})}, "column 'n' holds .*, not numbers"),
        ({"stack": {"final": "best_of"}}, "final='best_of'; choose one of pool, best"),
        ({"stack": {"k": 1}}, "k=1"),
    ],
)
def test_a_message_names_the_argument(arguments: dict[str, Any], message: str) -> None:
    stack = Stack(**{**SIMPLE, **arguments.pop("stack", {})})
    with pytest.raises(ValueError, match=message) as caught:
        stack.fit(**{"X": TWO, "y": LABELS, **arguments})
    if "inconsistent" not in message:
        assert isinstance(caught.value, UserError)


def test_other_members_or_features_than_in_fit_are_refused(arena: Arena, stack: Stack) -> None:
    first = next(iter(arena.logits.values()))
    with pytest.raises(UserError, match="logits of other, but fit had"):
        stack.predict_proba({"other": first})
    with pytest.raises(UserError, match="logits of m0, but fit had one, two"):
        stack.predict_proba(first[:, None])
    with pytest.raises(UserError, match="features: give none, as fit had"):
        stack.predict_proba(arena.logits, features=np.zeros((150, 1)))
    numbers = pl.DataFrame({"x": np.zeros(150)})
    with_features = Stack(**SIMPLE).fit(first[:, 0], arena.labels, features=numbers)
    with pytest.raises(UserError, match="give those that fit had"):
        with_features.predict_proba(first[:, 0])
    with pytest.raises(UserError, match=r"missing \['x'\], unknown \['y'\]"):
        with_features.predict_proba(first[:, 0], features=numbers.rename({"x": "y"}))


@pytest.mark.slow
def test_torch_is_not_imported() -> None:
    code = """
import sys, ensemble
assert not {"numpy", "polars", "sklearn"} & set(sys.modules)
from ensemble import Stack, Temperature
import numpy
rng = numpy.random.default_rng(0)
Stack(k=2, final="mean").fit(rng.normal(0, 1, (30, 3)), rng.integers(0, 3, 30)).predict_proba(numpy.zeros((1, 3)))
assert not {"torch", "transformers"} & set(sys.modules)
assert {"Judge", "Stack"} <= set(dir(ensemble))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)  # noqa: S603


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("labels", [[0, 1] * 6, [0, 1] * 5 + [2, 0], [1] * 11 + [2]])
def test_no_library_warns_about_a_dozen_battles(labels: list[int]) -> None:
    logits = np.random.default_rng(0).normal(size=(12, 2, 3)) * [[[1.0], [1e3]]]  # members of very different scales
    stack = Stack(k=2, trials=2, rounds=5).fit(logits, labels)
    assert np.isfinite(stack.predict_proba(logits)).all()
