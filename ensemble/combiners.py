"""Simple combiners of members that LightGBM must beat, and starts from: log-pool, and the length-only baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensemble.design import SWAP, Design
from oof.metrics import log_softmax

RIDGE = 0.01  # pull of the pool's weights towards the plain mean: decides only where members are few or alike

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LogPool:
    """Weighted log-opinion pool ``sum_m w_m z_m + (0, 0, tie)`` of the members' centred log-probabilities.

    Source: Genest & Zidek, Combining Probability Distributions, Statistical Science 1986 (logarithmic pool).
    """

    weights: tuple[float, ...]
    tie: float

    def logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits; mirrored battles get the same with a and b exchanged, by construction."""
        pooled = np.einsum("nmc,m->nc", design.pool, np.asarray(self.weights))
        return np.asarray(pooled + np.array([0.0, 0.0, self.tie]))


def mean_logits(design: Design) -> NDArray[np.float64]:
    """Return (n, 3): the plain mean of the members' logits; nothing is fitted."""
    return np.asarray(design.pool.mean(axis=1))


def fit_log_pool(design: Design, labels: Integers) -> LogPool:
    """Return the pool that minimises the log loss of the rows plus a small ridge towards equal weights."""
    m, rows = design.pool.shape[1], np.arange(len(labels))
    start = np.append(np.full(m, 1.0 / m), 0.0)

    def loss(parameters: NDArray[np.float64]) -> float:
        logits = LogPool(tuple(parameters[:m].tolist()), float(parameters[m])).logits(design)
        ridge = RIDGE * np.square(parameters - start).sum()
        return float(-log_softmax(logits)[rows, labels].mean() + ridge)

    found = minimize(loss, start, method="L-BFGS-B").x
    return LogPool(tuple(float(w) for w in found[:m]), float(found[m]))


def prior_probs(labels: Integers, n: int) -> NDArray[np.float64]:
    """Return (n, 3): the class shares of ``labels``, Laplace-smoothed, for each of n battles."""
    counts = np.bincount(labels, minlength=3) + 1.0
    return np.tile(counts / counts.sum(), (n, 1))


def length_only_probs(train: Design, labels: Integers, held_out: Design) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of a multinomial logistic regression on the length features alone.

    Trained on each battle and its mirror image, and averaged over both, like everything else.
    """
    columns = train.columns("lengths")
    x, y = doubled(train.x[:, columns], train.x_swapped[:, columns], labels)
    if len(np.unique(y)) < 2 or not columns:  # battles without text have no lengths
        return prior_probs(labels, len(held_out.ids))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)

    def probs(values: NDArray[np.float32]) -> NDArray[np.float64]:
        full = np.full((len(values), 3), 1e-12)  # a class that never occurred
        full[:, model.classes_] = model.predict_proba(values)
        return np.asarray(full / full.sum(axis=1, keepdims=True))

    return (probs(held_out.x[:, columns]) + probs(held_out.x_swapped[:, columns])[:, SWAP]) / 2


def doubled(x: NDArray[Any], x_swapped: NDArray[Any], labels: Integers) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return (2n, d) rows, every battle then every mirror image, and their (2n,) labels."""
    return np.concatenate([x, x_swapped]), np.concatenate([labels, np.array(SWAP)[labels]])
