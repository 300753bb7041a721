"""Resource plan of a configuration (``make plan``): memory, FLOPs, hours and disk per member and card.

Parameters, memory and FLOPs come from :mod:`oof.model.cost_model` (no weights are downloaded). Token counts come from a
sample of the real battles, or from the arena's lengths where no data are set. Hours assume a share of a card's peak
rate that such training reaches in practice, and are the least certain figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oof.config import Config, Member
from oof.jobs.dataset import read_sample, text_characters
from oof.jobs.pretrain import read_pairs
from oof.model.attention import configured_attention
from oof.model.cost_model import USABLE_MEMORY, Cost, base_config, frozen_bytes, trace, traced_attention
from oof.model.precision import resolve_dtype

# Tokens of 700 real arena battles under Gemma2's tokenizer, all three texts: log-normal with this median and sigma.
ARENA_MEDIAN, ARENA_SIGMA, ARENA_BATTLES = 563.0, 0.78, 57_477
CHARACTERS_PER_TOKEN = 4.0  # of English prose and code under a vocabulary of 128k to 256k
TEMPLATE_TOKENS = 30
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
        hours: of one fold job.
        pretrain_hours: of the training before the folds.
    """

    card: str
    quantise: str
    checkpointing: bool
    tokens_per_batch: int
    gigabytes: float
    hours: float
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
        settings: per card the fastest one that fits; None where none does.
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
    settings: dict[str, CardSetting | None]
    disk_bytes: float
    pretrain_tokens: float = 0.0
    pretrain_flops: float = 0.0


def make_plan(config: Config) -> list[MemberPlan]:
    """Return every member's plan, the student's last.

    Raises:
        UserError: a checkpoint's configuration, or the data, cannot be read.
    """
    lengths, pairs = battle_tokens(config), pair_tokens(config)
    members = dict(config.members)
    if config.distill.student.checkpoint:
        members["student"] = config.distill.student
    return [_plan_member(config, name, member, lengths, pairs) for name, member in members.items()]


def battle_tokens(config: Config, sample: int = 2000) -> NDArray[np.float64]:
    """Return the (n,) estimated tokens of every battle: characters of a sample, or the arena's distribution."""
    n, characters = read_sample(config, sample)
    if n == 0:
        n, quantiles = ARENA_BATTLES, (np.arange(sample) + 0.5) / sample
        return np.resize(np.exp(np.log(ARENA_MEDIAN) + ARENA_SIGMA * _normal_quantile(quantiles)), n)
    return np.resize(characters / CHARACTERS_PER_TOKEN, n)


def pair_tokens(config: Config) -> NDArray[np.float64]:
    """Return the (n,) estimated tokens of every pair of ``pretrain.data`` before decontamination; else (0,)."""
    if not config.pretrain.data:
        return np.empty(0)
    return text_characters(read_pairs(config).table) / CHARACTERS_PER_TOKEN


def _normal_quantile(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import norm

    return np.asarray(norm.ppf(shares))


def _plan_member(
    config: Config, name: str, member: Member, lengths: NDArray[np.float64], pairs: NDArray[np.float64]
) -> MemberPlan:
    prompts, train = config.prompts, member.train
    trained = np.minimum(lengths + TEMPLATE_TOKENS, prompts.max_tokens)
    scored = np.minimum(lengths + TEMPLATE_TOKENS, prompts.score_max_tokens or prompts.max_tokens)
    paired = np.minimum(pairs + TEMPLATE_TOKENS, prompts.max_tokens)
    tokens = int(-(-int(max(trained.max(), paired.max(initial=0))) // 8) * 8)
    batch = max(1, train.tokens_per_batch // tokens)
    attention = _attention_of(member)
    checkpointing = train.activation_checkpointing == "on"
    cost = trace(member, batch, tokens, True, checkpointing, attention)
    score = trace(member, batch, tokens, False, False, attention)
    trained_share = (config.folds.k - 1) / config.folds.k if name != "student" else 1.0
    orders = 2 if train.swap == "paired" else 1
    epoch_tokens = float(trained.sum() * trained_share * orders)
    train_tokens = epoch_tokens * train.epochs
    pretrain_tokens = float(paired.sum() * orders * config.pretrain.epochs)
    score_tokens = float(scored.sum()) * 2 * (1 - trained_share)
    settings = {
        card: _fastest(card, member, tokens, attention, train_tokens, score_tokens, pretrain_tokens) for card in CARDS
    }
    width = base_config(member.checkpoint).get_text_config().hidden_size
    stored = 4.0 * width * 2 * float(scored.sum()) if member.frozen == "stored" else 0.0
    # In float32: adapters of K + 1 trainings (and of pretraining), two checkpoints of weights and two moments each.
    adapters = cost.trainable * 4.0 * (config.folds.k + 1 + 2 * 3 + (pretrain_tokens > 0))
    return MemberPlan(
        name,
        member.checkpoint,
        cost,
        batch,
        tokens,
        epoch_tokens,
        train_tokens * cost.flops / (batch * tokens),
        score_tokens * score.flops / (batch * tokens),
        settings,
        cost.parameters * 2.0 + adapters + stored,
        pretrain_tokens,
        pretrain_tokens * cost.flops / (batch * tokens),
    )


def _attention_of(member: Member) -> str:
    """Return which of the two traced kinds of attention the member would run on a GPU ("eager" or "sdpa")."""
    config = base_config(member.checkpoint)
    attention = configured_attention(config, member.attn, member.attn_softcap)
    return traced_attention(attention, config, resolve_dtype(member.dtype))


def _fastest(
    card: str,
    member: Member,
    tokens: int,
    attention: str,
    train_tokens: float,
    score_tokens: float,
    pretrain_tokens: float,
) -> CardSetting | None:
    """Return the fastest setting that fits a card, or None.

    Tried are the base in 16 and (unless the member sets one) in 4 bits, each without and with activation checkpointing
    and with as many tokens per batch, halved from the member's, as fit.
    """
    memory, peak, bf16 = CARDS[card]
    quantisations = [member.quantise] if member.quantise != "none" else ["none", "nf4"]
    options: list[CardSetting] = []
    for quantise in quantisations:
        # A card without bf16 computes the base in float32, whose rate is an eighth of the 16-bit one.
        variant = replace(member, quantise=quantise, dtype=member.dtype if bf16 or quantise != "none" else "float32")
        rate = peak * UTILISATION / SLOWDOWN[quantise] / (1.0 if bf16 else 8.0)
        for checkpointing in (False, True) if frozen_bytes(variant) < memory else ():
            budget = max(tokens, member.train.tokens_per_batch)
            while budget >= tokens:
                cost = trace(variant, max(1, budget // tokens), tokens, True, checkpointing, attention)
                if cost.peak_bytes <= memory * USABLE_MEMORY:
                    per_token = cost.flops / (max(1, budget // tokens) * tokens)
                    hours = (train_tokens * per_token + score_tokens * 2.0 * cost.parameters) / rate / 3600
                    before = pretrain_tokens * per_token / rate / 3600
                    gigabytes = cost.peak_bytes / 1e9
                    options.append(CardSetting(card, quantise, checkpointing, budget, gigabytes, hours, before))
                    break
                budget = budget // 2 if budget > tokens else 0
    return min(options, key=lambda option: option.hours, default=None)


def format_plan(plans: list[MemberPlan]) -> str:
    """Return the plan as text to print."""
    lines: list[str] = []
    for plan in plans:
        cost = plan.cost
        lines += [
            f"{plan.name} ({plan.checkpoint})",
            f"  parameters {cost.parameters / 1e9:.3f} G, trainable {cost.trainable / 1e6:.2f} M",
            f"  one training pass of {plan.batch} x {plan.tokens} tokens: {cost.flops / 1e12:.2f} TFLOP, "
            f"{cost.peak_bytes / 1e9:.2f} GB (weights {cost.weight_bytes / 1e9:.2f} GB)",
            f"  one fold job: {plan.epoch_tokens / 1e6:.2f} M tokens per epoch, training "
            f"{plan.train_flops / 1e15:.2f} PFLOP, scoring {plan.score_flops / 1e15:.2f} PFLOP; "
            f"disk {plan.disk_bytes / 1e9:.2f} GB",
        ]
        if plan.pretrain_tokens:
            lines.append(
                f"  pretraining, once before the folds: {plan.pretrain_tokens / 1e6:.2f} M tokens, "
                f"{plan.pretrain_flops / 1e15:.2f} PFLOP (all of pretrain.data, before decontamination)"
            )
        lines += [f"    {_describe(card, setting)}" for card, setting in plan.settings.items()]
    lines.append(
        f"Hours are per fold job, at {UTILISATION:.0%} of a card's peak rate; at most {USABLE_MEMORY:.0%} of its "
        "memory is planned."
    )
    return "\n".join(lines)


def _describe(card: str, setting: CardSetting | None) -> str:
    if setting is None:
        return f"{card:8} does not fit, even in 4 bits and with activation checkpointing"
    settings = [f"{setting.tokens_per_batch} tokens per batch"]
    settings += [f"quantise={setting.quantise}"] if setting.quantise != "none" else []
    settings += ["activation checkpointing"] if setting.checkpointing else []
    settings += [f"{setting.pretrain_hours:.2f} h of pretraining, once"] if setting.pretrain_hours else []
    return f"{card:8} {setting.hours:8.2f} h {setting.gigabytes:7.1f} GB  {', '.join(settings)}"
