"""Scoring of both orders by precision of the base, and without fused layers: speed, memory, and drift from bfloat16.

The weights are random and the same for every precision, so a drift is that of rounding alone; it is not that of a
trained model. float16 is not checked beforehand, as a fold job checks it: the drift is in the table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import timed
from benchmarks.gpu.card import planned_card
from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, Case, Context, Row
from benchmarks.gpu.random_classifier import (
    PAD,
    begin_peak,
    build,
    free_memory,
    member_of,
    model_flops,
    peak_memory_gb,
    planned,
    random_battles,
    resolved,
    sequence_lengths,
    vocabulary_of,
)
from oof.model.cards import CARDS
from oof.model.cost_model import as_installed
from oof.model.fused_layers import FusedLayers
from oof.model.predicted_time import Prediction, scoring_batches
from oof.model.predicted_time import seconds as predicted_seconds
from oof.training.inference import predict_logits

REFERENCE = "bfloat16"
WARM_UP_BATTLES = 2


def measure(case: Case, context: Context) -> Row:
    """Return tokens per second, memory and drift of one precision.

    Raises:
        UserError: a logit is not finite, or one sequence does not fit.
    """
    shape, kind = case
    size = context.size
    member = member_of(shape, context, option=kind if kind in ("int8", "nf4", EAGER_LAYERS) else "none")
    attention = resolved(member)
    lengths = sequence_lengths(ARENA, size.score_battles, size)
    battles = random_battles(lengths, vocabulary_of(member), orders=2)
    free_memory()
    model = build(member, attention).eval()
    if kind == "float16":
        halve(model)
        member = replace(member, dtype="float32")  # without autocast the model computes in float16 as it is
    longest = np.argsort(lengths)[-WARM_UP_BATTLES:]
    predict_logits(model, member, battles.take(longest), PAD, "warm-up")
    begin_peak()
    fused = FusedLayers(model, member)  # those that scoring will make itself
    fused.remove()
    logits, seconds = timed(lambda: predict_logits(model, member, battles, PAD, "scoring"))
    saved = context.folder / f"logits-{shape.replace(' ', '-')}.npy"
    if kind == REFERENCE:
        np.save(saved, logits)
    tokens, flops = int(battles.lengths.sum()), 2 * model_flops(member, lengths, False)
    sixteen_bit = replace(member, dtype="bfloat16")
    plan = planned(sixteen_bit, attention, size.max_tokens, size.score_budget, False, False)
    card = planned_card()
    predicted = None
    if card:
        prediction = Prediction(as_installed(sixteen_bit), CARDS[card], attention)
        predicted = predicted_seconds(prediction.scoring(scoring_batches(lengths, sixteen_bit)))
    return {
        "attention": attention,
        "fused_layers": fused.kinds,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": flops / seconds,
        "predicted_seconds": predicted,
        "peak_gb": peak_memory_gb(),
        "planned_gb": plan.peak_bytes / 1e9,
    } | (drift(np.load(saved), logits) if saved.is_file() else {})


def halve(model: Any) -> None:
    """Round all weights but the head to float16, as scoring with ``score_dtype: float16`` does after its self-check."""
    for name, parameter in model.named_parameters():
        if "score" not in name.split("."):
            parameter.data = parameter.data.half()


def drift(expected: NDArray[np.float32], logits: NDArray[np.float32]) -> Row:
    """Return the mean KL divergence from the expected probabilities, and the largest difference of a logit."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (expected, logits))
    return {
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "largest_difference": float(np.abs(expected - logits).max()),
        "largest_logit": float(np.abs(expected).max()),
    }
