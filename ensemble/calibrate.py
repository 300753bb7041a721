"""Calibrators of three-class logits: a temperature, with or without one explicit first-shown term.

``probs = softmax(logits / T + c * (+1, -1, 0))``: T scales confidence, c is the advantage of the response that was
shown first. c is the only place where A and B may differ, and it is reported.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from oof.errors import UserError
from oof.metrics import log_softmax, row_log_loss, softmax

logger = logging.getLogger(__name__)

LOG_T_BOUND = np.log(50.0)
FIRST_SHOWN = np.array([1.0, -1.0, 0.0])
SHARES = 5  # of the rows, in the cross-validation that decides on the first-shown term

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibrator; ``Calibrator()`` is the identity."""

    temperature: float = 1.0
    first_shown: float = 0.0

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Return (n, 3) probabilities of (n, 3) logits in canonical class order."""
        return softmax(logits / self.temperature + self.first_shown * FIRST_SHOWN)

    def apply_symmetric(self, logits: Floats) -> NDArray[np.float64]:
        """Return the probabilities without the first-shown term."""
        return softmax(logits / self.temperature)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Return T > 0 that minimises the log loss of ``softmax(logits / T)``.

    Args:
        logits: (n, 3) held-out logits in class order (a, b, tie), never of rows the model was trained on.
        labels: (n,) integers in {0, 1, 2}.

    Raises:
        UserError: a logit is not finite, or T lands on its lower bound (these are not held-out logits).
            At the upper bound the logits are worthless, which is a warning.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    z, rows = _checked(logits), np.arange(len(labels))

    def loss(log_t: float) -> float:
        return float(-log_softmax(z / np.exp(log_t))[rows, labels].mean())

    # Over log T: convex in 1/T, and one step means the same ratio everywhere.
    found = minimize_scalar(loss, bounds=(-LOG_T_BOUND, LOG_T_BOUND), method="bounded", options={"xatol": 1e-8})
    if found.x < 1e-3 - LOG_T_BOUND:
        raise UserError(
            f"the temperature runs to its lower bound ({np.exp(found.x):.2g}): these do not look like held-out "
            "logits; were in-sample predictions given?"
        )
    if found.x > LOG_T_BOUND - 1e-3:
        logger.warning(
            "the logits say nothing about the labels of %d held-out battles (temperature at its bound)", len(z)
        )
    return float(np.exp(found.x))


def fit_first_shown(logits: Floats, labels: Integers) -> Calibrator:
    """Return T and c that minimise the log loss together."""
    z, rows = _checked(logits), np.arange(len(labels))

    def loss(parameters: NDArray[np.float64]) -> float:
        log_t, c = parameters
        return float(-log_softmax(z / np.exp(log_t) + c * FIRST_SHOWN)[rows, labels].mean())

    start = np.array([np.log(fit_temperature(z, labels)), 0.0])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-LOG_T_BOUND, LOG_T_BOUND), (-5.0, 5.0)])
    return Calibrator(float(np.exp(found.x[0])), float(found.x[1]))


def fit_calibrator(kind: str, order: str, logits: Floats, labels: Integers, groups: Integers, seed: int) -> Calibrator:
    """Fit the configured calibrator on held-out logits.

    Args:
        kind: "temperature" or "none".
        order: "symmetric" (no first-shown term), "position" (always one), or "auto": one if its gain in log loss,
            cross-validated over groups within these rows, exceeds its standard error.
        logits: (n, 3) held-out logits.
        labels: (n,).
        groups: (n,).
        seed: of the split that "auto" uses.
    """
    if kind == "none":
        return Calibrator()
    plain = Calibrator(fit_temperature(logits, labels))
    if order == "symmetric":
        return plain
    if order == "auto" and not _first_shown_pays(logits, labels, groups, seed):
        return plain
    return fit_first_shown(logits, labels)


def _first_shown_pays(logits: Floats, labels: Integers, groups: Integers, seed: int) -> bool:
    _, unit = np.unique(groups, return_inverse=True)
    share = np.random.default_rng(seed).integers(SHARES, size=int(unit.max()) + 1)[unit]
    gain = np.zeros(len(labels))
    for k in range(SHARES):
        inside, outside = share != k, share == k
        if not outside.any() or not inside.any():
            return False
        plain = Calibrator(fit_temperature(logits[inside], labels[inside]))
        modelled = fit_first_shown(logits[inside], labels[inside])
        held = logits[outside], labels[outside]
        gain[outside] = row_log_loss(plain.apply(held[0]), held[1]) - row_log_loss(modelled.apply(held[0]), held[1])
    sums = np.bincount(unit, gain)
    return bool(sums.sum() > np.sqrt(len(sums)) * sums.std())


def _checked(logits: Floats) -> NDArray[np.float64]:
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise UserError(f"{int((~np.isfinite(z)).any(axis=1).sum())} rows have logits that are not finite")
    return z
