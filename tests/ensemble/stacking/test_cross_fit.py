"""Cross-fitted stack: distributions for all battles, no leakage, exact swap, the same after saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from ensemble.features.design_matrix import add_terms, build_design
from ensemble.stacking import cross_fit as cross_fitting
from ensemble.stacking.baselines import LengthOnly, fit_tfidf, out_of_fold_tfidf, prior_probs, terms_of
from ensemble.stacking.calibration import Calibrator, fit_calibrator
from ensemble.stacking.combiners import Logistic, LogPool, PlainMean
from ensemble.stacking.cross_fit import cross_fit, cross_fit_rules
from ensemble.stacking.lightgbm_stacker import ExtraTrees, Stacker
from ensemble.stacking.selection import ROWS, choose_out_of_fold, out_of_fold, useful_members
from ensemble.stacking.stack_result import TFIDF_MEMBER, StackResult
from ensemble.stacking.stack_result import with_tfidf as with_text_member
from ensemble.stacking.tuning import fit_extra_trees, inner_folds, tune
from ensemble.statistics.bootstrap import group_interval
from oof.classes import swap_orders
from oof.common.errors import UserError
from oof.config import Stack
from oof.metrics import log_loss, row_log_loss, softmax
from tests.fixtures.arenas import Arena, make_arena, swap_table

SETTINGS = Stack(trials=4, rounds=100, order="symmetric")


def run(arena: Arena, folder: Path, config: Stack = SETTINGS, labels: np.ndarray | None = None) -> StackResult:
    labels = arena.labels if labels is None else labels
    return cross_fit(arena.design, labels, arena.folds, arena.groups, config, 0, folder)


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(1500)


@pytest.fixture(scope="module")
def result(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> StackResult:
    return run(arena, tmp_path_factory.mktemp("studies"))


def test_every_prediction_is_a_distribution_for_every_battle(arena: Arena, result: StackResult) -> None:
    combiners = {f"combiner:{kind}" for kind in ROWS}
    assert set(result.predictions) == {"prior", "length_only", "mean", "stack", "calibrated", "teacher", *combiners}
    for probs in result.predictions.values():
        assert probs.shape == (1500, 3)
        np.testing.assert_allclose(probs.sum(axis=1), 1)


def test_the_calibrated_stack_beats_the_best_member_and_nears_the_optimum(arena: Arena, result: StackResult) -> None:
    calibrated = row_log_loss(result.predictions["calibrated"], arena.labels)
    members = [row_log_loss(softmax(z.mean(axis=1)), arena.labels) for z in arena.logits.values()]
    best = min(members, key=np.mean)
    assert group_interval(calibrated - best, arena.groups, seed=0)["high"] < 0
    assert calibrated.mean() - row_log_loss(arena.truth, arena.labels).mean() < 0.06  # the members' noise is in here


def test_labels_of_a_fold_do_not_reach_its_own_predictions(arena: Arena, result: StackResult, tmp_path: Path) -> None:
    changed = arena.labels.copy()
    fold = arena.folds == 1
    some = np.flatnonzero(fold)[::4]
    changed[some] = (changed[some] + 1) % 3
    again = run(arena, tmp_path, labels=changed)
    for name in result.predictions:
        np.testing.assert_array_equal(again.predictions[name][fold], result.predictions[name][fold], err_msg=name)
    assert not np.array_equal(again.predictions["stack"][~fold], result.predictions["stack"][~fold])


@pytest.mark.slow
def test_with_permuted_labels_no_stage_beats_the_prior(arena: Arena, tmp_path: Path) -> None:
    """The label canary."""
    permuted = arena.labels.copy()
    rng = np.random.default_rng(5)
    for fold in range(3):
        rows = np.flatnonzero(arena.folds == fold)
        permuted[rows] = permuted[rng.permutation(rows)]
    canary = run(arena, tmp_path, labels=permuted)
    prior = row_log_loss(canary.predictions["prior"], permuted)
    for name in ("length_only", "stack", "calibrated"):
        gain = row_log_loss(canary.predictions[name], permuted) - prior
        assert group_interval(gain, arena.groups, seed=0, level=0.999)["high"] > 0, name


def test_each_step_has_the_rows_groups_and_seed_of_its_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for two combiners of the useful members and one of all; ``tune`` makes the same studies of them."""
    arena, seed = make_arena(240, seed=4, position=0.5), 7
    noise = np.random.default_rng(2).normal(size=arena.logits["one"].shape).astype(np.float32)
    design = add_terms(build_design(arena.table, {**arena.logits, "noise": noise}), arena.table)
    settings = Stack(trials=2, rounds=12, calibrator="vector", order="auto", text_member=True)
    inputs = arena.labels, arena.folds, arena.groups
    of_calibrators = []

    def calibrated(*arguments: Any) -> Calibrator:
        of_calibrators.append((*arguments[:2], *arguments[5:]))
        return fit_calibrator(*arguments)

    monkeypatch.setattr(cross_fitting, "fit_calibrator", calibrated)
    rules = ["log_pool", "plain_mean", "extra_trees"]
    results = cross_fit_rules(design, *inputs, settings, rules, seed, tmp_path / "studies")
    assert of_calibrators == [("vector", "auto", seed, False)] * 12
    logits = {rule: np.empty((240, 3)) for rule in rules}
    for fold in range(3):
        rest, held = (np.flatnonzero(rows) for rows in (arena.folds != fold, arena.folds == fold))
        y, groups = arena.labels[rest], arena.groups[rest]
        inner = inner_folds(y, arena.folds[rest], groups, seed)
        full, unseen = design.take(rest), design.take(held)
        assert useful_members(full, y, inner, groups) == ["one", "two"]
        text = out_of_fold_tfidf(terms_of(full), y, groups, seed)
        train = with_text_member(full, text).keep(["one", "two", TFIDF_MEMBER])
        extended = with_text_member(unseen, fit_tfidf(terms_of(full), y).logits(terms_of(unseen)))
        tuned = tune(train, y, inner, groups, 2, 12, seed, tmp_path / f"{fold}.log")
        booster = Stacker.fit(replace(train, terms=None), y, tuned.params, tuned.rounds, seed).booster
        extra = fit_extra_trees(train, y, inner, 12, seed)
        trees = ExtraTrees.fit(train, y, extra.params, extra.rounds, seed).logits(extended)
        of_rest = out_of_fold(["log_pool"], train, y, inner) | out_of_fold(["plain_mean"], full, y, inner)
        of_rest["extra_trees"] = extra.logits
        of_unseen = {"log_pool": LogPool.fit(train, y).logits(extended), "extra_trees": trees}
        of_unseen["plain_mean"] = PlainMean.fit(full, y).logits(unseen)
        for rule in rules:
            of_held = logits[rule][held] = of_unseen[rule]
            own = choose_out_of_fold(rule, {rule: of_rest[rule]}, y, groups, inner)
            calibrator = fit_calibrator("vector", "auto", own, y, groups, seed, False)
            predicted = {name: probs[held] for name, probs in results[rule].predictions.items()}
            np.testing.assert_allclose(predicted["stack"], softmax(of_held))
            np.testing.assert_allclose(predicted["calibrated"], calibrator.apply(of_held))
            np.testing.assert_allclose(predicted["teacher"], calibrator.symmetric().apply(of_held))
            np.testing.assert_allclose(predicted["combiner:extra_trees"], softmax(trees))
            np.testing.assert_allclose(predicted["prior"], prior_probs(y, len(held)))
            expected = {"fold": fold, "combiner": rule, "reason": f"stack.final={rule}", "left_out": ["noise"]}
            expected |= {"rounds": tuned.rounds, "params": tuned.params, **calibrator.to_dict()}
            for kind, name in (("gain", "gain"), ("split", "splits")):
                values = booster.feature_importance(kind).tolist()
                expected[name] = {n: value for n, value in zip(train.names, values, strict=True) if value}
            assert results[rule].folds[fold] == expected
            assert rule != "plain_mean" or calibrator.temperature > 1.05  # one of its members is too confident
    for rule, result in results.items():
        assert result.choice is not None
        assert result.choice.kind == rule
        assert result.tfidf is not None
        assert result.features == train.names
        final = fit_calibrator("vector", "auto", logits[rule], *inputs[::2], seed, False)
        assert result.calibrator.to_dict() == pytest.approx(final.to_dict())
    assert {path.name for path in (tmp_path / "studies").glob("*.log")} == {
        "final.log",
        *map("fold-{}.log".format, range(3)),
    }


def test_a_study_that_a_worker_of_a_killed_command_still_holds_is_waited_for(tmp_path: Path) -> None:
    arena, lock = make_arena(60), FileLock(tmp_path / ".final.lock", thread_local=False)
    lock.acquire()
    end = Timer(1.0, lock.release)
    end.start()
    cross_fit(arena.design, arena.labels, arena.folds, arena.groups, Stack(trials=1, rounds=5), 0, tmp_path)
    assert not end.is_alive()


def test_swapping_the_responses_swaps_the_output_exactly(arena: Arena, result: StackResult) -> None:
    swapped = build_design(swap_table(arena.table), {n: swap_orders(z) for n, z in arena.logits.items()})
    np.testing.assert_allclose(result.predict(swapped), result.predict(arena.design)[:, [1, 0, 2]], atol=1e-12)
    even = np.flatnonzero(arena.folds != 0)
    length = LengthOnly.fit(arena.design.take(even), arena.labels[even])
    np.testing.assert_allclose(length.logits(swapped), length.logits(arena.design)[:, [1, 0, 2]], atol=1e-12)


def test_a_saved_stack_predicts_the_same(arena: Arena, result: StackResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*.*")} <= {".txt", ".json"}
    loaded = StackResult.load(tmp_path)
    np.testing.assert_allclose(loaded.predict(arena.design), result.predict(arena.design), atol=1e-12)


def test_the_same_seed_gives_the_same_study_and_a_finished_study_is_not_repeated(arena: Arena, tmp_path: Path) -> None:
    battles = arena.design, arena.labels, arena.folds, arena.groups
    whole = tune(*battles, 3, 50, 0, tmp_path / "a.log")
    same = tune(*battles, 3, 50, 0, tmp_path / "b.log")
    assert whole.params == same.params
    np.testing.assert_array_equal(whole.logits, same.logits)
    size = (tmp_path / "a.log").stat().st_size
    again = tune(*battles, 3, 50, 0, tmp_path / "a.log")
    assert again.params == whole.params
    assert (tmp_path / "a.log").stat().st_size - size < 1000  # no trial was repeated
    np.testing.assert_array_equal(again.logits, whole.logits)


@pytest.mark.slow
def test_a_real_position_bias_is_modelled_and_left_out_of_the_teacher(tmp_path: Path) -> None:
    arena = make_arena(3000, seed=3, position=0.35)
    result = run(arena, tmp_path, Stack(trials=2, rounds=30, order="auto", calibrator="temperature"))
    assert result.calibrator.position_bias > 0.1
    calibrated, teacher = result.predictions["calibrated"], result.predictions["teacher"]
    assert log_loss(calibrated, arena.labels) < log_loss(teacher, arena.labels)
    ratio = np.log(calibrated / teacher)
    c = np.array([fold["first_shown"] for fold in result.folds])[arena.folds]
    np.testing.assert_allclose(ratio[:, 0] - ratio[:, 1], 2 * c, atol=1e-9)


@pytest.mark.slow
def test_few_rows_and_an_absent_class_are_accepted(tmp_path: Path) -> None:
    arena = make_arena(57, seed=2)
    labels = np.minimum(arena.labels, 1)
    result = cross_fit(arena.design, labels, arena.folds, arena.groups, Stack(trials=2, rounds=20), 0, tmp_path)
    assert np.isfinite(row_log_loss(result.predictions["calibrated"], labels)).all()


@pytest.mark.slow
def test_rules_that_share_their_fits_give_what_each_gives_alone(tmp_path: Path) -> None:
    arena, settings = make_arena(150), Stack(trials=2, rounds=20, final="greedy")
    inputs = arena.design, arena.labels, arena.folds, arena.groups, settings
    shared = cross_fit_rules(*inputs, ("mean", "greedy"), 0, tmp_path)
    alone = cross_fit(*inputs, 0, tmp_path)
    for name, probs in alone.predictions.items():
        np.testing.assert_array_equal(shared["greedy"].predictions[name], probs)
    assert (shared["mean"].predictions["stack"] != alone.predictions["stack"]).any()
    with pytest.raises(UserError, match=r"stack\.final=text"):
        cross_fit_rules(*inputs, ("mean", "text"), 0, tmp_path)


def test_two_folds_are_enough_and_one_is_refused(tmp_path: Path) -> None:
    arena, settings = make_arena(60), Stack(trials=1, rounds=5)
    result = cross_fit(arena.design, arena.labels, np.minimum(arena.folds, 1), arena.groups, settings, 0, tmp_path)
    assert np.isfinite(result.predictions["calibrated"]).all()
    with pytest.raises(UserError, match="at least 2"):
        cross_fit(arena.design, arena.labels, arena.folds * 0, arena.groups, settings, 0, tmp_path)


@pytest.fixture(scope="module")
def with_tfidf(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> StackResult:
    return run_with_tfidf(arena, tmp_path_factory.mktemp("text"), arena.labels)


def run_with_tfidf(arena: Arena, folder: Path, labels: np.ndarray) -> StackResult:
    settings = replace(SETTINGS, text_member=True, final="logistic")
    design = add_terms(arena.design, arena.table)
    return cross_fit(design, labels, arena.folds, arena.groups, settings, 0, folder)


@pytest.mark.slow
def test_labels_of_a_fold_do_not_reach_its_own_predictions_through_the_tfidf_member(
    arena: Arena, with_tfidf: StackResult, tmp_path: Path
) -> None:
    fold = arena.folds == 1
    changed = np.where(fold & (np.arange(len(fold)) % 4 == 0), (arena.labels + 1) % 3, arena.labels)
    again = run_with_tfidf(arena, tmp_path, changed)
    for name in with_tfidf.predictions:
        expected = with_tfidf.predictions[name][fold]
        np.testing.assert_array_equal(again.predictions[name][fold], expected, err_msg=name)
    assert not np.array_equal(again.predictions["stack"][~fold], with_tfidf.predictions["stack"][~fold])


@pytest.mark.slow
def test_the_tfidf_member_is_saved_with_the_stack(arena: Arena, with_tfidf: StackResult, tmp_path: Path) -> None:
    with_tfidf.save(tmp_path)
    loaded = StackResult.load(tmp_path)
    design = loaded.design(arena.table, arena.logits)
    assert design.names == with_tfidf.features
    assert design.members == ["one", "two", TFIDF_MEMBER]
    assert isinstance(loaded.combiner, Logistic)
    assert np.abs(np.array(loaded.combiner.coef)[:, 6:9]).max() > 0  # the combiner uses it
    swapped = loaded.design(swap_table(arena.table), {n: swap_orders(z) for n, z in arena.logits.items()})
    np.testing.assert_allclose(loaded.predict(swapped), loaded.predict(design)[:, [1, 0, 2]], atol=1e-12)


def test_a_tfidf_member_without_term_counts_is_an_error(arena: Arena, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text_member"):
        run(arena, tmp_path, replace(SETTINGS, text_member=True))
