"""Predicted time of training and scoring on a card, from the traced operations.

An operation takes the longer of its arithmetic at the card's rate for its dtype and its bytes at the card's bandwidth
(:mod:`oof.model.cards`). The passes are those of the real batches: steps are planned and cut as in training, and their
batches are priced at a few representative lengths. Launching kernels, the host and the disk are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oof.config import Member, Train
from oof.encoding.batches import MULTIPLE, SCORE_TOKENS, SPARE, cut, padded, plan_steps
from oof.model.attention import model_attention
from oof.model.attention_cost import attention_operations
from oof.model.attention_table import Machine, candidates
from oof.model.cards import CARDS, Card, card_named
from oof.model.checkpoint_shapes import shared_config
from oof.model.cost_model import PassOperations, as_installed, attention_windows, pass_operations
from oof.model.operations import ATTENTION, OPTIMIZER
from oof.model.pass_trace import traced_dtype
from oof.model.precision import DTYPES

LENGTHS = 6  # representative lengths of a set of batches

Row = tuple[str, str]  # class and dtype of operations
Amounts = NDArray[np.float64]  # FLOPs, bytes, seconds


@dataclass(frozen=True)
class Batches:
    """Padded batches of some sequences.

    Attributes:
        shapes: (n, 2) sequences and padded tokens of each.
        steps: optimizer steps; 0 in scoring.
        tokens: real tokens of all sequences.
    """

    shapes: NDArray[np.int64]
    steps: int
    tokens: float


def training_batches(lengths: NDArray[np.integer], recipe: Train, budget: int) -> Batches:
    """Return the micro-batches of one epoch on a GPU.

    Args:
        lengths: (n,) tokens of each battle, after truncation.
        recipe: battles per step and swap.
        budget: padded tokens of one micro-batch.
    """
    steps = plan_steps(lengths, replace(recipe, epochs=1.0), seed=0)
    shapes = [shape for step in steps for shape in _shapes(lengths[step.battles], budget)]
    tokens = float(sum(lengths[step.battles].sum() for step in steps))
    return Batches(np.array(shapes), len(steps), tokens)


def scoring_batches(lengths: NDArray[np.integer], member: Member) -> Batches:
    """Return the batches in which a GPU scores both orders of battles of (n,) given lengths."""
    both = np.repeat(lengths, 2)
    budget = member.score_tokens_per_batch or SCORE_TOKENS["cuda"]
    return Batches(np.array(_shapes(both, budget)), 0, float(both.sum()))


def _shapes(lengths: NDArray[np.integer], budget: int) -> list[tuple[int, int]]:
    return [(len(rows), int(padded(lengths[rows]).max())) for rows in cut(lengths, budget, SPARE["cuda"])]


def attentions_on(card: Card, member: Member) -> tuple[str, ...]:
    """Return the attention implementations that a member can run on a card, the one that it takes first.

    FlashAttention 4, which the ``gpu`` extra installs without a compiler, counts as installed where it runs.
    """
    config = shared_config(member.checkpoint, member.revision)
    model = model_attention(config, member.attn_softcap)
    machine = Machine(card.capability, frozenset({"flash_attention_4"}))
    names = candidates(model, DTYPES[card.dtype(member.dtype)], machine)
    return names if member.attn == "auto" else tuple(name for name in names if name == member.attn)


@dataclass(frozen=True)
class Prediction:
    """Price of a member's passes on a card.

    Attributes:
        member: precision, quantisation, adapters.
        card: one of :data:`oof.model.cards.CARDS`.
        attention: name of the implementation.
    """

    member: Member
    card: Card
    attention: str

    def training(self, batches: Batches, checkpointing: bool) -> dict[Row, Amounts]:
        """Return FLOPs, bytes and seconds of the training passes and optimizer steps, by class and dtype."""
        operations = pass_operations(self.member, True, checkpointing)
        return self._total(self.member, operations, batches)

    def scoring(self, batches: Batches) -> dict[Row, Amounts]:
        """Return FLOPs, bytes and seconds of the scoring passes, by class and dtype."""
        halved = self.member.score_dtype == "float16"
        member = replace(self.member, dtype="float16") if halved else self.member
        return self._total(member, pass_operations(member, False, False), batches)

    def _total(self, member: Member, operations: PassOperations, batches: Batches) -> dict[Row, Amounts]:
        total: dict[Row, Amounts] = {}
        once = operations.kinds == OPTIMIZER
        for count, sequences, tokens in representative(batches.shapes):
            rows = self._priced(operations, ~once, sequences * tokens)
            amounts = self._attention(member, operations, sequences, tokens)
            rows.append(((ATTENTION, self.card.dtype(member.dtype)), amounts))
            _add(total, rows, count)
        _add(total, self._priced(operations, once, 0.0), batches.steps)
        return total

    def _priced(self, operations: PassOperations, chosen: Any, tokens: float) -> list[tuple[Row, Amounts]]:
        """Return the amounts of the chosen operations of one pass over ``tokens`` padded tokens."""
        at = np.array([1.0, tokens])
        weights, flops, moved = operations.weights[chosen], operations.flops[chosen] @ at, operations.bytes[chosen] @ at
        dtypes = np.array([self.card.dtype(dtype) for dtype in operations.dtypes[chosen]])
        rows: list[tuple[Row, Amounts]] = []
        for dtype in np.unique(dtypes):
            for kind in np.unique(operations.kinds[chosen][dtypes == dtype]):
                of = (dtypes == dtype) & (operations.kinds[chosen] == kind)
                seconds = self.card.seconds(str(dtype), flops[of], moved[of])
                rows.append(
                    (
                        (str(kind), str(dtype)),
                        np.array([weights[of] @ x[of] for x in (flops, moved)] + [weights[of] @ seconds]),
                    )
                )
        return rows

    def _attention(self, member: Member, operations: PassOperations, sequences: float, tokens: int) -> Amounts:
        """Return the amounts of all layers' attention of one pass."""
        model = model_attention(shared_config(member.checkpoint, member.revision), member.attn_softcap)
        dtype, windows = self.card.dtype(member.dtype), [min(w or tokens, tokens) for w in attention_windows(member)]
        total = np.zeros(3)
        for backward, layers in ((False, operations.forwards), (True, operations.backwards)):
            for window in set(windows) if layers else ():
                share = windows.count(window) / len(windows)
                each = attention_operations(self.attention, model, traced_dtype(dtype), tokens, window, backward)
                labels = [dtype if x.dtype != "float32" else x.dtype for x in each]
                times = [self.card.seconds(label, x.flops, x.bytes) for label, x in zip(labels, each, strict=True)]
                amounts = [[x.flops, x.bytes, float(time)] for x, time in zip(each, times, strict=True)]
                total += layers * share * sequences * np.sum(amounts, axis=0)
        return total


def _add(total: dict[Row, Amounts], rows: list[tuple[Row, Amounts]], count: float) -> None:
    for row, amounts in rows:
        total[row] = total.get(row, np.zeros(3)) + count * amounts


def representative(shapes: NDArray[np.int64]) -> Iterator[tuple[float, float, int]]:
    """Yield a few shapes that stand for many batches: (batches, sequences of one, padded tokens of a sequence).

    The batches are sorted by length and cut into parts of equal padded tokens. Padded tokens and mean length are those
    of the part, so that costs per token, and per token and length, add up.
    """
    shapes = shapes[np.argsort(shapes[:, 1], kind="stable")]
    size = shapes.prod(axis=1)
    parts = np.minimum(LENGTHS * (size.cumsum() - size / 2) // size.sum(), LENGTHS - 1)
    for part in np.unique(parts):
        own, sizes = shapes[parts == part], size[parts == part]
        tokens = int(-(-round(float(sizes @ own[:, 1] / sizes.sum())) // MULTIPLE) * MULTIPLE)
        yield float(len(own)), float(sizes.sum() / tokens / len(own)), tokens


def seconds(amounts: dict[Row, Amounts]) -> float:
    """Return the seconds of all operations."""
    return float(sum(each[2] for each in amounts.values()))


def predicted_training_seconds(
    gpu: str, member: Member, lengths: NDArray[np.integer], budget: int, checkpointing: bool, attention: str
) -> float:
    """Return the predicted seconds of a training.

    Args:
        gpu: name in :data:`oof.model.cards.CARDS`.
        member: recipe and precision.
        lengths: (n,) tokens of each battle, after truncation.
        budget: padded tokens of one micro-batch.
        checkpointing: activation checkpointing.
        attention: name of the implementation that runs.
    """
    batches = training_batches(lengths, member.train, budget)
    return seconds(Prediction(member, CARDS[gpu], attention).training(batches, checkpointing)) * member.train.epochs


def predicted_on_this_gpu(
    member: Member, lengths: NDArray[np.integer], budget: int, checkpointing: bool, attention: str
) -> dict[str, float]:
    """Return ``predicted_seconds`` of a training for its manifest; nothing without a GPU that the plan lists."""
    card = card_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if card is None:
        return {}
    arguments = as_installed(member), lengths, budget, checkpointing, attention
    return {"predicted_seconds": round(predicted_training_seconds(card, *arguments), 1)}
