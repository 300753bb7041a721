"""Members that are possibly in-sample: the classic way to fool a stacker, and how it shows without the recipe.

A member that was trained on battles whose logits it then gives looks far better than it is. Two signs, each a reason
to look again and neither a proof (a 70B model among 1B ones shows the first, rightly):

* **margin**: after a temperature of its own (a badly scaled rival is no evidence) its log loss beats that of every
  other member by more than ``margin`` nats;
* **re-weighting**: log-pool weights with and without the member, fitted on all folds but one, promise there an
  advantage of more than ``margin`` nats, and on the held-out fold there is none (<= 0, and short of the promise by
  four standard errors). An honest member is worth about the same in each fold; one that has seen some folds and
  not others is not.

A member that has seen *all* folds shows the first sign alone: its logits are as good a lie in one fold as in another.
Of 30 synthetic pairs of honest, equally good members none was named with 300 or 2,000 battles; with 60, six were, by
the first sign: so few battles cannot tell a lead of 0.05 nats from luck.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from oof.metrics import log_softmax, mean_of_orders

logger = logging.getLogger(__name__)

ROWS = 20_000  # of these the signs are clear; more would only take longer
ERRORS = 4.0  # standard errors by which the held-out gain must fall short of the promise: small folds are noisy

Integers = NDArray[np.integer[Any]]


def possibly_in_sample(
    logits: dict[str, NDArray[np.floating]], labels: Integers, folds: Integers, margin: float, seed: int
) -> dict[str, list[str]]:
    """Return the members that show a sign, each with its reasons; they are also logged as warnings.

    Args:
        logits: member -> (n, 2, 3).
        labels: (n,) in {0, 1, 2}.
        folds: (n,).
        margin: nats, ``stack.in_sample_margin``.
        seed: draws 20,000 of the rows where there are more.
    """
    rows = np.arange(len(labels))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, ROWS, replace=False))
    pool = np.stack([log_softmax(mean_of_orders(z[rows])) for z in logits.values()], axis=1)
    y, fold = labels[rows], folds[rows]
    found: dict[str, list[str]] = {name: [] for name in logits}
    if len(logits) > 1:
        single = [pool[:, [i]] for i in range(len(logits))]
        losses = [float(_losses(one, y, _weights(one, y, tie=False)).mean()) for one in single]
        for i, name in enumerate(logits):
            lead = min(losses[:i] + losses[i + 1 :]) - losses[i]
            if lead > margin:
                found[name].append(f"its log loss beats every other member's by {lead:.3f} nats (margin {margin:g})")
            found[name] += _vanishing(np.delete(pool, i, axis=1), pool, y, fold, margin)
    found = {name: reasons for name, reasons in found.items() if reasons}
    for name, reasons in found.items():
        logger.warning("%s: possibly in-sample: %s", name, "; ".join(reasons))
    return found


def _vanishing(
    without: NDArray[np.float64], pool: NDArray[np.float64], labels: Integers, folds: Integers, margin: float
) -> list[str]:
    for k in np.unique(folds):
        rest, held = folds != k, folds == k
        if not rest.any():
            continue
        weights, fewer = _weights(pool[rest], labels[rest]), _weights(without[rest], labels[rest])
        promised = float(
            (_losses(without[rest], labels[rest], fewer) - _losses(pool[rest], labels[rest], weights)).mean()
        )
        gains = _losses(without[held], labels[held], fewer) - _losses(pool[held], labels[held], weights)
        kept, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
        if promised > margin and kept <= 0 and promised - kept > ERRORS * error:
            return [f"weights of the other folds promise {promised:.3f} nats by it, but fold {k} gains {kept:.3f}"]
    return []


def _losses(pool: NDArray[np.float64], labels: Integers, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = np.einsum("nmc,m->nc", pool, parameters[:-1])
    logits[:, 2] += parameters[-1]
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def _weights(pool: NDArray[np.float64], labels: Integers, tie: bool = True) -> NDArray[np.float64]:
    """Return (m + 1,): the weights of a log-pool of (n, m, 3) log-probabilities and its tie term, fitted."""
    m = pool.shape[1]
    target = np.eye(3)[labels]
    free = m + 1 if tie else m

    def loss(given: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = np.append(given, np.zeros(m + 1 - free))
        logits = np.einsum("nmc,m->nc", pool, parameters[:-1])
        logits[:, 2] += parameters[-1]
        logp = log_softmax(logits)
        error = np.exp(logp) - target
        slope = np.append(np.einsum("nc,nmc->m", error, pool), error[:, 2].sum()) / len(labels)
        return float(-(logp * target).sum() / len(labels)), slope[:free]

    start = np.append(np.full(m, 1.0 / m), np.zeros(free - m))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-50.0, 50.0)] * free).x
    return np.append(found, np.zeros(m + 1 - free))
