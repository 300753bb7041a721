"""Temperature of the average of the fold students' weights, without a label.

The average is another model than the students: where their updates differ, they cancel, and its logits are smaller. No
battle is held out from all students, so labels cannot tell its temperature: on battles that some of them learned from
it looks surer than it may be. Instead it is matched to probabilities that are known to be calibrated, the fold
students' own of the battles that they did not see. That corrects the scale. It still errs towards too little
confidence: a part of the logits that comes from having seen a battle agrees with none of these probabilities, and that
the average is better than one student, as one without its noise, does not show in them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ensemble.distillation.plan import StudentPlan
from ensemble.stacking.calibration_fit import LOG_T_BOUND
from oof.common.errors import UserError
from oof.jobs.encoded_battles import EncodedBattles
from oof.metrics import Floats, log_softmax, mean_of_orders, softmax
from oof.model.precision import device
from oof.training.inference import predict_logits

logger = logging.getLogger(__name__)

BATTLES = 1000  # that the average scores; without labels there is little noise to average out


def average_temperature(
    plan: StudentPlan, model: Any, held_out: NDArray[np.floating], temperature: float, partial: Path
) -> float:
    """Return the temperature of the averaged ``model``; that of the fold students where this device cannot score it.

    Args:
        plan: of the students.
        model: the average of their weights.
        held_out: (n_scored, 2, 3) logits of the fold students, each battle's by the one that did not see it.
        temperature: of these logits.
        partial: file of the logits so far, so that an interrupted call goes on where it stopped.
    """
    rows = np.random.default_rng(plan.config.seed).permutation(plan.n_scored)[:BATTLES]
    # Rounded weights would stay in the model, which is exported.
    member = replace(plan.config.distill.student, score_dtype="same")
    texts = EncodedBattles(member, plan.table[rows], plan.config.for_student())
    label = "average of the fold students"
    try:
        model = model.to(device()).eval()
        logits = predict_logits(model, member, texts.scoring, texts.tokenizer.pad_token_id, label, partial)
    except (torch.OutOfMemoryError, UserError) as error:
        reason = str(error).splitlines()[0]
        logger.warning("%s: it keeps their temperature, because it cannot be scored here (%s)", label, reason)
        return temperature
    calibrated = softmax(mean_of_orders(held_out[rows]) / temperature)
    return matching_temperature(mean_of_orders(logits), calibrated)


def matching_temperature(logits: Floats, probs: NDArray[np.float64]) -> float:
    """Return T > 0 with the smallest cross-entropy of ``softmax(logits / T)`` to (n, 3) ``probs``.

    Args:
        logits: (n, 3).
        probs: (n, 3) calibrated probabilities of the same battles.

    Source: temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2) with soft
    labels.
    """

    def cross_entropy(log_t: float) -> float:
        return float(-(probs * log_softmax(logits / np.exp(log_t))).sum(axis=1).mean())

    optimum = minimize_scalar(
        cross_entropy, bounds=(-LOG_T_BOUND, LOG_T_BOUND), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(optimum.x))
