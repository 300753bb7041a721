"""Calibrators of three-class logits: a temperature or vector scaling, with or without one explicit first-shown term.

``probs = softmax(z / T * (1, 1, s) + (0, 0, b) + c * (+1, -1, 0))`` for centred logits z: T scales confidence, s and b
(vector scaling only) treat the tie apart, c is the advantage of the response that was shown first. Vector scaling in
general would treat A and B apart too; here they share scale and bias, so c is the only place where A and B may
differ, and it is reported.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from oof.common.errors import UserError
from oof.metrics import log_softmax, row_log_loss, softmax

logger = logging.getLogger(__name__)

LOG_T_BOUND = np.log(50.0)
LOG_SCALE_BOUND = np.log(20.0)  # of the tie's scale beside that of A and B
FIRST_SHOWN = np.array([1.0, -1.0, 0.0])
SHARES = 5  # of the rows, in the cross-validation that decides on the first-shown term

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


class InSampleError(UserError):
    """The logits separate the verdicts as no held-out logits do."""


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibrator; ``Calibrator()`` is the identity."""

    temperature: float = 1.0
    first_shown: float = 0.0
    tie_scale: float = 1.0
    tie_bias: float = 0.0

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Return (n, 3) probabilities of (n, 3) logits in canonical class order."""
        return softmax(self._symmetric(logits) + self.first_shown * FIRST_SHOWN)

    def apply_symmetric(self, logits: Floats) -> NDArray[np.float64]:
        """Return the probabilities without the first-shown term."""
        return softmax(self._symmetric(logits))

    def _symmetric(self, logits: Floats) -> NDArray[np.float64]:
        z = np.asarray(logits, dtype=np.float64)
        z = (z - z.mean(axis=1, keepdims=True)) / self.temperature
        return np.asarray(z * np.array([1.0, 1.0, self.tie_scale]) + np.array([0.0, 0.0, self.tie_bias]))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Return T > 0 that minimises the log loss of ``softmax(logits / T)``.

    Args:
        logits: (n, 3) held-out logits in class order (a, b, tie), never of rows the model was trained on.
        labels: (n,) integers in {0, 1, 2}.

    Raises:
        UserError: a logit is not finite.
        InSampleError: T lands on its lower bound. At the upper bound the logits are worthless, which is a warning.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    z, rows = _checked(logits), np.arange(len(labels))

    def loss(log_t: float) -> float:
        return float(-log_softmax(z / np.exp(log_t))[rows, labels].mean())

    # Over log T: convex in 1/T, and one step means the same ratio everywhere.
    found = minimize_scalar(loss, bounds=(-LOG_T_BOUND, LOG_T_BOUND), method="bounded", options={"xatol": 1e-8})
    if found.x < 1e-3 - LOG_T_BOUND:
        raise InSampleError(
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
    return _fit("temperature", True, logits, labels)


def fit_vector(logits: Floats, labels: Integers) -> Calibrator:
    """Return T, s and b that minimise the log loss together.

    Source: Guo et al. 2017, section 4.2 (vector scaling), with one scale and bias for both responses.
    """
    return _fit("vector", False, logits, labels)


def _fit(kind: str, first_shown: bool, logits: Floats, labels: Integers) -> Calibrator:
    temperature = fit_temperature(logits, labels)
    if kind == "temperature" and not first_shown:
        return Calibrator(temperature)
    z, rows = _checked(logits), np.arange(len(labels))
    z = z - z.mean(axis=1, keepdims=True)
    vector = 1.0 if kind == "vector" else 0.0

    def unpack(free: NDArray[np.float64]) -> Calibrator:
        log_t, log_s, bias, c = (float(value) for value in free)
        return Calibrator(float(np.exp(log_t)), c, float(np.exp(log_s)), bias)

    def loss(free: NDArray[np.float64]) -> float:
        made = unpack(free)
        logits = made._symmetric(z) + made.first_shown * FIRST_SHOWN
        return float(-log_softmax(logits)[rows, labels].mean())

    limits = np.array([LOG_T_BOUND, vector * LOG_SCALE_BOUND, vector * 5.0, 5.0 * first_shown])
    start = np.array([np.log(temperature), 0.0, 0.0, 0.0])
    found = minimize(loss, start, method="L-BFGS-B", bounds=list(zip(-limits, limits, strict=True)))
    return unpack(found.x)


def fit_calibrator(kind: str, order: str, logits: Floats, labels: Integers, groups: Integers, seed: int) -> Calibrator:
    """Fit the configured calibrator on held-out logits.

    A fit that is worse than the identity on its own rows is refused: the identity is returned, with a warning. So it
    is where the logits look in-sample: no temperature can be told from them, and the members that are to blame are
    named elsewhere (:mod:`ensemble.stacking.leakage`).

    Args:
        kind: "temperature", "vector" or "none".
        order: "symmetric" (no first-shown term), "position" (always one), or "auto": one if its gain in log loss,
            cross-validated over groups within these rows, exceeds its standard error.
        logits: (n, 3) held-out logits.
        labels: (n,).
        groups: (n,).
        seed: of the split that "auto" uses.

    Raises:
        UserError: a logit is not finite.
    """
    if kind == "none":
        _checked(logits)
        return Calibrator()
    try:
        first_shown = order == "position" or (order == "auto" and _first_shown_pays(kind, logits, labels, groups, seed))
        fitted = _fit(kind, first_shown, logits, labels)
    except InSampleError as error:
        logger.warning("%s; nothing is calibrated", error)
        return Calibrator()
    return refuse_worse(fitted, logits, labels)


def refuse_worse(fitted: Calibrator, logits: Floats, labels: Integers) -> Calibrator:
    """Return ``fitted``, or the identity where that has a smaller log loss on the rows of the fit."""
    ours, plain = (float(row_log_loss(c.apply(logits), labels).mean()) for c in (fitted, Calibrator()))
    if ours <= plain + 1e-7:
        return fitted
    logger.warning("the calibrator fits its own rows worse than none (%.4f, %.4f): it is left out", ours, plain)
    return Calibrator()


def _first_shown_pays(kind: str, logits: Floats, labels: Integers, groups: Integers, seed: int) -> bool:
    _, unit = np.unique(groups, return_inverse=True)
    share = np.random.default_rng(seed).integers(SHARES, size=int(unit.max()) + 1)[unit]
    gain = np.zeros(len(labels))
    for k in range(SHARES):
        inside, outside = share != k, share == k
        if not outside.any() or not inside.any():
            return False
        plain, modelled = (_fit(kind, term, logits[inside], labels[inside]) for term in (False, True))
        held = logits[outside], labels[outside]
        gain[outside] = row_log_loss(plain.apply(held[0]), held[1]) - row_log_loss(modelled.apply(held[0]), held[1])
    sums = np.bincount(unit, gain)
    return bool(sums.sum() > np.sqrt(len(sums)) * sums.std())


def _checked(logits: Floats) -> NDArray[np.float64]:
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise UserError(f"{int((~np.isfinite(z)).any(axis=1).sum())} rows have logits that are not finite")
    return z
