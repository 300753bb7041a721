"""Plan of each member and the student: cost of a pass, work of a fold job, and the settings for each card.

Two settings are planned per card. ``configured``: as the configuration says; tokens per batch are halved where a batch
does not fit, as training does by itself. ``fastest``: the fastest of the base in 16 and (unless the member sets one) in
4 bits, each without and with activation checkpointing and with as many tokens per batch as fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from oof.config import Config, Member
from oof.model.attention import configured_attention
from oof.model.cost_model import USABLE_MEMORY, Cost, base_config, frozen_bytes, trace, traced_attention
from oof.model.precision import resolve_dtype
from oof.plan.lengths import BattleLengths, battle_lengths

STUDENT = "student"
UTILISATION = 0.35  # of the peak rate; LoRA of 7-9B models in bf16 reaches 0.3 to 0.45
SLOWDOWN = {"none": 1.0, "int8": 1.6, "nf4": 1.3}  # of dequantising the base in every pass, estimated

# memory in bytes; dense 16-bit peak in FLOP/s; whether the card computes in bf16. Source: NVIDIA's data sheets.
CARDS: dict[str, tuple[float, float, bool]] = {
    "T4": (16e9, 65e12, False),
    "L4": (24e9, 121e12, True),
    "A10G": (24e9, 70e12, True),
    "A100-80": (80e9, 312e12, True),
    "H100": (80e9, 989e12, True),
}


@dataclass(frozen=True)
class CardSetting:
    """One way to fit a member on a card.

    Attributes:
        card, quantise, checkpointing, tokens_per_batch: the settings.
        gigabytes: planned memory.
        train_seconds, score_seconds: per token of the battles, without padding.
        hours: of one fold job.
        pretrain_hours: of the training before the folds.
    """

    card: str
    quantise: str
    checkpointing: bool
    tokens_per_batch: int
    gigabytes: float
    train_seconds: float
    score_seconds: float
    hours: float = 0.0
    pretrain_hours: float = 0.0


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


def make_plan(config: Config, cards: Sequence[str] = tuple(CARDS)) -> Plan:
    """Return the plan of a configuration on each of some cards (names of :data:`CARDS`).

    Raises:
        UserError: a checkpoint's configuration, or the data, cannot be read.
    """
    lengths = battle_lengths(config)
    members = planned_members(config).items()
    return Plan(config, lengths, cards, [_plan_member(config, name, each, lengths, cards) for name, each in members])


def planned_members(config: Config) -> dict[str, Member]:
    """Return the members by name, and the student, if there is one."""
    student = config.distill.student
    return config.members | ({STUDENT: student} if student.checkpoint else {})


def token_counts(config: Config, member: Member, lengths: BattleLengths) -> TokenCounts:
    """Return the tokens that a member reads."""
    prompts = config.prompts
    trained, pairs = (np.minimum(x, prompts.max_tokens) for x in (lengths.labelled, lengths.pairs))
    scored = np.minimum(lengths.train, prompts.score_max_tokens or prompts.max_tokens)
    orders = 2 if member.train.swap == "paired" else 1
    longest = int(-(-int(max(trained.max(), pairs.max(initial=0))) // 8) * 8)
    pretrain = float(pairs.sum() * orders * config.pretrain.epochs)
    return TokenCounts(float(trained.sum() * orders), float(scored.sum() * 2), pretrain, longest)


def _plan_member(config: Config, name: str, member: Member, lengths: BattleLengths, cards: Sequence[str]) -> MemberPlan:
    counts = token_counts(config, member, lengths)
    tokens, train = counts.longest, member.train
    batch = max(1, train.tokens_per_batch // tokens)
    attention = _attention_of(member)
    cost = trace(member, batch, tokens, True, train.activation_checkpointing == "on", attention)
    score = trace(member, batch, tokens, False, False, attention)
    trained_share = (config.folds.k - 1) / config.folds.k if name != STUDENT else 1.0
    epoch_tokens = counts.per_epoch * trained_share
    train_tokens, score_tokens = epoch_tokens * train.epochs, counts.scored * (1 - trained_share)

    def with_hours(setting: CardSetting | None) -> CardSetting | None:
        if setting is None:
            return None
        hours = (train_tokens * setting.train_seconds + score_tokens * setting.score_seconds) / 3600
        return replace(setting, hours=hours, pretrain_hours=counts.pretrain * setting.train_seconds / 3600)

    fastest, configured = {}, {}
    for card in cards:
        options = [_fitting(card, variant, tokens, attention, each) for variant, each in _variants(member)]
        fitting = [option for option in options if option is not None]
        fastest[card] = with_hours(min(fitting, key=lambda option: option.train_seconds, default=None))
        configured[card] = with_hours(_as_configured(card, member, tokens, attention))
    width = base_config(member.checkpoint, member.revision).get_text_config().hidden_size
    stored = 4.0 * width * counts.scored if member.frozen == "stored" else 0.0
    # In float32: adapters of K + 1 trainings (and of pretraining), two checkpoints of weights and two moments each.
    adapters = cost.trainable * 4.0 * (config.folds.k + 1 + 2 * 3 + (counts.pretrain > 0))
    return MemberPlan(
        name,
        member.checkpoint,
        cost,
        batch,
        tokens,
        epoch_tokens,
        train_tokens * cost.flops / (batch * tokens),
        score_tokens * score.flops / (batch * tokens),
        fastest,
        configured,
        cost.parameters * 2.0 + adapters + stored,
        counts.pretrain,
        counts.pretrain * cost.flops / (batch * tokens),
    )


def _variants(member: Member) -> Iterator[tuple[Member, bool]]:
    """Yield the member in each quantisation that may be tried, without and with activation checkpointing."""
    for quantise in [member.quantise] if member.quantise != "none" else ["none", "nf4"]:
        for checkpointing in (False, True):
            yield replace(member, quantise=quantise), checkpointing


def _attention_of(member: Member) -> str:
    """Return which of the two traced kinds of attention the member would run on a GPU ("eager" or "sdpa")."""
    config = base_config(member.checkpoint, member.revision)
    attention = configured_attention(config, member.attn, member.attn_softcap)
    return traced_attention(attention, config, resolve_dtype(member.dtype))


def _as_configured(card: str, member: Member, tokens: int, attention: str) -> CardSetting | None:
    """Return the member's own setting on a card, with the longest batch that fits; None if none does."""
    recompute = {"off": (False,), "on": (True,), "auto": (False, True)}[member.train.activation_checkpointing]
    full = [_fitting(card, member, tokens, attention, each, halvings=False) for each in recompute]
    fitting = [setting for setting in full if setting is not None]
    return fitting[0] if fitting else _fitting(card, member, tokens, attention, recompute[-1])


def _fitting(
    card: str, member: Member, tokens: int, attention: str, checkpointing: bool, halvings: bool = True
) -> CardSetting | None:
    """Return a setting with as many tokens per batch, halved from the member's, as fit; None if none do."""
    memory, peak, bf16 = CARDS[card]
    # A card without bf16 computes the base in float32, whose rate is an eighth of the 16-bit one.
    variant = replace(member, dtype=member.dtype if bf16 or member.quantise != "none" else "float32")
    if frozen_bytes(variant) >= memory:
        return None
    budget = max(tokens, member.train.tokens_per_batch)
    while budget >= tokens:
        batch = max(1, budget // tokens)
        cost = trace(variant, batch, tokens, True, checkpointing, attention)
        if cost.peak_bytes <= memory * USABLE_MEMORY:
            rate = peak * UTILISATION / SLOWDOWN[member.quantise] / (1.0 if bf16 else 8.0)
            train, score = cost.flops / (batch * tokens) / rate, 2.0 * cost.parameters / rate
            return CardSetting(card, member.quantise, checkpointing, budget, cost.peak_bytes / 1e9, train, score)
        budget = budget // 2 if budget > tokens and halvings else 0
    return None
