"""Detect leaked (in-sample) members: members that were trained on battles whose logits they give.

Such a member looks far better than it is, and fools any stacker. Two signs are reported, each a reason to check the
member and neither a proof (a 70B model among 1B ones shows the first sign, rightly):

* **margin**: after fitting a temperature to each member (a badly scaled rival is no evidence), its log loss beats that
  of every other member by more than ``margin`` nats;
* **vanishing gain**: log-pool weights with and without the member, fitted on all folds but one, promise an advantage
  of more than ``margin`` nats on these folds, and on the held-out fold there is none (<= 0, and short of the promise
  by four standard errors). An honest member is worth about the same in each fold; a member that leaked some folds and
  not others is not.

A member that leaked *all* folds shows the first sign alone: its logits are equally wrong in every fold. Of 30
synthetic pairs of honest, equally good members none was flagged with 300 or 2,000 battles; with 60, six were, by the
first sign: so few battles cannot tell a lead of 0.05 nats from luck.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.stacking.log_pool import Pool, fit_free_pool, pool_losses
from oof.metrics import Integers, log_softmax, mean_of_orders

logger = logging.getLogger(__name__)

MAX_ROWS = 20_000  # both signs are clear on so many rows; more would only take longer
ERRORS = 4.0  # standard errors by which the held-out gain must fall short of the promise: small folds are noisy


def leaked_members(
    logits: dict[str, NDArray[np.floating[Any]]], labels: Integers, folds: Integers, margin: float, seed: int
) -> dict[str, list[str]]:
    """Return the members that show a sign, each with its reasons; they are also logged as warnings.

    Args:
        logits: member -> (n, 2, 3).
        labels: (n,) in {0, 1, 2}.
        folds: (n,).
        margin: nats, ``stack.in_sample_margin``.
        seed: draws ``MAX_ROWS`` of the rows where there are more.
    """
    if len(logits) < 2:
        return {}
    rows = np.arange(len(labels))
    if len(rows) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_ROWS, replace=False))
    pool = np.stack([log_softmax(mean_of_orders(z[rows])) for z in logits.values()], axis=1)
    y, fold = labels[rows], folds[rows]
    losses = [_scaled_loss(pool[:, [i]], y) for i in range(len(logits))]
    leaked: dict[str, list[str]] = {}
    for i, name in enumerate(logits):
        lead = min(losses[:i] + losses[i + 1 :]) - losses[i]
        reasons = _vanishing_gain(np.delete(pool, i, axis=1), pool, y, fold, margin)
        if lead > margin:
            reasons.insert(0, f"its log loss beats every other member's by {lead:.3f} nats (margin {margin:g})")
        if reasons:
            leaked[name] = reasons
            logger.warning("%s: possibly in-sample: %s", name, "; ".join(reasons))
    return leaked


def _scaled_loss(single: Pool, labels: Integers) -> float:
    """Return the mean log loss of one member, (n, 1, 3), after a temperature is fitted to it."""
    return float(pool_losses(single, labels, fit_free_pool(single, labels, tie=False)).mean())


def _vanishing_gain(without: Pool, pool: Pool, labels: Integers, folds: Integers, margin: float) -> list[str]:
    """Return the reason, if on some fold the gain of pooling with one more member vanishes, or nothing."""
    for k in np.unique(folds):
        rest, held = folds != k, folds == k
        if not rest.any():
            continue
        full, fewer = fit_free_pool(pool[rest], labels[rest]), fit_free_pool(without[rest], labels[rest])
        gains = [
            pool_losses(without[rows], labels[rows], fewer) - pool_losses(pool[rows], labels[rows], full)
            for rows in (rest, held)
        ]
        promised, kept = (float(gain.mean()) for gain in gains)
        error = float(gains[1].std() / np.sqrt(len(gains[1])))
        if promised > margin and kept <= 0 and promised - kept > ERRORS * error:
            return [f"weights of the other folds promise {promised:.3f} nats by it, but fold {k} gains {kept:.3f}"]
    return []
