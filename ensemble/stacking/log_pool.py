"""Log-linear pool: weighted sum of the members' log-probabilities, and the fit of its weights.

The pool is ``sum_m w_m z_m + (0, 0, tie)``. The combiner of that name, LightGBM's starting point and the leakage check
all use it.

Source: Genest & Zidek, Combining Probability Distributions, Statistical Science 1986 (logarithmic pool).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from oof.classes import CLASSES, TIE
from oof.metrics import Integers, log_softmax

Pool = NDArray[np.float64]  # (n, m, 3) log-probabilities of m members, up to a constant per row and member
BOUND = 50.0  # of weights without a ridge, which would otherwise grow without end where members separate the classes


def pool_logits(pool: Pool, weights: NDArray[np.float64], tie: float) -> NDArray[np.float64]:
    """Return the (n, 3) pooled logits of (n, m, 3) log-probabilities with (m,) weights and a tie term."""
    return np.asarray(np.einsum("nmc,m->nc", pool, weights) + np.array([0.0, 0.0, tie]))


def pool_losses(pool: Pool, labels: Integers, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n,) log losses in nats of the pool with (m + 1,) parameters: the weights, then the tie term."""
    logits = pool_logits(pool, parameters[:-1], float(parameters[-1]))
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def fit_ridge_pool(pool: Pool, labels: Integers, ridge: float) -> NDArray[np.float64]:
    """Return the (m + 1,) parameters that minimise the mean log loss plus a ridge towards the plain mean.

    Finite differences: exact slopes end a millionth away, and every figure of an existing stack would change with them.
    """
    start = _equal_weights(pool)

    def loss(parameters: NDArray[np.float64]) -> float:
        return float(pool_losses(pool, labels, parameters).mean() + ridge * np.square(parameters - start).sum())

    return np.asarray(minimize(loss, start, method="L-BFGS-B").x)


def fit_free_pool(pool: Pool, labels: Integers, tie: bool = True) -> NDArray[np.float64]:
    """Return the (m + 1,) parameters, within ``BOUND``, that minimise the mean log loss; without ``tie`` the last is 0.

    Exact slopes: one evaluation per step, however many members there are.
    """
    start = _equal_weights(pool)
    targets = np.eye(len(CLASSES))[labels]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logp = log_softmax(pool_logits(pool, parameters[:-1], float(parameters[-1])))
        errors = np.exp(logp) - targets
        slope = np.append(np.einsum("nc,nmc->m", errors, pool), errors[:, TIE].sum()) / len(labels)
        return float(-(logp * targets).sum() / len(labels)), slope

    limits = np.append(np.full(len(start) - 1, BOUND), BOUND if tie else 0.0)
    return np.asarray(
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=list(zip(-limits, limits, strict=True))).x
    )


def _equal_weights(pool: Pool) -> NDArray[np.float64]:
    m = pool.shape[1]
    return np.append(np.full(m, 1.0 / m), 0.0)
