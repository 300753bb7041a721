"""Settings with which one member fits on a card, and their predicted speed.

Two settings are planned per card. ``configured``: as the configuration says; tokens per batch are halved where a batch
does not fit, as training does by itself. ``fastest``: the fastest of the base in 16 and (unless the member sets one) in
4 bits, each without and with activation checkpointing and with as many tokens per batch as fit. Both run the attention
that ``attn`` takes on the card.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from oof.config import Member, Prompts
from oof.model.attention_choice import RECOMPUTE, faster_attention
from oof.model.cards import CARDS
from oof.model.checkpoint_shapes import shared_config
from oof.model.cost_model import USABLE_MEMORY, frozen_bytes, trace, traced_attention
from oof.model.precision import DTYPES
from oof.model.predicted_time import (
    Amounts,
    Batches,
    Prediction,
    Row,
    attentions_on,
    scoring_batches,
    seconds,
    training_batches,
)
from oof.plan.lengths import Lengths

SAMPLE = 2000  # battles whose batches are planned


@dataclass(frozen=True)
class CardSetting:
    """One way to fit a member on a card.

    Attributes:
        card, attention, dtype, quantise, checkpointing, tokens_per_batch: the settings; ``dtype`` of the products.
        gigabytes: planned memory.
        train_seconds, score_seconds: per token of the battles, without padding.
        hours: of one fold job.
        pretrain_hours: of the training before the folds.
        others: hours of one fold job with the other attentions that run on the card, where their memory suffices.
    """

    card: str
    attention: str
    dtype: str
    quantise: str
    checkpointing: bool
    tokens_per_batch: int
    gigabytes: float
    train_seconds: float
    score_seconds: float
    hours: float = 0.0
    pretrain_hours: float = 0.0
    others: dict[str, float] = field(default_factory=dict)


def sampled_battles(prompts: Prompts, lengths: Lengths) -> list[NDArray[np.int64]]:
    """Return the tokens, cut as in training and as in scoring, of a sample that is evenly spread over all lengths."""
    ordered = np.sort(lengths)
    chosen = ordered[np.linspace(0, len(ordered) - 1, min(SAMPLE, len(ordered))).round().astype(int)]
    limits = prompts.max_tokens, prompts.score_max_tokens or prompts.max_tokens
    return [np.maximum(1, np.minimum(chosen, limit)).astype(np.int64) for limit in limits]


class CardPlanner:
    """Finds the settings of one member on cards."""

    def __init__(self, member: Member, prompts: Prompts, lengths: Lengths, longest: int) -> None:
        """``longest``: padded tokens of the longest training sequence, which decides the memory."""
        self.member, self.longest = member, longest
        self.trained, scored = sampled_battles(prompts, lengths)
        self._batches: dict[int, Batches] = {}
        self._scoring = scoring_batches(scored, member)

    def training_batches(self, budget: int) -> Batches:
        """Return the micro-batches of one epoch over the sampled battles."""
        if budget not in self._batches:
            self._batches[budget] = training_batches(self.trained, self.member.train, budget)
        return self._batches[budget]

    def fastest(self, card: str) -> CardSetting | None:
        """Return the setting with the shortest training, or None."""
        kinds = [self.member.quantise] if self.member.quantise != "none" else ["none", "nf4"]
        options: list[CardSetting] = []
        for variant in (replace(self.member, quantise=kind) for kind in kinds):
            for checkpointing in (False, True):
                found = self.fitting(card, variant, checkpointing)
                options += [found] if found else []
                if found and found.tokens_per_batch >= variant.train.tokens_per_batch:
                    # Recomputation and dequantisation only cost time where the whole batch fits without them.
                    return min(options, key=lambda option: option.train_seconds)
        return min(options, key=lambda option: option.train_seconds, default=None)

    def configured(self, card: str) -> CardSetting | None:
        """Return the member's own setting, with the longest batch that fits; None if none does."""
        recompute = RECOMPUTE[self.member.train.activation_checkpointing]
        for checkpointing in recompute:
            found = self.fitting(card, self.member, checkpointing, halve=checkpointing == recompute[-1])
            if found:
                return found
        return None

    def fitting(self, card: str, member: Member, checkpointing: bool, halve: bool = True) -> CardSetting | None:
        """Return a setting with as many tokens per batch, halved from the member's, as fit; None if none do."""
        device, attentions = CARDS[card], attentions_on(CARDS[card], member)
        if not attentions or frozen_bytes(member) >= device.memory:
            return None
        prediction = Prediction(member, device, attentions[0])
        dtype, config = device.dtype(member.dtype), shared_config(member.checkpoint, member.revision)
        kind = traced_attention(attentions[0], config, DTYPES[dtype])
        budget = max(self.longest, member.train.tokens_per_batch)
        while budget >= self.longest:
            sequences = max(1, budget // self.longest)
            cost = trace(member, sequences, self.longest, True, checkpointing, kind)
            if cost.peak_bytes <= device.memory * USABLE_MEMORY:
                usable, batches = device.memory * USABLE_MEMORY, self.training_batches(budget)
                chosen = faster_attention(prediction, batches, (sequences, self.longest), checkpointing, usable)
                if chosen is not prediction:
                    cost = trace(member, sequences, self.longest, True, checkpointing, chosen.attention)
                settings = chosen.attention, dtype, member.quantise, checkpointing, budget
                return CardSetting(card, *settings, cost.peak_bytes / 1e9, *self.rates(chosen, checkpointing, budget))
            budget = budget // 2 if budget > self.longest and halve else 0
        return None

    def rates(self, prediction: Prediction, checkpointing: bool, budget: int) -> tuple[float, float]:
        """Return the seconds per real token of training and of scoring."""
        batches = self.training_batches(budget)
        train, score = prediction.training(batches, checkpointing), prediction.scoring(self._scoring)
        return seconds(train) / batches.tokens, seconds(score) / self._scoring.tokens

    def operations(self, setting: CardSetting, trained: float, scored: float) -> dict[Row, tuple[Amounts, Amounts]]:
        """Return FLOPs, bytes and seconds by class and dtype, of so many trained and scored tokens."""
        member = replace(self.member, quantise=setting.quantise)
        prediction = Prediction(member, CARDS[setting.card], setting.attention)
        batches = self.training_batches(setting.tokens_per_batch)
        train, score = prediction.training(batches, setting.checkpointing), prediction.scoring(self._scoring)
        none = np.zeros(3)
        return {
            row: (
                train.get(row, none) * (trained / batches.tokens),
                score.get(row, none) * (scored / self._scoring.tokens),
            )
            for row in sorted({*train, *score})
        }

    def others(self, setting: CardSetting) -> dict[str, tuple[float, float]]:
        """Return the seconds per token of training and scoring with the other attentions that run on the card."""
        member = replace(self.member, quantise=setting.quantise, attn="auto")
        names = [name for name in attentions_on(CARDS[setting.card], member) if name != setting.attention]
        return {
            name: self.rates(
                Prediction(member, CARDS[setting.card], name), setting.checkpointing, setting.tokens_per_batch
            )
            for name in names
        }
