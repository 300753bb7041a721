"""LoRA training speed and memory of our trainer, per shape, lengths and attention; with nf4 weights it is QLoRA.

The functions are those of a fold job. An optimizer step with the longest sequences runs first, so that compilation and
the first allocations do not count. Seconds are those inside ``Trainer.train``, as for the plain Trainer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import Trainer

from benchmarks.gpu.card import planned_card
from benchmarks.gpu.parts import EAGER_LAYERS, Case, Context, Row
from benchmarks.gpu.random_classifier import (
    PAD,
    SEED,
    begin_peak,
    build,
    free_memory,
    largest_budget,
    member_of,
    model_flops,
    peak_memory_gb,
    planned,
    random_battles,
    resolved,
    sequence_lengths,
    vocabulary_of,
)
from oof.config import Member
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.model.cost_model import as_installed
from oof.model.optimizations import checkpoint_trainable_layers
from oof.model.predicted_time import predicted_training_seconds
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier

WARM_UP_STEPS = 1


def measure(case: Case, context: Context) -> Row:
    """Return tokens per second, arithmetic, seconds and memory of one case.

    Raises:
        UserError: the attention cannot run here, or one sequence does not fit.
    """
    shape, kind, attention, *options = case
    member = member_of(shape, context, attention, *options)
    name = resolved(member)
    automatic = attention == "auto" or name == resolved(member_of(shape, context))
    with prepared(member, name, kind, context) as (model, steps, halvings):
        with timed_trainer() as calls:
            summary = train(model, member, steps)
        seconds, recomputes = sum(calls), summary["checkpointed_layers"] > 0
        tokens = int(steps.encoded.lengths.sum())
        longest = context.size.max_tokens
        flops = model_flops(member, steps.encoded.lengths[:, 0], True)
        planned_cost = planned(member, name, longest, steps.budget, True, recomputes)
        return {
            "attention": name,
            "auto": automatic and EAGER_LAYERS not in options,
            "fused_layers": summary["fused_layers"],
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops / seconds,
            "predicted_seconds": predicted(member, steps, recomputes, name),
            "tokens_per_batch": steps.budget,
            "checkpointing": recomputes,
            "halvings": halvings + summary["oom_halvings"],
            "peak_gb": peak_memory_gb(),
            "planned_gb": planned_cost.peak_bytes / 1e9,
        }


def predicted(member: Member, steps: TrainingSteps, recomputes: bool, attention: str) -> float | None:
    """Return the plan's seconds of the measured steps, or None for a card that it does not list."""
    card, lengths = planned_card(), steps.encoded.lengths[:, 0]
    if card is None:
        return None
    return predicted_training_seconds(card, as_installed(member), lengths, steps.budget, recomputes, attention)


@contextmanager
def timed_trainer() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of each ``Trainer.train`` inside, which ends when the device has finished."""
    calls: list[float] = []
    stock = Trainer.train

    def train_and_record(trainer: Any, *arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        output = stock(trainer, *arguments, **options)
        calls.append(time.perf_counter() - begun)
        return output

    with patch.object(Trainer, "train", train_and_record):
        yield calls


@contextmanager
def prepared(member: Member, attention: str, kind: str, context: Context) -> Iterator[tuple[Any, TrainingSteps, int]]:
    """Yield a warm classifier, the steps to measure, and how often the warm-up halved the planned batch."""
    size = context.size
    free_memory()
    budget, checkpointing = largest_budget(member, attention, size.max_tokens, size)
    model = build(member, attention)
    if checkpointing:
        checkpoint_trainable_layers(model)
    lengths = sequence_lengths(kind, size.step_sequences * size.lengths[kind], size)
    warm = plan_of(member, lengths, budget)
    warm.steps = sorted(warm.steps, key=lambda step: -int(warm.encoded.lengths[step.battles].max()))[:WARM_UP_STEPS]
    halvings = train(model, member, warm)["oom_halvings"]
    begin_peak()
    yield model, plan_of(member, lengths, warm.budget), halvings


def plan_of(member: Member, lengths: np.ndarray, budget: int) -> TrainingSteps:
    """Return one epoch of random texts of these lengths with random labels."""
    n = len(lengths)
    labels = np.random.default_rng(SEED).integers(3, size=n)
    recipe = replace(member.train, tokens_per_batch=budget)
    encoded = random_battles(lengths, vocabulary_of(member))
    return TrainingSteps(encoded, targets_in_both_orders(np.eye(3)[labels]), np.ones(n), recipe, PAD, SEED)


def train(model: Any, member: Member, steps: TrainingSteps) -> Row:
    """Run all steps in the trainer of a fold job; return its summary."""
    with tempfile.TemporaryDirectory() as scratch:
        return train_classifier(model, member, steps, cross_entropy, Path(scratch) / "checkpoints", SEED, "bench-gpu")
