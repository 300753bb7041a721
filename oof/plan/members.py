"""Plan of each member and the student: cost of a pass, work of a fold job, and the settings for each card."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from oof.config import Config, Member
from oof.encoding.batches import padded
from oof.jobs.first_weights import first_weights
from oof.model.cards import CARDS
from oof.model.checkpoint_shapes import shared_config
from oof.model.cost_model import Cost, trace
from oof.model.predicted_time import Amounts, Row
from oof.plan.card_settings import CardPlanner, CardSetting
from oof.plan.lengths import BattleLengths, battle_lengths

STUDENT = "student"


@dataclass(frozen=True)
class MemberPlan:
    """The plan of one member.

    Attributes:
        name, checkpoint: of the member.
        cost: of one training pass as configured (``batch`` sequences of ``tokens`` tokens).
        batch, tokens: the longest sequence, and how many of that length the token budget holds.
        epoch_tokens: real tokens of one epoch of one fold job, in both orders with ``swap: paired``.
        pretrain_tokens: real tokens of the whole training before the folds; 0 without one.
        train_flops, score_flops: of one fold job. pretrain_flops: once per member.
        fastest, configured: per card the setting; None where none fits.
        operations: of the fold jobs, on :attr:`operations_card` as configured: (class, dtype) -> FLOPs, bytes and
            seconds of training and of scoring. Empty where the member fits on no card.
        operations_card: the first planned card on which the configured setting fits.
        disk_bytes: base checkpoint, adapters and checkpoints of one job, and the states that ``frozen: stored`` keeps.
    """

    name: str
    checkpoint: str
    cost: Cost
    batch: int
    tokens: int
    epoch_tokens: float
    train_flops: float
    score_flops: float
    fastest: dict[str, CardSetting | None]
    configured: dict[str, CardSetting | None]
    disk_bytes: float
    pretrain_tokens: float = 0.0
    pretrain_flops: float = 0.0
    operations: dict[Row, tuple[Amounts, Amounts]] = field(default_factory=dict)
    operations_card: str = ""


@dataclass(frozen=True)
class Plan:
    """The plan of a configuration.

    Attributes:
        config: of the run.
        lengths: of its battles.
        cards: names of the planned cards.
        members: every member's plan, the student's last.
    """

    config: Config
    lengths: BattleLengths
    cards: Sequence[str]
    members: list[MemberPlan]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of battles that a member reads, after truncation, without padding.

    Attributes:
        per_epoch: of all labelled battles in one epoch, in both orders with ``swap: paired``.
        scored: of all train battles in scoring, both orders.
        pretrain: of the whole training before the folds.
        longest: of a training sequence, padded to a multiple of 8.
    """

    per_epoch: float
    scored: float
    pretrain: float
    longest: int


def make_plan(config: Config, cards: Sequence[str] = tuple(CARDS), workers: int = 1) -> Plan:
    """Return the plan of a configuration on each of some cards (names of :data:`CARDS`).

    Args:
        config: members, student and data are read.
        cards: to plan on.
        workers: processes; each base is planned in one of them, because its members share traces.

    Raises:
        UserError: a checkpoint's configuration, or the data, cannot be read.
    """
    lengths, student = battle_lengths(config), config.distill.student
    members = config.members | ({STUDENT: student} if student.checkpoint else {})
    plan_one = partial(_plan_members, config, lengths=lengths, cards=cards)
    bases: dict[tuple[str, str], dict[str, Member]] = {}
    for name, member in members.items():
        bases.setdefault((member.checkpoint, member.revision), {})[name] = member
    if min(workers, len(bases)) > 1:
        # Forked, because to import the libraries again takes as long as to plan. No thread of them runs yet.
        with ProcessPoolExecutor(min(workers, len(bases)), multiprocessing.get_context("fork")) as pool:
            parts = list(pool.map(plan_one, bases.values()))
    else:
        parts = [plan_one(of_base) for of_base in bases.values()]
    plans = {plan.name: plan for part in parts for plan in part}
    return Plan(config, lengths, cards, [plans[name] for name in members])


def _plan_members(
    config: Config, members: Mapping[str, Member], lengths: BattleLengths, cards: Sequence[str]
) -> list[MemberPlan]:
    return [_plan_member(config, name, member, lengths, cards) for name, member in members.items()]


def token_counts(config: Config, member: Member, lengths: BattleLengths) -> TokenCounts:
    """Return the tokens that a member reads."""
    prompts = config.prompts
    trained, pairs = (np.minimum(x, prompts.max_tokens) for x in (lengths.labelled, lengths.pairs))
    scored = np.minimum(lengths.train, prompts.score_max_tokens or prompts.max_tokens)
    orders = 2 if member.train.swap == "paired" else 1
    longest = int(padded(np.array([trained.max(), pairs.max(initial=0)])).max())
    pretrain = float(pairs.sum() * orders * config.pretrain.epochs)
    return TokenCounts(float(trained.sum() * orders), float(scored.sum() * 2), pretrain, longest)


def _plan_member(config: Config, name: str, member: Member, lengths: BattleLengths, cards: Sequence[str]) -> MemberPlan:
    config = config.for_student() if name == STUDENT else config
    counts = token_counts(config, member, lengths)
    if name == STUDENT and first_weights(config) != "base":  # it starts from a member's training, after its pretraining
        counts = replace(counts, pretrain=0.0)
    planner = CardPlanner(member, config.prompts, lengths.train, counts.longest)
    batch = max(1, member.train.tokens_per_batch // counts.longest)
    cost = trace(member, batch, counts.longest, True, member.train.activation_checkpointing == "on", "sdpa")
    score = trace(member, batch, counts.longest, False, False, "sdpa")
    trained_share = (config.folds.k - 1) / config.folds.k if name != STUDENT else 1.0
    epoch_tokens = counts.per_epoch * trained_share
    trainings = config.distill.trainings if name == STUDENT else 1
    train_tokens, score_tokens = epoch_tokens * member.train.epochs * trainings, counts.scored * (1 - trained_share)

    def with_hours(setting: CardSetting | None) -> CardSetting | None:
        if setting is None:
            return None

        def hours(rates: tuple[float, float]) -> float:
            return (train_tokens * rates[0] + score_tokens * rates[1]) / 3600

        return replace(
            setting,
            hours=hours((setting.train_seconds, setting.score_seconds)),
            pretrain_hours=counts.pretrain * setting.train_seconds / 3600,
            others={name: hours(rates) for name, rates in planner.others(setting).items()},
        )

    configured = {card: with_hours(planner.configured(card)) for card in cards}
    shown = next((setting for setting in configured.values() if setting is not None), None)
    width = shared_config(member.checkpoint, member.revision).get_text_config().hidden_size
    stored = 4.0 * width * counts.scored if member.frozen == "stored" else 0.0
    # In float32: adapters of K + 1 trainings (and of pretraining), two checkpoints of weights and two moments each.
    adapters = cost.trainable * 4.0 * ((config.folds.k + 1) * trainings + 2 * 3 + (counts.pretrain > 0))
    return MemberPlan(
        name,
        member.checkpoint,
        cost,
        batch,
        counts.longest,
        epoch_tokens,
        train_tokens * cost.flops / (batch * counts.longest),
        score_tokens * score.flops / (batch * counts.longest),
        {card: with_hours(planner.fastest(card)) for card in cards},
        configured,
        cost.parameters * 2.0 + adapters + stored,
        counts.pretrain,
        counts.pretrain * cost.flops / (batch * counts.longest),
        planner.operations(shown, train_tokens, score_tokens) if shown else {},
        shown.card if shown else "",
    )
