"""Scoring with a quantised base after training on a 16-bit or float32 one (``score_quantise``), and its measured drift.

The adapter was trained on another function than it scores with, so this needs an explicit setting, and a sample of the
battles is scored with both: first with the trained model, which then leaves the memory, then with the quantised one.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oof.config import Member
from oof.distributed import process_group
from oof.encoding.encode import Encoded
from oof.metrics import softmax
from oof.model.classifier import load_classifier
from oof.model.lora import scored_member
from oof.training.inference import predict_logits

logger = logging.getLogger(__name__)

SAMPLE = 64  # battles, spread evenly over the lengths
TOLERANCE = 0.02  # mean change of a probability: by its square, the log loss then changes by about 0.002


def quantised_for_scoring(
    model: nn.Module, member: Member, folder: Path, tokenizer: Any, encoded: Encoded, label: str
) -> tuple[nn.Module, dict[str, object]]:
    """Return the model to score with, and the measured drift for the job's manifest.

    Args:
        model: the trained classifier, which is returned with ``score_quantise: same``; else its weights are freed.
        member: ``score_quantise`` is read.
        folder: of the saved adapter.
        tokenizer: of the member.
        encoded: (n) battles to be scored, of which a sample is taken.
        label: name of the job in logs.

    Returns:
        The classifier, and ``{"score_drift": ...}`` (:func:`drift`), or {} where the model is the trained one.
    """
    if member.score_quantise == "same":
        return model, {}
    by_length = np.argsort(encoded.lengths.max(axis=1), kind="stable")
    rows = by_length[np.unique(np.linspace(0, len(by_length) - 1, SAMPLE).round().astype(int))]
    sample, in_trained_dtype = encoded.take(rows), replace(member, score_dtype="same")

    def logits_of(classifier: Any) -> NDArray[np.float32]:
        return predict_logits(classifier, in_trained_dtype, sample, tokenizer.pad_token_id, f"{label}: sample")

    trained = logits_of(model)
    model.to("meta")  # callers still hold the model: without weights it takes no memory
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    quantised = load_classifier(scored_member(member), folder, tokenizer, seed=0)
    measured = drift(trained, logits_of(quantised))
    if process_group.rank() == 0:
        level = logging.WARNING if measured["mean_probability"] > TOLERANCE else logging.INFO
        logger.log(
            level,
            "%s: scored in %s; on %d battles it changes a probability by %.2g on average (tolerance %.2g), a logit by "
            "%.2g on average and %.2g at most",
            label,
            member.score_quantise,
            len(rows),
            measured["mean_probability"],
            TOLERANCE,
            measured["mean_logit"],
            measured["max_logit"],
        )
    return quantised, {"score_drift": {"quantise": member.score_quantise, "tolerance": TOLERANCE, **measured}}


def drift(trained: NDArray[np.floating], quantised: NDArray[np.floating]) -> dict[str, float]:
    """Return how far the logits of a quantised base are from those of the trained one.

    Args:
        trained, quantised: (n, orders, 3) logits of the same battles.

    Returns:
        ``max_logit`` and ``mean_logit``: largest and mean absolute difference of a logit; ``mean_probability``: mean
        absolute difference of a class's probability; ``battles``: n.
    """
    logits = np.abs(quantised.astype(np.float64) - trained)
    probabilities = np.abs(softmax(quantised) - softmax(trained))
    return {
        "max_logit": float(logits.max()),
        "mean_logit": float(logits.mean()),
        "mean_probability": float(probabilities.mean()),
        "battles": len(trained),
    }
