"""Noise ceiling of votes: the lowest log loss that a majority of several annotators allows, whatever the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln

from oof.classes import CLASSES
from oof.data.verdicts import majority

DRAWS = 5_000


def lowest_loss(votes: NDArray[np.integer], seed: int = 0) -> float:
    """Return the log loss of a model that knows each battle's true shares, against the majority of its votes.

    Each battle has true shares of annotators who would vote A, B and tie, drawn from one Dirichlet distribution, which
    is fitted to the votes. The majority of n of them is random all the same; its entropy, averaged over the shares and
    the battles' numbers of votes, is the loss that no model gets below. The votes' own shares would give too low a
    value: three equal votes do not mean that all annotators agree.

    Args:
        votes: (n, 3) numbers of votes in class order, at least one a battle.
        seed: of the draws of shares.
    """
    shares = np.random.default_rng(seed).dirichlet(fit_dirichlet(votes), DRAWS)
    sizes, counts = np.unique(votes.sum(axis=1), return_counts=True)
    entropies = [float(_entropy(_majority_of(int(size), shares)).mean()) for size in sizes]
    return float(np.average(entropies, weights=counts))


def fit_dirichlet(votes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the (3,) parameters under which votes, multinomial given the shares, are most likely."""

    def loss(log_alpha: NDArray[np.float64]) -> float:
        alpha, n = np.exp(log_alpha), votes.sum(axis=1)
        rows = gammaln(alpha.sum()) - gammaln(alpha.sum() + n)
        return -float((rows + (gammaln(alpha + votes) - gammaln(alpha)).sum(axis=1)).sum())

    fitted = minimize(loss, np.zeros(len(CLASSES)), method="L-BFGS-B", bounds=[(-6.0, 8.0)] * len(CLASSES))
    return np.asarray(np.exp(fitted.x), dtype=np.float64)


def _majority_of(n: int, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (m, 3) probabilities of each majority among n votes with (m, 3) shares."""
    out, log_shares = np.zeros_like(shares), np.log(np.maximum(shares, 1e-300))
    for a in range(n + 1):
        for b in range(n + 1 - a):
            votes = np.array([a, b, n - a - b])
            orders = gammaln(n + 1) - gammaln(votes + 1).sum()
            out[:, majority(votes.tolist()).label] += np.exp(orders + log_shares @ votes)
    return out


def _entropy(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-(probs * np.log(np.maximum(probs, 1e-300))).sum(axis=1), dtype=np.float64)
