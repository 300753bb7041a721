"""Detect leaked (in-sample) members: members that were trained on battles whose logits they give.

Such a member looks far better than it is, and fools any stacker. Two signs are reported, each a reason to check the
member and neither a proof. They are for logits that were made elsewhere: of a run's own fold jobs the audit proves that
none was trained on the battles that it predicts.

* **lead**: after fitting a temperature to each member (a badly scaled rival is no evidence), its log loss beats that
  of every other member by more than ``margin`` nats, *and* its own temperature is below ``SHARP`` by two standard
  errors. A model that was trained on these battles is right more often than its probabilities say, so that they become
  better when they are sharpened; a 70B model among 1B ones leads too, but is not sharpened.
* **vanishing gain**: log-pool weights with and without the member, fitted on all folds but one, promise an advantage
  of more than ``margin`` nats on these folds, and on the held-out fold there is none (<= 0, and short of the promise
  by four standard errors). An honest member is worth about the same in each fold; a member that leaked some folds and
  not others is not.

A member that leaked *all* folds shows the first sign alone: its logits are equally wrong in every fold. A lone member
has no rival: of such a one the temperature alone is noted.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.stacking.log_pool import Pool, fit_pool, pool_losses
from ensemble.statistics.standard_errors import error_of_group_sums
from oof.metrics import Integers, log_softmax, mean_of_orders

logger = logging.getLogger(__name__)

MAX_ROWS = 20_000  # both signs are clear on so many rows; more would only take longer
SHARP = 0.85  # temperature below which the probabilities of held-out battles are suspiciously cautious
ERRORS = 4.0  # standard errors by which the held-out gain must fall short of the promise: small folds are noisy


Logits = dict[str, NDArray[np.floating[Any]]]  # member -> (n, 2, 3)


def leaked_members(
    logits: Logits, labels: Integers, folds: Integers, groups: Integers, margin: float, seed: int
) -> dict[str, list[str]]:
    """Return the members that show a sign, each with its reasons; they are also logged as warnings.

    Args:
        logits: member -> (n, 2, 3).
        labels: (n,) in {0, 1, 2}.
        folds: (n,).
        groups: (n,) battles that are not independent of each other.
        margin: nats, ``stack.in_sample_margin``.
        seed: draws ``MAX_ROWS`` of the rows where there are more.
    """
    if len(logits) < 2:
        return {}
    rows = _drawn_rows(len(labels), seed)
    pool = np.stack([log_softmax(mean_of_orders(z[rows])) for z in logits.values()], axis=1)
    y, fold = labels[rows], folds[rows]
    losses = [_scaled_loss(pool[:, [i]], y) for i in range(len(logits))]
    leaked: dict[str, list[str]] = {}
    for i, name in enumerate(logits):
        lead = min(losses[:i] + losses[i + 1 :]) - losses[i]
        reasons = _vanishing_gain(np.delete(pool, i, axis=1), pool, y, fold, margin)
        temperature, error = temperature_with_error(pool[:, i], y, groups[rows])
        if lead > margin and temperature + 2 * error < SHARP:
            reasons.insert(
                0,
                f"its log loss beats every other member's by {lead:.3f} nats (margin {margin:g}), and "
                f"{_sharpened(temperature, error)}",
            )
        if reasons:
            leaked[name] = reasons
            logger.warning("%s: possibly in-sample: %s", name, "; ".join(reasons))
    return leaked


def note_on_lone_member(logits: Logits, labels: Integers, groups: Integers, seed: int) -> dict[str, str]:
    """Return what the temperature of the only member gives away, {} if nothing; it is also logged as a warning.

    Args:
        logits: member -> (n, 2, 3); of several members none is noted.
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.
        seed: draws ``MAX_ROWS`` of the rows where there are more.
    """
    if len(logits) != 1:
        return {}
    rows = _drawn_rows(len(labels), seed)
    ((name, values),) = logits.items()
    temperature, error = temperature_with_error(log_softmax(mean_of_orders(values[rows])), labels[rows], groups[rows])
    if temperature + 2 * error >= SHARP:
        return {}
    note = f"{_sharpened(temperature, error)}; there is no other member to compare its log loss with"
    logger.warning("%s: check that its logits are out of fold: %s", name, note)
    return {name: note}


def _drawn_rows(n: int, seed: int) -> NDArray[np.int64]:
    if n <= MAX_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MAX_ROWS, replace=False))


def _sharpened(temperature: float, error: float) -> str:
    return (
        f"its best temperature is {temperature:.2f} (standard error {error:.2f}, limit {SHARP:g}): it is right more "
        "often than its probabilities say, as on battles that it was trained on"
    )


def temperature_with_error(logp: NDArray[np.float64], labels: Integers, groups: Integers) -> tuple[float, float]:
    """Return the temperature that minimises the log loss, and its standard error by groups; infinite if undefined.

    Both are 0 where the largest logit is always the label's.

    Args:
        logp: (n, 3) log-probabilities.
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.

    Source: of the error, Cameron & Miller, A practitioner's guide to cluster-robust inference, 2015, section II.
    """
    of_labels = logp[np.arange(len(labels)), labels]
    if (of_labels == logp.max(axis=1)).all():  # it names every label: the sharper, the better
        return 0.0, 0.0
    weight = float(fit_pool(logp[:, None], labels, tie=False)[0])
    if weight <= 0:
        return float("inf"), float("inf")
    probs = np.exp(log_softmax(weight * logp))
    mean = (probs * logp).sum(axis=1)
    slopes = mean - of_labels
    curvature = float((probs * (logp - mean[:, None]) ** 2).sum())
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.bincount(unit, slopes)
    if len(sums) < 2 or curvature == 0:
        return 1 / weight, float("inf")
    error = float(error_of_group_sums(np.square(sums).sum(), len(sums), curvature))
    return 1 / weight, error / weight**2  # the temperature is 1 / weight


def _scaled_loss(single: Pool, labels: Integers) -> float:
    """Return the mean log loss of one member, (n, 1, 3), after a temperature is fitted to it."""
    return float(pool_losses(single, labels, fit_pool(single, labels, tie=False)).mean())


def _vanishing_gain(without: Pool, pool: Pool, labels: Integers, folds: Integers, margin: float) -> list[str]:
    """Return the reason, if on some fold the gain of pooling with one more member vanishes, or nothing."""
    for k in np.unique(folds):
        rest, held = folds != k, folds == k
        if not rest.any():
            continue
        full, fewer = fit_pool(pool[rest], labels[rest]), fit_pool(without[rest], labels[rest])
        gains = [
            pool_losses(without[rows], labels[rows], fewer) - pool_losses(pool[rows], labels[rows], full)
            for rows in (rest, held)
        ]
        promised, kept = (float(gain.mean()) for gain in gains)
        error = float(gains[1].std() / np.sqrt(len(gains[1])))
        if promised > margin and kept <= 0 and promised - kept > ERRORS * error:
            return [f"weights of the other folds promise {promised:.3f} nats by it, but fold {k} gains {kept:.3f}"]
    return []
