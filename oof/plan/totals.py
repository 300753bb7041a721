"""Totals of a configuration on cards of one kind: hours of each stage, wall hours and money.

The jobs of a configuration are counted, not run: fold jobs, pretraining, fold students with their teacher jobs, the
final student, scoring of test battles. Wall hours follow from the order in which a run starts its jobs: a card that is
free takes the next job, and a phase begins when the phase before it has ended, so ten equal jobs on eight cards take as
long as two. Stage two needs no GPU and minutes, and is not counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from oof.config import Config
from oof.jobs.first_weights import first_weights
from oof.plan.card_settings import CardSetting
from oof.plan.lengths import BattleLengths, Lengths
from oof.plan.members import STUDENT, Plan

STAGE_ONE, FOLD_STUDENTS, FINAL_STUDENT, TEST = "stage one", "fold students", "final student", "test battles"


@dataclass(frozen=True)
class JobGroup:
    """Equal jobs of one model.

    Attributes:
        part: of the totals.
        phase: jobs of a phase begin when the phase before has ended.
        name: of the member, or "student".
        count: jobs.
        trained, scored: tokens of one job, without padding.
        processes: cards of one job.
    """

    part: str
    phase: int
    name: str
    count: int
    trained: float
    scored: float
    processes: int = 1


@dataclass(frozen=True)
class Totals:
    """Hours and money of a configuration on cards of one kind.

    Attributes:
        card, n_cards: kind and number.
        n_jobs: trainings and scorings that are counted, by part.
        stage_one_hours, fold_student_hours, final_student_hours: of one card, pretraining and teacher jobs included.
        test_hours: of one card, for scoring the test battles; None where no test file is set.
        wall_hours: from the start to the end on ``n_cards`` cards.
        money: price of ``n_cards`` cards for the wall hours, idle ones included; None without a price.
    """

    card: str
    n_cards: int
    n_jobs: dict[str, int]
    stage_one_hours: float
    fold_student_hours: float
    final_student_hours: float
    test_hours: float | None
    wall_hours: float
    money: float | None

    @property
    def card_hours(self) -> float:
        """Hours in which a card computes."""
        return self.stage_one_hours + self.fold_student_hours + self.final_student_hours + (self.test_hours or 0.0)


def plan_totals(
    plan: Plan, card: str, n_cards: int | None = None, price: float | None = None, as_configured: bool = True
) -> Totals | None:
    """Return the totals of a configuration on cards of one kind; None where a model does not fit on the card.

    Args:
        plan: of the configuration, on this card among others.
        card: a name of :data:`oof.model.cards.CARDS`.
        n_cards: cards; None = ``jobs.workers`` x ``jobs.nproc``.
        price: of one card for an hour.
        as_configured: with the configuration's settings; else with the fastest ones that fit.
    """
    config = plan.config
    settings: dict[str, CardSetting] = {}
    for member in plan.members:
        setting = (member.configured if as_configured else member.fastest)[card]
        if setting is None:
            return None
        settings[member.name] = setting
    n = n_cards or config.jobs.workers * config.jobs.nproc
    hours: dict[str, float] = {}
    n_jobs: dict[str, int] = {}
    by_phase: dict[int, list[tuple[int, float]]] = {}
    for group in job_groups(config, plan.lengths):
        setting = settings[group.name]
        each = (group.trained * setting.train_seconds + group.scored * setting.score_seconds) / 3600
        hours[group.part] = hours.get(group.part, 0.0) + each * group.count
        n_jobs[group.part] = n_jobs.get(group.part, 0) + group.count
        by_phase.setdefault(group.phase, []).extend([(group.processes, each)] * group.count)
    wall = sum(_phase_hours(jobs, n) for jobs in by_phase.values())
    return Totals(
        card,
        n,
        n_jobs,
        hours.get(STAGE_ONE, 0.0),
        hours.get(FOLD_STUDENTS, 0.0),
        hours.get(FINAL_STUDENT, 0.0),
        hours.get(TEST),
        wall,
        None if price is None else price * n * wall,
    )


def _phase_hours(jobs: Sequence[tuple[int, float]], n_cards: int) -> float:
    """Return the hours until the last of some jobs ends; each is (cards it shares, hours of one card)."""
    processes = jobs[0][0]
    free_at = [0.0] * max(1, n_cards // processes)
    for _, hours in jobs:
        heapq.heappush(free_at, heapq.heappop(free_at) + hours / processes)
    return max(free_at)


def job_groups(config: Config, lengths: BattleLengths) -> Iterator[JobGroup]:
    """Yield the jobs that all stages of a configuration run.

    Stage three follows :mod:`ensemble.distillation.plan` and its teacher jobs: a student per fold, trained without that
    fold, and the final student (none with ``distill.final: fold_average``). ``distill.teacher: nested`` trains each
    teaching member without every pair of folds; ``fold_matched`` scores each fold job's own training battles. Every
    fold job of the teachers scores the unlabelled battles, and the extra ones of its fold.
    """
    yield from _stage_one(config, lengths)
    if config.distill.student.checkpoint:
        yield from _teacher_jobs(config, lengths)
        yield from _students(config.for_student(), lengths)


def _stage_one(config: Config, lengths: BattleLengths) -> Iterator[JobGroup]:
    k, nproc = config.folds.k, config.jobs.nproc
    left = (k - 1) / k
    for name, member in config.members.items():
        both = 2 if member.train.swap == "paired" else 1
        pairs = both * config.pretrain.epochs * _training_tokens(config, lengths.pairs)
        if pairs:
            yield JobGroup(STAGE_ONE, 0, name, 1, pairs, 0.0, nproc)
        trained = both * member.train.epochs * left * _training_tokens(config, lengths.labelled)
        yield JobGroup(STAGE_ONE, 1, name, k, trained, _scoring_tokens(config, lengths.train) / k, nproc)
        if lengths.test is not None:
            yield JobGroup(TEST, 2, name, k, 0.0, _scoring_tokens(config, lengths.test))


def _teacher_jobs(config: Config, lengths: BattleLengths) -> Iterator[JobGroup]:
    distill, k = config.distill, config.folds.k
    teachers = [distill.teachers] if distill.teachers in config.members else list(config.members)
    scored = _scoring_tokens(config, _unlabelled(config, lengths))
    if distill.teacher == "fold_matched":
        scored += _scoring_tokens(config, lengths.train) * (k - 1) / k + _scoring_tokens(config, lengths.extra)
    else:
        scored += _scoring_tokens(config, lengths.extra) / k
    for name in teachers:
        if scored:
            yield JobGroup(FOLD_STUDENTS, 4, name, k, 0.0, scored)
        if distill.teacher == "nested":
            recipe = config.members[name].train
            both = 2 if recipe.swap == "paired" else 1
            left = _training_tokens(config, lengths.labelled) * (k - 2) / k
            held_out = _scoring_tokens(config, lengths.labelled) * 2 / k
            yield JobGroup(FOLD_STUDENTS, 4, name, comb(k, 2), both * recipe.epochs * left, held_out)


def _students(config: Config, lengths: BattleLengths) -> Iterator[JobGroup]:
    recipe, k = config.distill.student.train, config.folds.k
    both = 2 if recipe.swap == "paired" else 1
    pairs = both * config.pretrain.epochs * _training_tokens(config, lengths.pairs)
    if pairs and first_weights(config) == "base":
        yield JobGroup(FOLD_STUDENTS, 3, STUDENT, 1, pairs, 0.0)
    passes = both * recipe.epochs * config.distill.trainings
    labelled = passes * _training_tokens(config, lengths.labelled)
    unlabelled = passes * config.distill.pseudo_share * _training_tokens(config, _unlabelled(config, lengths))
    held_out = _scoring_tokens(config, lengths.train) / k
    yield JobGroup(FOLD_STUDENTS, 5, STUDENT, k, labelled * (k - 1) / k + unlabelled, held_out)
    if config.distill.final == "all":
        yield JobGroup(FINAL_STUDENT, 5, STUDENT, 1, labelled + unlabelled, 0.0)
    if lengths.test is not None and config.predict.model == STUDENT:
        yield JobGroup(TEST, 6, STUDENT, 1, 0.0, _scoring_tokens(config, lengths.test))


def _unlabelled(config: Config, lengths: BattleLengths) -> Lengths:
    """Return the lengths of the unlabelled battles that the students train on."""
    return lengths.unlabelled if config.distill.losses.soft and config.distill.pseudo_weight else np.empty(0)


def _training_tokens(config: Config, lengths: Lengths) -> float:
    """Return the tokens of one order of some battles, cut as in training."""
    return float(np.minimum(lengths, config.prompts.max_tokens).sum())


def _scoring_tokens(config: Config, lengths: Lengths) -> float:
    """Return the tokens of both orders of some battles, cut as in scoring."""
    return 2 * float(np.minimum(lengths, config.prompts.score_max_tokens or config.prompts.max_tokens).sum())
