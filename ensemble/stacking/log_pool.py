"""Log-linear pool: weighted sum of log-probabilities, and the fits of its weights.

The pool is ``sum_m w_m z_m + (0, 0, tie)``. The combiner of that name, LightGBM's starting point and the leakage check
use it with free weights; the pool of candidates has convex ones and no tie term.

Source: Genest & Zidek, Combining Probability Distributions, Statistical Science 1986 (logarithmic pool).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize

from oof.classes import CLASSES, TIE, pinned_as
from oof.metrics import Integers, log_softmax

Pool = NDArray[np.float64]  # (n, m, 3) log-probabilities of m members, up to a constant per row and member
BOUND = 50.0  # of weights without a ridge, which would otherwise grow without end where members separate the classes


def pool_logits(pool: Pool, weights: NDArray[np.float64], tie: float) -> NDArray[np.float64]:
    """Return the (n, 3) pooled logits of (n, m, 3) log-probabilities with (m,) weights and a tie term.

    A pinned tie stays pinned, whatever the weights and the term.
    """
    return pinned_as(pool, np.einsum("nmc,m->nc", pool, weights) + np.array([0.0, 0.0, tie]))


def pool_losses(pool: Pool, labels: Integers, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n,) log losses in nats of the pool with (m + 1,) parameters: the weights, then the tie term."""
    logits = pool_logits(pool, parameters[:-1], float(parameters[-1]))
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def fit_pool(pool: Pool, labels: Integers, ridge: float = 0.0, tie: bool = True) -> NDArray[np.float64]:
    """Return the (m + 1,) parameters, within ``BOUND``, that minimise the mean log loss plus a ridge.

    Args:
        pool: (n, m, 3).
        labels: (n,) in {0, 1, 2}.
        ridge: nats for each unit of the squared distance of the weights from the plain mean's. The tie term has none:
            it says how often verdicts are ties, and on data without ties it must be free to fall.
        tie: whether the tie term is fitted; otherwise it is 0.

    Exact slopes: one evaluation per step, however many members there are.
    """
    m = pool.shape[1]
    start = np.append(np.full(m, 1.0 / max(m, 1)), 0.0)
    targets = np.eye(len(CLASSES))[labels]
    penalised = np.append(np.ones(m), 0.0)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logp = log_softmax(pool_logits(pool, parameters[:-1], float(parameters[-1])))
        errors = np.exp(logp) - targets
        slope = np.append(np.einsum("nc,nmc->m", errors, pool), errors[:, TIE].sum()) / len(labels)
        moved = penalised * (parameters - start)
        return float(ridge * (moved**2).sum() - (logp * targets).sum() / len(labels)), slope + 2 * ridge * moved

    limits = np.append(np.full(m, BOUND), BOUND if tie else 0.0)
    bounds = list(zip(-limits, limits, strict=True))
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def fit_convex_pool(pool: Pool, labels: Integers, ridge: float) -> NDArray[np.float64]:
    """Return the (m,) weights, not negative and with sum 1, that minimise the mean log loss plus a ridge.

    Args:
        pool: (n, m, 3), centred.
        labels: (n,) in {0, 1, 2}.
        ridge: nats for each unit of the squared distance from equal weights.
    """
    targets = np.eye(len(CLASSES))[labels]
    start = np.full(pool.shape[1], 1.0 / pool.shape[1])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logp = log_softmax(pool_logits(pool, weights, 0.0))
        slope = np.einsum("nc,nmc->m", np.exp(logp) - targets, pool) / len(labels)
        moved = weights - start
        return float(ridge * (moved**2).sum() - (logp * targets).sum() / len(labels)), slope + 2 * ridge * moved

    convex = LinearConstraint(np.ones((1, len(start))), 1.0, 1.0)
    bounds = [(0.0, 1.0)] * len(start)
    # SLSQP's default tolerance, 1e-6, stops at any mix of near-copies.
    found = minimize(loss, start, jac=True, method="SLSQP", tol=1e-12, bounds=bounds, constraints=[convex])
    weights = np.clip(found.x, 0.0, None)
    return np.asarray(weights / weights.sum())
