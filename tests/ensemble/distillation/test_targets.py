"""Targets of the students: joins, folds and leakage, on small tables with random logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from ensemble.distillation import plan as planning
from ensemble.distillation import targets as target_module
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.distillation.targets import _logits_of_unscored, _nested_logits, nested_stack, student_targets
from ensemble.distillation.teacher_jobs import NestedJob, teacher_jobs
from ensemble.features.design_matrix import Design, build_design
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.job_scales import JobScale, JobScales, fit_job_scales
from ensemble.stacking.stack_result import StackResult
from ensemble.stacking.stage import Inputs
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import COUNT_COLUMNS, logits_frame
from oof.config import Config
from tests.fixtures.student_plans import (
    EXTRA,
    EXTRA_ROWS,
    FOLDS,
    ROLES,
    SCORED,
    UNLABELLED,
    K,
    N,
    make_plan,
    store_random_logits,
)


def pooled(members: list[np.ndarray]) -> np.ndarray:
    """Return the log-linear pool of the members' (n, 2, 3) logits."""
    log_probs = [log_softmax(z.astype(np.float64).mean(axis=1), axis=1) for z in members]
    return softmax(np.mean(log_probs, axis=0), axis=1)


@pytest.mark.parametrize(("mode", "students"), [("oof", [0, 1, FINAL]), ("nested", [FINAL])])
def test_out_of_fold_targets_are_the_ensemble_s(tmp_path: Path, mode: str, students: list[int]) -> None:
    plan = make_plan(tmp_path, "distill.teachers=gemma2", f"distill.teacher={mode}")
    store_random_logits(plan)
    for fold in students:
        targets = student_targets(plan, fold)
        np.testing.assert_array_equal(targets[:SCORED, :3], plan.teacher_probs[:, 0])
        np.testing.assert_array_equal(targets[:, 3:], np.where(plan.labels[:, None] == np.arange(3), 1.0, 0.0))
        assert (targets[ROLES == "unlabelled", 3:] == 0).all()
        np.testing.assert_allclose(targets[:, :3].sum(axis=1), 1)


def test_unscored_battles_are_labelled_by_the_average_of_the_fold_jobs(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teachers=gemma2")
    logits = store_random_logits(plan)
    targets = student_targets(plan, FINAL)[SCORED:, :3]
    temperature = planning.shrunk_temperature(
        plan.inputs.logits["gemma2"].astype(np.float64).mean(axis=1), plan.inputs.labels, plan.inputs.groups
    )
    per_fold = np.stack([logits["gemma2", k] for k in range(K)]).astype(np.float64)[:, SCORED:]
    for i in range(EXTRA + UNLABELLED):
        fold, extra = plan.folds[SCORED + i], ROLES[SCORED + i] == "extra"
        # An extra battle is labelled by the fold job that held it out.
        z = per_fold[fold, i] if extra and fold >= 0 else per_fold[:, i].mean(axis=0)
        np.testing.assert_allclose(targets[i], softmax(z.mean(axis=0) / temperature), atol=1e-6)


def test_each_fold_job_is_scaled_for_the_stack_before_their_mean(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    logits = store_random_logits(plan)
    constants = {k: JobScale(1 + k, 2 - k / 2, k / 3) for k in range(K)}
    scaled = np.stack([constants[k].apply(logits["gemma2", k]) for k in range(K)])
    unlabelled = np.flatnonzero(ROLES == "unlabelled")
    held_out = EXTRA_ROWS[plan.folds[EXTRA_ROWS] >= 0]
    scales = JobScales({"gemma2": constants})
    for fold in (0, FINAL):
        mean, single = (_logits_of_unscored(plan, "gemma2", at, fold, scales) for at in (unlabelled, held_out))
        np.testing.assert_allclose(mean, scaled[:, unlabelled].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(single, scaled[plan.folds[held_out], held_out], atol=1e-6)
    for k in range(K):  # also where all are of one fold
        of_fold = held_out[plan.folds[held_out] == k]
        of_job = _logits_of_unscored(plan, "gemma2", of_fold, FINAL, scales)
        np.testing.assert_allclose(of_job, scaled[k, of_fold], atol=1e-6)


def test_a_nested_stack_has_the_scales_of_its_own_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job without folds 0 and 2 has another scale; its logits of extra battles are scaled, too."""
    designs = []

    def seen(design: Design, *arguments: Any) -> StackResult:
        designs.append(design)
        return cross_fit(design, *arguments)

    monkeypatch.setattr(target_module, "cross_fit", seen)
    plan = make_plan(tmp_path, "distill.teacher=nested")
    store_random_logits(plan)
    for name in plan.config.members:
        step = NestedJob(plan, name, (0, 2)).step
        frame = pl.read_parquet(step.folder / "logits.parquet").with_columns(pl.col("^(ab|ba)_.*$") * 3)
        step.begin()
        write_parquet(step.folder / "logits.parquet", frame)
        step.finish()
    outside = np.flatnonzero(plan.folds[:SCORED] != 2)
    nested = _nested_logits(plan, 2)
    scales = fit_job_scales(nested, plan.folds[outside], plan.inputs.groups[outside])
    saved = StackResult.load(nested_stack(plan, 2).folder / "model").job_scales
    assert saved == scales
    assert [design.orders.tolist() for design in designs] == [
        build_design(plan.table[outside], scales.out_of_fold(nested, plan.folds[outside])).orders.tolist()
    ]
    assert saved.members["gemma2"][0].margin < 0.8 < 1.2 < saved.members["gemma2"][1].margin


def test_a_nested_stack_is_fitted_again_where_anything_that_it_was_fitted_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    values = np.random.default_rng(0).normal(size=(N, 2, 3)).astype(np.float32)

    def store(factor: float) -> None:
        for job in teacher_jobs(plan):  # each has all battles, so that folds can change and logits stay
            job.step.begin()
            write_parquet(job.step.folder / "logits.parquet", logits_frame(plan.table["id"], values * factor, 0))
            job.step.finish()

    fits: list[StackResult] = []
    keys: list[str] = []

    def fit(*arguments: Any) -> StackResult:
        fits.append(fits[0] if fits else cross_fit(*arguments))  # one is enough: the question is whether it is fitted
        return fits[0]

    def check(other: StudentPlan) -> None:
        keys.append(nested_stack(other, 2).key)
        assert len(set(keys)) == len(keys) == len(fits)

    monkeypatch.setattr(target_module, "cross_fit", fit)
    store(1.0)
    check(plan)
    assert nested_stack(plan, 2).key == keys[0]
    assert len(fits) == 1
    labels = plan.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    check(replace(plan, labels=labels))
    check(replace(plan, folds=np.where(plan.folds == 2, 2, 1 - plan.folds)))
    check(replace(plan, inputs=replace(plan.inputs, groups=plan.inputs.groups // 2)))
    check(make_plan(tmp_path, "distill.teacher=nested", "stack.rounds=6"))
    check(make_plan(tmp_path, "distill.teacher=nested", "seed=1"))
    store(2.0)
    check(plan)
    for version in ("FORMAT", "STACKING_VERSION"):
        monkeypatch.setattr(target_module, version, 1000)
        check(plan)


def test_a_stack_labels_any_number_of_battles_at_a_time_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token counts that fold jobs stored are features, too; every job has those of the unlabelled battles."""
    plan = make_plan(tmp_path, "distill.teacher=nested")
    store_random_logits(plan)
    for job in teacher_jobs(plan):
        frame = pl.read_parquet(job.step.folder / "logits.parquet")
        numbers = frame["id"].rank("dense").cast(pl.Int32)
        job.step.begin()
        counted = frame.with_columns((numbers * (i + 2)).alias(name) for i, name in enumerate(COUNT_COLUMNS))
        write_parquet(job.step.folder / "logits.parquet", counted)
        job.step.finish()
    at_once = student_targets(plan, 0)
    monkeypatch.setattr(target_module, "ROWS", 2)
    np.testing.assert_array_equal(student_targets(plan, 0), at_once)
    assert np.isfinite(at_once[ROLES == "unlabelled"]).all()


@pytest.mark.parametrize(("mode", "fold"), [("nested", 0), ("nested", FINAL), ("oof", 0), ("oof", FINAL)])
def test_the_stack_labels_unlabelled_battles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, fold: int
) -> None:
    """For a fold student with ``nested`` the one without that fold, on that job's logits; else the run's, on all."""
    plan = make_plan(tmp_path, f"distill.teacher={mode}")
    nested = make_plan(tmp_path, "distill.teacher=nested")
    logits = store_random_logits(nested)
    scales = {name: {k: JobScale(1 + k, 2 - k / 2, k / 3) for k in range(K)} for name in plan.config.members}
    step = nested_stack(nested, 0)
    stack = StackResult.load(step.folder / "model")
    stack.job_scales = JobScales(scales)
    stack.save(step.folder / "model")
    step.finish()

    def run_s_stack(config: Config, inputs: Inputs) -> StackResult:
        assert config is plan.config
        assert inputs is plan.inputs
        return stack

    monkeypatch.setattr(target_module, "load_stack", run_s_stack)
    jobs = [0] if (mode, fold) == ("nested", 0) else range(K)
    at = np.flatnonzero(ROLES == "unlabelled")
    means = {
        name: np.mean([scales[name][k].apply(logits[name, k][at]) for k in jobs], axis=0).astype(np.float32)
        for name in scales
    }
    expected = stack.calibrator.symmetric().apply(stack.combiner.logits(stack.design(plan.table[at], means)))
    np.testing.assert_allclose(student_targets(plan, fold)[at, :3], expected, atol=1e-6)


def test_nested_targets_of_extra_battles_come_from_the_job_without_their_fold_and_the_student_s(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested", "distill.teachers=gemma2")
    logits = store_random_logits(plan)
    fitted_on = _nested_logits(plan, 2)["gemma2"].astype(np.float64).mean(axis=1)
    outside = plan.folds[:SCORED] != 2
    temperature = planning.shrunk_temperature(fitted_on, plan.labels[:SCORED][outside], plan.inputs.groups[outside])
    targets = student_targets(plan, 2)[:, :3]
    for row in EXTRA_ROWS:
        if plan.folds[row] in (0, 1):
            z = logits["gemma2", (int(plan.folds[row]), 2)][row].astype(np.float64)
            np.testing.assert_allclose(targets[row], softmax(z.mean(axis=0) / temperature), atol=1e-6)
    assert np.isnan(targets[EXTRA_ROWS[plan.folds[EXTRA_ROWS] == 2]]).all()  # the student does not train on these
    assert np.isfinite(targets[plan.folds != 2]).all()


def label_dependent_logits(plan: StudentPlan, *without: int) -> np.ndarray:
    """Return (n, 2, 3) logits that change with any label outside the folds ``without``, and with no other.

    Those of scored battles are better than chance, which gives them a temperature.
    """
    trained = ~np.isin(plan.folds, without) & (plan.labels >= 0)
    logits = np.random.default_rng([*plan.labels[trained].tolist(), len(plan.labels)]).normal(size=(N, 2, 3))
    logits[:SCORED] += np.eye(3)[plan.labels[:SCORED], None]
    return logits


def label_dependent(plan: StudentPlan) -> StudentPlan:
    """Finish every teacher job with label-dependent logits; return the plan with such out-of-fold logits."""
    for job in teacher_jobs(plan):
        without = job.without if isinstance(job, NestedJob) else (job.fold_job.fold,)
        values = label_dependent_logits(plan, *without)[job.rows]
        job.step.begin()
        write_parquet(job.step.folder / "logits.parquet", logits_frame(plan.table["id"][job.rows], values, 0))
        job.step.finish()
    of_fold = np.stack([label_dependent_logits(plan, fold)[:SCORED] for fold in range(K)])
    logits = of_fold[plan.inputs.folds, np.arange(SCORED)].astype(np.float32)
    return replace(plan, inputs=replace(plan.inputs, logits=dict.fromkeys(plan.inputs.logits, logits)))


@pytest.mark.parametrize("mode", ["oof", "nested", "fold_matched"])
def test_no_extra_battle_s_label_reaches_the_model_that_scores_it(tmp_path: Path, mode: str) -> None:
    row = SCORED + 1
    label = np.arange(N) % 3
    changed = label.copy()
    changed[row] = (changed[row] + 1) % 3
    overrides = (f"distill.teacher={mode}", "distill.teachers=gemma2")
    plans = [make_plan(tmp_path / str(i), *overrides, labels=labels) for i, labels in enumerate((label, changed))]
    plans = [label_dependent(plan) for plan in plans]
    j = int(plans[0].folds[row])
    other = next(int(r) for r in EXTRA_ROWS if plans[0].folds[r] not in (-1, j))
    for fold in (FINAL, *range(K)):
        if mode == "nested" and fold in (j, plans[0].folds[other]):
            continue  # not among that student's battles
        one, two = (_logits_of_unscored(plan, "gemma2", np.array([row, other]), fold, JobScales()) for plan in plans)
        same = (one == two).all(axis=(1, 2))
        in_sample = mode == "fold_matched" and fold not in (FINAL, j)
        assert same[0] == (not in_sample), fold
        assert not same[1] or (fold == j and mode == "fold_matched"), fold


def test_no_extra_battle_s_label_reaches_its_target_through_the_stack(tmp_path: Path) -> None:
    """Its combiners, text baseline, shares of classes and calibrator are fitted on scored battles alone."""
    label = np.arange(N) % 3
    changed = np.where(ROLES == "extra", (label + 1) % 3, label)
    overrides = ("distill.teacher=nested", "stack.text_member=true")
    plans = [make_plan(tmp_path / str(i), *overrides, labels=labels) for i, labels in enumerate((label, changed))]
    for plan in plans:
        store_random_logits(plan)  # equal logits: only the stack can pass labels on
    first, second = (student_targets(plan, 0)[FOLDS != 0, :3] for plan in plans)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


def test_fold_matched_targets_are_in_sample(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=fold_matched")
    logits = store_random_logits(plan)
    names = list(plan.config.members)
    targets = student_targets(plan, 1)[:SCORED, :3]
    train = plan.folds[:SCORED] != 1
    np.testing.assert_allclose(targets[train], pooled([logits[n, 1][:SCORED] for n in names])[train], atol=1e-6)
    assert np.isnan(targets[~train]).all()
    final = student_targets(plan, FINAL)[:SCORED, :3]
    row = int(np.flatnonzero(plan.folds[:SCORED] == 2)[0])
    expected = pooled([((logits[n, 0] + logits[n, 1]) / 2)[row : row + 1] for n in names])
    np.testing.assert_allclose(final[row], expected[0], atol=1e-6)


def test_each_teacher_has_its_own_block_of_targets(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=fold_matched", "distill.teachers=members")
    logits = store_random_logits(plan)
    targets = student_targets(plan, 0)
    assert targets.shape == (N, 9)
    rows = np.flatnonzero(plan.folds[:SCORED] != 0)
    for i, name in enumerate(plan.config.members):
        expected = softmax(logits[name, 0][rows].astype(np.float64).mean(axis=1), axis=1)
        np.testing.assert_allclose(targets[rows, 3 * i : 3 * i + 3], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["nested", "fold_matched"])
@pytest.mark.parametrize("teachers", ["stack", "members"])
def test_no_label_of_a_fold_reaches_its_student_s_targets(tmp_path: Path, mode: str, teachers: str) -> None:
    overrides = (f"distill.teacher={mode}", f"distill.teachers={teachers}")
    label = np.arange(N) % 3
    permuted = label.copy()
    permuted[FOLDS == 0] = np.random.default_rng(0).permutation(label[FOLDS == 0])
    plans = [make_plan(tmp_path / str(i), *overrides, labels=labels) for i, labels in enumerate((label, permuted))]
    one, two = [label_dependent(plan) for plan in plans]
    first, second = (student_targets(plan, 0)[FOLDS != 0] for plan in (one, two))
    assert np.isfinite(first).all()
    # Of scored, extra and unlabelled battles, neither through the members nor through stack and temperatures.
    np.testing.assert_array_equal(first, second)
    of_another = [student_targets(plan, 1)[ROLES == "unlabelled"] for plan in (one, two)]  # it trains on these labels
    assert (of_another[0] != of_another[1]).any(axis=1).all()


def test_nested_targets_of_fold_j_come_from_the_job_without_j_and_k(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested", "distill.teachers=gemma2")
    logits = store_random_logits(plan)
    rows = np.flatnonzero(plan.folds[:SCORED] != 2)
    nested = _nested_logits(plan, 2)["gemma2"]
    assert len(nested) == len(rows)
    for row, value in zip(rows, nested, strict=True):
        np.testing.assert_array_equal(value, logits["gemma2", (int(plan.folds[row]), 2)][row])
