"""Jobs of all stages and their totals, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oof import config as configuration
from oof.config import Config, Member
from oof.model.cost_model import Cost
from oof.plan.card_settings import CardSetting
from oof.plan.lengths import BattleLengths
from oof.plan.members import MemberPlan, Plan
from oof.plan.totals import FINAL_STUDENT, FOLD_STUDENTS, STAGE_ONE, TEST, job_groups, plan_totals

NONE = np.empty(0)
SECONDS = 0.01  # per token, of training; a fifth of it in scoring


def config_of(*overrides: str) -> Config:
    return configuration.load(
        "configs/lmsys.yaml", ["prompts.max_tokens=100", "prompts.score_max_tokens=null", *overrides]
    )


def lengths_of(train: int = 50, extra: int = 0, unlabelled: int = 0, test: int = 0) -> BattleLengths:
    """Battles of 100 tokens each."""
    full = [np.full(n, 100.0) for n in (train, extra, unlabelled, test)]
    return BattleLengths(full[0], full[1], full[2], NONE, full[3] if test else None)


def plan_of(config: Config, lengths: BattleLengths) -> Plan:
    cost = Cost(1, 1, 1.0, 1.0, 1.0)
    setting = CardSetting("H100", "sdpa", "bfloat16", "none", False, 100, 1.0, SECONDS, SECONDS / 5)
    settings: dict[str, CardSetting | None] = {"H100": setting, "T4": None}
    members = [*config.members, "student"]
    return Plan(
        config,
        lengths,
        ["H100", "T4"],
        [MemberPlan(n, "base", cost, 1, 100, 1.0, 1.0, 1.0, settings, settings, 1.0) for n in members],
    )


def jobs(config: Config, lengths: BattleLengths) -> dict[tuple[str, str, bool], int]:
    """Return the number of jobs by part, model and whether they train."""
    counted: dict[tuple[str, str, bool], int] = {}
    for group in job_groups(config, lengths):
        key = group.part, group.name, group.trained > 0
        counted[key] = counted.get(key, 0) + group.count
    return counted


def test_the_hours_of_each_stage_are_those_of_a_count_by_hand() -> None:
    config = config_of()
    totals = plan_totals(plan_of(config, lengths_of()), "H100")
    assert totals is not None
    # 50 battles x 100 tokens in two orders; a job trains on 4/5 of them and scores 1/5.
    everything = 2 * 50 * 100 * SECONDS / 3600
    fold_job = everything * (4 / 5 + 1 / 5 / 5)
    assert totals.stage_one_hours == pytest.approx(10 * fold_job)
    assert totals.fold_student_hours == pytest.approx(5 * everything * (2 * 4 / 5 + 1 / 5 / 5))
    assert totals.final_student_hours == pytest.approx(2 * everything)
    assert totals.test_hours is None
    assert totals.wall_hours == pytest.approx(totals.card_hours)
    assert totals.money is None


def test_ten_jobs_on_eight_cards_take_two_waves_and_idle_cards_are_paid() -> None:
    config = config_of("distill.student.checkpoint=''")
    plan = plan_of(config, lengths_of())
    one, eight, ten = (plan_totals(plan, "H100", n, 2.0) for n in (1, 8, 10))
    assert one is not None and eight is not None and ten is not None  # noqa: PT018
    assert one.wall_hours == pytest.approx(10 * ten.wall_hours)
    assert eight.wall_hours == pytest.approx(2 * ten.wall_hours)
    assert eight.money == pytest.approx(8 * 2.0 * eight.wall_hours)
    assert eight.card_hours == pytest.approx(one.card_hours)


def test_cards_are_by_default_those_that_the_run_uses() -> None:
    config = config_of("jobs.workers=3")
    totals = plan_totals(plan_of(config, lengths_of()), "H100")
    assert totals is not None
    assert totals.n_cards == 3


def test_a_fold_job_on_several_cards_takes_its_share_of_the_time() -> None:
    config = config_of("jobs.nproc=4", "distill.student.checkpoint=''")
    totals = plan_totals(plan_of(config, lengths_of()), "H100")
    assert totals is not None
    assert totals.n_cards == 4
    assert totals.wall_hours == pytest.approx(totals.card_hours / 4)


def test_a_model_that_does_not_fit_has_no_totals() -> None:
    config = config_of()
    assert plan_totals(plan_of(config, lengths_of()), "T4") is None


@pytest.mark.parametrize(
    ("overrides", "lengths", "expected"),
    [
        ([], lengths_of(), {}),
        (["distill.final=fold_average"], lengths_of(), {(FINAL_STUDENT, "student", True): 0}),
        (["distill.teacher=nested"], lengths_of(), {(FOLD_STUDENTS, m, True): 10 for m in ("gemma2", "llama3_1")}),
        (
            ["distill.teacher=nested", "distill.teachers=gemma2"],
            lengths_of(),
            {(FOLD_STUDENTS, "gemma2", True): 10},
        ),
        (
            ["distill.teacher=fold_matched"],
            lengths_of(),
            {(FOLD_STUDENTS, m, False): 5 for m in ("gemma2", "llama3_1")},
        ),
        ([], lengths_of(unlabelled=7), {(FOLD_STUDENTS, m, False): 5 for m in ("gemma2", "llama3_1")}),
        (["distill.pseudo_weight=0"], lengths_of(unlabelled=7), {}),
        (
            [],
            lengths_of(test=9),
            {(TEST, "gemma2", False): 5, (TEST, "llama3_1", False): 5, (TEST, "student", False): 1},
        ),
    ],
)
def test_jobs_of_each_teacher_and_final_student(
    overrides: list[str], lengths: BattleLengths, expected: dict[tuple[str, str, bool], int]
) -> None:
    common = {(STAGE_ONE, "gemma2", True): 5, (STAGE_ONE, "llama3_1", True): 5}
    common |= {(FOLD_STUDENTS, "student", True): 5, (FINAL_STUDENT, "student", True): 1}
    wanted = {key: count for key, count in (common | expected).items() if count}
    assert jobs(config_of(*overrides), lengths) == wanted


def test_students_train_on_extra_and_unlabelled_battles_too() -> None:
    (plain,), (more,) = (
        [group for group in job_groups(config_of(), lengths) if group.part == FINAL_STUDENT]
        for lengths in (lengths_of(), lengths_of(extra=10, unlabelled=40))
    )
    assert more.trained == pytest.approx(plain.trained * 2)


@pytest.mark.parametrize(
    ("teacher", "scored_by_fold_job", "scored_by_nested_job"),
    [("oof", 2, 0), ("nested", 2, 4), ("fold_matched", 10, 0)],
)
def test_each_fold_holds_out_its_share_of_the_extra_battles(
    teacher: str, scored_by_fold_job: int, scored_by_nested_job: int
) -> None:
    config = config_of(f"distill.teacher={teacher}")
    plain, more = (
        [g for g in job_groups(config, lengths) if g.part != FINAL_STUDENT]
        for lengths in (lengths_of(), lengths_of(extra=10))
    )
    before = {(g.phase, g.name, g.trained > 0): g for g in plain}
    tokens = 2 * 100  # of a battle in both orders
    for group in more:
        old = before.get((group.phase, group.name, group.trained > 0), replace(group, trained=0.0, scored=0.0))
        assert group.trained == pytest.approx(old.trained * (50 + 10) / 50)  # in the folds' shares, whatever the epochs
        teacher_job = scored_by_nested_job if group.trained else scored_by_fold_job
        expected = teacher_job if group.phase == 4 else 0
        assert group.scored - old.scored == pytest.approx(expected * tokens)


def test_pretraining_runs_once_per_member_and_for_the_student() -> None:
    lengths = replace(lengths_of(), pairs=np.full(10, 100.0))
    base = config_of("pretrain.epochs=2", "distill.start=base")
    groups = [group for group in job_groups(base, lengths) if group.phase in (0, 3)]
    assert [(group.name, group.count) for group in groups] == [("gemma2", 1), ("llama3_1", 1), ("student", 1)]
    assert all(group.trained == 2 * 2 * 1000 for group in groups)
    one, three, six = (
        {g.part: g.trained for g in job_groups(config_of(*settings), lengths) if g.phase == 5}
        for settings in ((), ("distill.seeds=3",), ("distill.seeds=3", "distill.rounds=2"))
    )
    assert three == {part: 3 * trained for part, trained in one.items()}
    assert six == {part: 6 * trained for part, trained in one.items()}
    for warm in ((), ("distill.start=member",)):  # the demo's student fits a member
        names = [group.name for group in job_groups(config_of(*warm), lengths) if group.phase in (0, 3)]
        assert names == ["gemma2", "llama3_1"]


def test_members_without_a_student_have_no_third_stage() -> None:
    parts = {
        group.part
        for group in job_groups(
            replace(config_of(), distill=replace(config_of().distill, student=Member())), lengths_of()
        )
    }
    assert parts == {STAGE_ONE}


def test_a_student_with_its_own_tokens_changes_its_own_hours_alone() -> None:
    lengths = lengths_of(unlabelled=10, test=20)
    config, shorter = config_of(), config_of("distill.prompts.max_tokens=50")
    before, after = ({(g.part, g.name, g.phase): g for g in job_groups(c, lengths)} for c in (config, shorter))
    assert before.keys() == after.keys()
    students = {key for key in before if key[1] == "student"}
    assert {key for key in before if before[key] != after[key]} == students
    for key in students:
        assert after[key].trained == pytest.approx(before[key].trained / 2)
        assert after[key].scored == pytest.approx(before[key].scored / 2)
