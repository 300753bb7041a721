"""Who labels which battle for which student: joins, folds and leaks, on tables and logits made up here."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from ensemble.distillation import plan as planning
from ensemble.distillation import targets as teaching
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.stacking.stage import Inputs
from oof import config as configuration
from oof.common.atomic_files import write_parquet
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame
from oof.jobs.fold_job import FoldJob
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import table_of

K = 3
SCORED, EXTRA, UNLABELLED = 60, 6, 9
N = SCORED + EXTRA + UNLABELLED
ROLES = np.repeat(["train", "extra", "unlabelled"], [SCORED, EXTRA, UNLABELLED])


def make_plan(tmp_path: Path, *overrides: str, labels: np.ndarray | None = None) -> StudentPlan:
    """A plan of 60 scored, 6 extra and 9 unlabelled battles; some of the latter two belong to no fold."""
    run = [f"run={tmp_path}", "stack.trials=1", "stack.rounds=5", *overrides]
    config = configuration.load(ROOT / "configs" / "demo.yaml", run)
    rng = np.random.default_rng(0)
    label = np.arange(N) % 3 if labels is None else labels
    table = table_of([f"prompt {i} {'x' * (i % 7)}" for i in range(N)], label=label.tolist(), role=ROLES.tolist())
    folds = np.where(np.arange(N) < SCORED, np.arange(N) // 4 % K, np.arange(N) % (K + 1) - 1)
    logits = {name: rng.normal(size=(SCORED, 2, 3)).astype(np.float32) for name in config.members}
    inputs = Inputs(table[:SCORED], label[:SCORED], np.arange(SCORED), folds[:SCORED], logits)
    names = planning.teacher_names(config)
    oof = np.stack([rng.dirichlet(np.ones(3), SCORED) for _ in names], axis=1)
    jobs = [FoldJob(config, name, fold, "key") for name in config.members for fold in range(K)]
    return StudentPlan(
        config, inputs, table, np.where(ROLES == "unlabelled", -1, label), folds, np.ones(N), oof, jobs, "key"
    )


def fill(plan: StudentPlan) -> dict[tuple[object, ...], np.ndarray]:
    """Do the teacher's work with random logits; return them by (member, fold or pair) for all battles."""
    made = {}
    for piece in teaching.work(plan):
        step = piece.step
        step.begin()
        if isinstance(piece, teaching.PairJob):
            rows, name = np.flatnonzero(np.isin(plan.folds[:SCORED], piece.without)), (piece.name, piece.without)
        else:
            rows, name = piece.rows, (piece.job.name, piece.job.fold)
        made[name] = np.random.default_rng(len(made) + 1).normal(size=(N, 2, 3)).astype(np.float32)
        frame = logits_frame(plan.table["id"][rows], made[name][rows], 0)
        write_parquet(step.folder / "logits.parquet", frame.sample(fraction=1, shuffle=True, seed=1))
        step.finish()
    return made


def pooled(each: list[np.ndarray]) -> np.ndarray:
    return softmax(np.mean([log_softmax(z.astype(np.float64).mean(axis=1), axis=1) for z in each], axis=0), axis=1)


def test_oof_targets_are_the_stack_s_for_every_student(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teachers=gemma2")
    fill(plan)
    for fold in (0, 1, FINAL):
        targets = teaching.targets(plan, fold)
        np.testing.assert_array_equal(targets[:SCORED, :3], plan.oof[:, 0])
        np.testing.assert_array_equal(targets[:, 3:], np.where(plan.labels[:, None] == np.arange(3), 1.0, 0.0))
        assert (targets[ROLES == "unlabelled", 3:] == 0).all()
        np.testing.assert_allclose(targets[:, :3].sum(axis=1), 1)


def test_battles_that_are_not_scored_are_labelled_by_the_average_of_the_folds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teachers=gemma2")
    made = fill(plan)
    targets = teaching.targets(plan, FINAL)[SCORED:, :3]
    temperature = planning.fit_temperature(
        plan.inputs.logits["gemma2"].astype(np.float64).mean(axis=1), plan.inputs.labels
    )
    each = np.stack([made["gemma2", k] for k in range(K)]).astype(np.float64)[:, SCORED:]
    for i in range(EXTRA + UNLABELLED):
        fold, extra = plan.folds[SCORED + i], ROLES[SCORED + i] == "extra"
        logits = each[fold, i] if extra and fold >= 0 else each[:, i].mean(axis=0)  # an extra one by who held it out
        np.testing.assert_allclose(targets[i], softmax(logits.mean(axis=0) / temperature), atol=1e-6)


def test_fold_matched_targets_are_in_sample(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=fold_matched")
    made = fill(plan)
    names = list(plan.config.members)
    targets = teaching.targets(plan, 1)[:SCORED, :3]
    train = plan.folds[:SCORED] != 1
    np.testing.assert_allclose(targets[train], pooled([made[n, 1][:SCORED] for n in names])[train], atol=1e-6)
    assert np.isnan(targets[~train]).all()
    final = teaching.targets(plan, FINAL)[:SCORED, :3]
    row = int(np.flatnonzero(plan.folds[:SCORED] == 2)[0])
    expected = pooled([((made[n, 0] + made[n, 1]) / 2)[row : row + 1] for n in names])
    np.testing.assert_allclose(final[row], expected[0], atol=1e-6)


def test_what_one_recipe_needs_stays_when_another_is_prepared(tmp_path: Path) -> None:
    teachers = "distill.teachers=members"
    oof, matched = make_plan(tmp_path, teachers), make_plan(tmp_path, teachers, "distill.teacher=fold_matched")
    fill(oof)
    before = teaching.targets(oof, FINAL)
    fill(matched)
    assert all(piece.done for piece in [*teaching.work(oof), *teaching.work(matched)])
    np.testing.assert_array_equal(teaching.targets(oof, FINAL), before)


def test_several_teachers_are_kept_apart(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=fold_matched", "distill.teachers=members")
    made = fill(plan)
    targets = teaching.targets(plan, 0)
    assert targets.shape == (N, 9)
    rows = np.flatnonzero(plan.folds[:SCORED] != 0)
    for i, name in enumerate(plan.config.members):
        expected = softmax(made[name, 0][rows].astype(np.float64).mean(axis=1), axis=1)
        np.testing.assert_allclose(targets[rows, 3 * i : 3 * i + 3], expected, atol=1e-6)


def test_nested_jobs_are_one_per_pair_of_folds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    pairs = [piece for piece in teaching.work(plan) if isinstance(piece, teaching.PairJob)]
    assert {(p.name, p.without) for p in pairs} == {
        (name, pair) for name in plan.config.members for pair in combinations(range(K), 2)
    }
    assert len({p.step.key for p in pairs}) == len({p.step.folder for p in pairs}) == len(pairs)


@pytest.mark.parametrize("teachers", ["stack", "members"])
def test_no_label_of_a_fold_reaches_its_student_s_nested_targets(tmp_path: Path, teachers: str) -> None:
    overrides = ("distill.teacher=nested", f"distill.teachers={teachers}")
    plan = make_plan(tmp_path / "one", *overrides)
    fill(plan)
    changed = np.where((plan.folds == 0) & (np.arange(N) < SCORED), (np.arange(N) + 1) % 3, np.arange(N) % 3)
    other = make_plan(tmp_path / "two", *overrides, labels=changed)
    fill(other)  # the same logits: what members learn from labels is theirs; here only stack and temperatures count
    for rows in (plan.folds != 0,):
        first, second = (teaching.targets(p, 0)[rows] for p in (plan, other))
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()
    assert not np.array_equal(teaching.targets(plan, 1), teaching.targets(other, 1), equal_nan=True)


def test_nested_targets_of_fold_j_come_from_the_job_without_j_and_k(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested", "distill.teachers=gemma2")
    made = fill(plan)
    rows, logits = teaching._nested_logits(plan, 2)
    for row, value in zip(rows, logits["gemma2"], strict=True):
        np.testing.assert_array_equal(value, made["gemma2", (int(plan.folds[row]), 2)][row])


def test_settings_that_do_not_fit_are_sentences(tmp_path: Path) -> None:
    config = configuration.load(ROOT / "configs" / "demo.yaml", [f"run={tmp_path}"])
    for changes, said in (
        ({"teacher": "nested"}, "folds.k"),
        ({"losses": configuration.Losses(kl=0)}, "are all 0"),
        ({"variants": ["int4"]}, "int4"),
        ({"student": configuration.Member()}, "checkpoint is empty"),
    ):
        few = replace(config, distill=replace(config.distill, **changes), folds=configuration.Folds(k=2))
        with pytest.raises(UserError, match=said):
            planning.plan_student(few)
    with pytest.raises(UserError, match="stack, members, gemma2, llama3_1"):
        planning.teacher_names(replace(config, distill=replace(config.distill, teachers="gemma3")))
    assert pl.DataFrame(_others_of(config)).height == UNLABELLED + EXTRA
    assert pl.DataFrame(_others_of(config, pseudo_weight=0.0)).height == EXTRA
    assert pl.DataFrame(_others_of(config, losses=configuration.Losses(ce=1, kl=0))).height == EXTRA


def _others_of(config: configuration.Config, **changes: object) -> pl.DataFrame:
    table = table_of(["p"] * N, role=ROLES.tolist())
    return pl.concat(planning._others(table, replace(config.distill, **changes)))
