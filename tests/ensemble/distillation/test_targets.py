"""Targets of the students: joins, folds and leakage, on small tables with random logits."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from ensemble.distillation import plan as planning
from ensemble.distillation import run_teacher_jobs
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.distillation.targets import _logits_of_unscored, _nested_logits, nested_stack, student_targets
from ensemble.distillation.teacher_jobs import NestedJob, teacher_jobs
from ensemble.stacking.job_scales import JobScale, JobScales, fit_job_scales
from ensemble.stacking.stack_result import StackResult
from ensemble.stacking.stage import Inputs
from oof import config as configuration
from oof.common.atomic_files import write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame
from oof.data.schemas import SOFT_COLUMNS
from oof.jobs.dataset import FORMAT
from oof.jobs.fold_job import FoldJob
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import table_of

K = 3
SCORED, EXTRA, UNLABELLED = 60, 6, 9
N = SCORED + EXTRA + UNLABELLED
ROLES = np.repeat(["train", "extra", "unlabelled"], [SCORED, EXTRA, UNLABELLED])
FOLDS = np.where(np.arange(N) < SCORED, np.arange(N) // 4 % K, np.arange(N) % (K + 1) - 1)


def make_plan(tmp_path: Path, *overrides: str, labels: np.ndarray | None = None) -> StudentPlan:
    """Return a plan of 60 scored, 6 extra and 9 unlabelled battles; some of the last two kinds belong to no fold."""
    run = [f"run={tmp_path}", "stack.trials=1", "stack.rounds=5", *overrides]
    config = configuration.load(ROOT / "configs" / "demo.yaml", run)
    rng = np.random.default_rng(0)
    label = np.arange(N) % 3 if labels is None else labels
    table = table_of([f"prompt {i} {'x' * (i % 7)}" for i in range(N)], label=label.tolist(), role=ROLES.tolist())
    logits = {name: rng.normal(size=(SCORED, 2, 3)).astype(np.float32) for name in config.members}
    inputs = Inputs(table[:SCORED], label[:SCORED], np.arange(SCORED), FOLDS[:SCORED], logits)
    names = planning.teacher_names(config)
    teacher_probs = np.stack([rng.dirichlet(np.ones(3), SCORED) for _ in names], axis=1)
    jobs = [FoldJob(config, name, fold, "key") for name in config.members for fold in range(K)]
    return StudentPlan(
        config,
        inputs,
        table,
        labels=np.where(ROLES == "unlabelled", -1, label),
        folds=FOLDS,
        weights=np.ones(N),
        teacher_probs=teacher_probs,
        jobs=jobs,
        key="key",
    )


def store_random_logits(plan: StudentPlan) -> dict[tuple[object, ...], np.ndarray]:
    """Finish every teacher job with random logits; return those of all battles by (member, fold or pair of folds)."""
    logits = {}
    for job in teacher_jobs(plan):
        step = job.step
        step.begin()
        rows = job.rows
        nested = isinstance(job, NestedJob)
        name = (job.name, job.without) if nested else (job.fold_job.name, job.fold_job.fold)
        logits[name] = np.random.default_rng(len(logits) + 1).normal(size=(N, 2, 3)).astype(np.float32)
        frame = logits_frame(plan.table["id"][rows], logits[name][rows], 0)
        write_parquet(step.folder / "logits.parquet", frame.sample(fraction=1, shuffle=True, seed=1))
        step.finish()
    return logits


def pooled(members: list[np.ndarray]) -> np.ndarray:
    """Return the log-linear pool of the members' (n, 2, 3) logits."""
    log_probs = [log_softmax(z.astype(np.float64).mean(axis=1), axis=1) for z in members]
    return softmax(np.mean(log_probs, axis=0), axis=1)


def test_oof_targets_are_the_ensemble_s_for_every_student(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teachers=gemma2")
    store_random_logits(plan)
    for fold in (0, 1, FINAL):
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


EXTRA_ROWS = np.arange(SCORED, SCORED + EXTRA)


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


def test_a_nested_stack_has_the_scales_of_its_own_jobs(tmp_path: Path) -> None:
    """The job without folds 0 and 2 has another scale; its logits of extra battles are scaled, too."""
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
    assert saved.members["gemma2"][0].margin < 0.8 < 1.2 < saved.members["gemma2"][1].margin


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


def test_nested_jobs_without_extra_battles_keep_the_key_of_older_ones(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    without = replace(plan, folds=np.where(ROLES == "extra", -1, plan.folds))
    new, old = (NestedJob(p, "gemma2", (0, 1)) for p in (plan, without))
    assert old.step.key == digest("nested", FORMAT, old.fold_job.step.key, (0, 1))
    assert new.step.key != old.step.key


def test_fold_jobs_score_only_the_extra_battles_that_they_hold_out(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    for job in teacher_jobs(plan):
        of_extra = plan.folds[np.intersect1d(job.rows, EXTRA_ROWS)]
        assert set(of_extra.tolist()) == {-1, job.fold_job.fold}  # -1: a run that was made before extra had folds
        assert set(job.rows) >= set(range(SCORED + EXTRA, N))


def test_in_sample_teacher_probabilities_of_an_older_run_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = make_plan(tmp_path)
    plan = replace(older, folds=np.where(ROLES == "extra", np.arange(N) % K, older.folds))
    for of_run in (plan, older):
        store_random_logits(of_run)
    run_teacher_jobs.run_teacher_jobs(plan)
    assert not caplog.text
    run_teacher_jobs.run_teacher_jobs(older)
    assert "2 extra battles are in no fold, so every member has trained on them" in caplog.text


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


def test_teacher_jobs_of_one_recipe_keep_those_of_another(tmp_path: Path) -> None:
    teachers = "distill.teachers=members"
    oof, matched = make_plan(tmp_path, teachers), make_plan(tmp_path, teachers, "distill.teacher=fold_matched")
    store_random_logits(oof)
    before = student_targets(oof, FINAL)
    store_random_logits(matched)
    assert all(job.done for job in [*teacher_jobs(oof), *teacher_jobs(matched)])
    np.testing.assert_array_equal(student_targets(oof, FINAL), before)


def test_each_teacher_has_its_own_block_of_targets(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=fold_matched", "distill.teachers=members")
    logits = store_random_logits(plan)
    targets = student_targets(plan, 0)
    assert targets.shape == (N, 9)
    rows = np.flatnonzero(plan.folds[:SCORED] != 0)
    for i, name in enumerate(plan.config.members):
        expected = softmax(logits[name, 0][rows].astype(np.float64).mean(axis=1), axis=1)
        np.testing.assert_allclose(targets[rows, 3 * i : 3 * i + 3], expected, atol=1e-6)


def test_nested_jobs_are_one_per_member_and_pair_of_folds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    nested = [job for job in teacher_jobs(plan) if isinstance(job, NestedJob)]
    assert {(job.name, job.without) for job in nested} == {
        (name, pair) for name in plan.config.members for pair in combinations(range(K), 2)
    }
    assert len({job.step.key for job in nested}) == len({job.step.folder for job in nested}) == len(nested)


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


def test_nested_members_train_on_soft_labels_as_members_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    shares = dict(zip(SOFT_COLUMNS, (0.5, 0.3, 0.2), strict=True))
    voted = np.arange(N) % 2 == 0
    soft = {name: pl.when(pl.Series(voted)).then(share) for name, share in shares.items()}
    plan = replace(plan, table=plan.table.with_columns(**soft))
    training: list[np.ndarray] = []

    def capture(_: object, rows: np.ndarray, targets: np.ndarray, *__: object) -> None:
        training.extend((rows, targets))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_teacher_jobs, "fit_classifier", capture)
    with pytest.raises(KeyboardInterrupt):
        run_teacher_jobs.run_teacher_job(NestedJob(plan, "gemma2", (0, 1)))
    rows, targets = training
    expected = np.where(voted[rows, None], list(shares.values()), np.eye(3)[plan.labels[rows]])
    np.testing.assert_allclose(targets, expected, atol=1e-7)


def test_conflicting_settings_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = configuration.load(ROOT / "configs" / "demo.yaml", [f"run={tmp_path}"])
    for changes, message in (
        ({"teacher": "nested"}, "folds.k"),
        ({"losses": configuration.Losses(kl=0)}, "are all 0"),
        ({"variants": ["int4"]}, "int4"),
        ({"student": configuration.Member()}, "checkpoint is empty"),
    ):
        two_folds = replace(config, distill=replace(config.distill, **changes), folds=configuration.Folds(k=2))
        with pytest.raises(UserError, match=message):
            planning.plan_student(two_folds)
    with pytest.raises(UserError, match="stack, members, gemma2, llama3_1"):
        planning.teacher_names(replace(config, distill=replace(config.distill, teachers="gemma3")))


def test_unlabelled_battles_are_used_only_where_a_loss_term_has_soft_targets(tmp_path: Path) -> None:
    config = configuration.load(ROOT / "configs" / "demo.yaml", [f"run={tmp_path}"])
    assert n_unscored(config) == UNLABELLED + EXTRA
    assert n_unscored(config, pseudo_weight=0.0) == EXTRA
    assert n_unscored(config, losses=configuration.Losses(ce=1, kl=0)) == EXTRA


def n_unscored(config: configuration.Config, **changes: object) -> int:
    table = table_of(["p"] * N, role=ROLES.tolist())
    return pl.concat(planning._unscored(table, replace(config.distill, **changes))).height
