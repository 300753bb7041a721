"""Maximum-likelihood fit of a calibrator's parameters, block by block, each shrunk to the blocks before it.

The calibrated logits of a row with log-probabilities ``p`` are ``p * exp(-log T) * (r, 1 / r, s) + (c, -c, b)``; see
:mod:`ensemble.stacking.calibration`. Parameters are log T, log s, b, c, log r, in this order, and all 0 is the
identity. A block is fitted with the others held; of the step from the values before it, the shrinkage factor's share
is taken. The tie's block moves log T once more: T alone also makes up for a tie of another scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize

from ensemble.statistics.shrinkage import shrinkage_factor
from oof.classes import TIE as TIE_CLASS
from oof.classes import without_ties
from oof.common.errors import UserError
from oof.metrics import Floats, Integers, log_softmax, softmax

logger = logging.getLogger(__name__)

LOG_T_BOUND = float(np.log(50.0))
LOG_SCALE_BOUND = float(np.log(20.0))  # of the scales s and r
BIAS_BOUND = 5.0  # of the biases b and c
BOUNDS = np.array([LOG_T_BOUND, LOG_SCALE_BOUND, BIAS_BOUND, BIAS_BOUND, LOG_SCALE_BOUND])

Block = Sequence[int]  # positions of parameters that are fitted and shrunk together
TEMPERATURE: Block = (0,)
TEMPERATURE_AND_TIE: Block = (0, 1, 2)
POSITION_BIAS: Block = (3,)
POSITION: Block = (3, 4)


class InSampleError(UserError):
    """The logits separate the labels as no held-out logits do."""


def finite_logits(logits: Floats) -> NDArray[np.float64]:
    """Return (n, 3) logits as float64. Raises: UserError: some are not finite."""
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise UserError(f"{int((~np.isfinite(z)).any(axis=1).sum())} rows have logits that are not finite")
    return z


def scale_and_bias(parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (3,) factors of a row's log-probabilities and the (3,) biases that (5,) parameters stand for."""
    log_t, log_s, b, c, log_r = parameters
    return np.exp(np.array([log_r, -log_r, log_s]) - log_t), np.array([c, -c, b])


def best_log_temperature(logits: Floats, labels: Integers) -> float:
    """Return log T with the smallest log loss of ``softmax(logits / T)``, at most ``LOG_T_BOUND``.

    It is the root of the derivative, which changes its sign once: the loss is convex in 1 / T. Logits without any
    information, the same for each class (a pinned tie does not count), are left as they are.

    Raises:
        UserError: a logit is not finite.
        InSampleError: T lands on its lower bound.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    z = finite_logits(logits)
    z = z[:, :TIE_CLASS] if without_ties(z) and (labels < TIE_CLASS).all() else z
    distance = z - z[np.arange(len(labels)), labels][:, None]  # of each class from the label
    if not distance.any():
        return 0.0

    def slope(log_t: float) -> float:  # sum of the derivatives by log T, times T
        return -float((softmax(distance / np.exp(log_t)) * distance).sum())

    if slope(-LOG_T_BOUND) >= 0:
        raise InSampleError(
            f"the temperature runs to its lower bound ({np.exp(-LOG_T_BOUND):.2g}): these do not look like held-out "
            "logits; were in-sample predictions given?"
        )
    if slope(LOG_T_BOUND) <= 0:
        return LOG_T_BOUND
    return float(brentq(slope, -LOG_T_BOUND, LOG_T_BOUND, xtol=1e-12))


def fit_blocks(logits: Floats, labels: Integers, groups: Integers, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Return (5,) parameters; each block minimises the log loss from the values of those before it, and is shrunk.

    Args:
        logits: (n, 3) held-out logits in class order.
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.
        blocks: ``TEMPERATURE`` first. ``TEMPERATURE_AND_TIE`` is left out where the tie is pinned.

    Raises:
        UserError: a logit is not finite.
        InSampleError: the temperature lands on its lower bound.
    """
    parameters = np.zeros(len(BOUNDS))
    logp = log_softmax(finite_logits(logits))
    for block in blocks:
        fitted = parameters.copy()
        if block == TEMPERATURE:
            fitted[0] = best_log_temperature(logp, labels)
        elif block == TEMPERATURE_AND_TIE and without_ties(logp):
            continue
        else:
            fitted[list(block)] = _minimise(parameters, list(block), logp, labels)
        saved = len(labels) * (_mean_loss(parameters, logp, labels) - _mean_loss(fitted, logp, labels))
        factor = shrinkage_factor(saved, *derivatives(fitted, list(block), logp, labels), groups)
        if factor and block == TEMPERATURE and fitted[0] == LOG_T_BOUND:
            logger.warning("the logits say nothing about the labels of the held-out battles (temperature at its bound)")
        parameters += factor * (fitted - parameters)
    return parameters


def _mean_loss(parameters: NDArray[np.float64], logp: NDArray[np.float64], labels: Integers) -> float:
    scale, bias = scale_and_bias(parameters)
    return float(-log_softmax(logp * scale + bias)[np.arange(len(labels)), labels].mean())


def _minimise(
    parameters: NDArray[np.float64], block: list[int], logp: NDArray[np.float64], labels: Integers
) -> NDArray[np.float64]:
    """Return the block's values with the smallest mean log loss, the other parameters held."""
    trial = parameters.copy()

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        trial[block] = values
        scores, _ = derivatives(trial, block, logp, labels)
        return _mean_loss(trial, logp, labels), scores.mean(axis=0)

    bounds, start = [(-limit, limit) for limit in BOUNDS[block].tolist()], parameters[block]
    return np.asarray(
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9}).x
    )


def derivatives(
    parameters: NDArray[np.float64], block: list[int], logp: NDArray[np.float64], labels: Integers
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's (n, p) derivatives of its loss by the block's parameters, and the (p, p) information of all.

    The information is the expected second derivative, J' (diag(q) - q q') J for probabilities q and the derivatives J
    of the logits, summed over the rows.
    """
    scale, bias = scale_and_bias(parameters)
    scaled = logp * scale
    probs = softmax(scaled + bias)
    a, b, tie = np.eye(3)
    of_logits = [-scaled, scaled * tie, np.broadcast_to(tie, scaled.shape), np.broadcast_to(a - b, scaled.shape)]
    of_logits.append(scaled * (a - b))
    jacobian = np.stack([of_logits[j] for j in block], axis=2)  # (n, 3, p)
    mean = (probs[:, :, None] * jacobian).sum(axis=1)
    scores = mean - jacobian[np.arange(len(labels)), labels]
    information = np.einsum("ik,ikp,ikq->pq", probs, jacobian, jacobian) - mean.T @ mean
    return scores, information
