"""Calibrators of three-class logits: temperature or vector scaling, with or without a position bias.

``probs = softmax(z / T * (1, 1, s) + (0, 0, b) + c * (+1, -1, 0))`` for centred logits z: T scales confidence, s and b
(vector scaling only) treat the tie apart, and c is the position bias, the advantage of the response that is shown
first. Vector scaling in general would treat A and B apart too; here they share scale and bias, so c is the only place
where A and B may differ, and it is reported.

A new calibrator is one function with the signature of :func:`fit_temperature_scaling`, listed in ``CALIBRATORS`` and in
the choices of ``stack.calibrator``; the suite in ``tests/ensemble/stacking/test_calibration.py`` then runs on it. A
calibrator with more parameters adds fields to :class:`Calibrator` whose defaults change nothing, so that saved
calibrators stay readable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from oof.common.errors import UserError
from oof.metrics import Floats, Integers, log_softmax, row_log_loss, softmax

logger = logging.getLogger(__name__)

LOG_T_BOUND = np.log(50.0)
LOG_SCALE_BOUND = np.log(20.0)  # of the tie's scale beside that of A and B
BIAS_BOUND = 5.0  # of the tie's bias and of the position bias
POSITION = np.array([1.0, -1.0, 0.0])  # direction of the position bias
BIAS_FOLDS = 5  # of the cross-validation that decides on the position bias


class InSampleError(UserError):
    """The logits separate the labels as no held-out logits do."""


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibrator; ``Calibrator()`` is the identity."""

    temperature: float = 1.0
    position_bias: float = 0.0
    tie_scale: float = 1.0
    tie_bias: float = 0.0

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Return (n, 3) probabilities of (n, 3) logits in class order."""
        return softmax(self.calibrated(logits))

    def apply_symmetric(self, logits: Floats) -> NDArray[np.float64]:
        """Return the (n, 3) probabilities without the position bias."""
        return softmax(self._symmetric(logits))

    def calibrated(self, logits: Floats) -> NDArray[np.float64]:
        """Return the (n, 3) calibrated logits."""
        return self._symmetric(logits) + self.position_bias * POSITION

    def _symmetric(self, logits: Floats) -> NDArray[np.float64]:
        z = np.asarray(logits, dtype=np.float64)
        z = (z - z.mean(axis=1, keepdims=True)) / self.temperature
        return np.asarray(z * np.array([1.0, 1.0, self.tie_scale]) + np.array([0.0, 0.0, self.tie_bias]))

    def to_dict(self) -> dict[str, float]:
        """Return the parameters by their names in files, where the position bias is ``first_shown``."""
        return {
            "temperature": self.temperature,
            "first_shown": self.position_bias,
            "tie_scale": self.tie_scale,
            "tie_bias": self.tie_bias,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, float]) -> Self:
        """Return the calibrator of :meth:`to_dict`; a parameter that is missing has its default."""
        return cls(**{"position_bias" if name == "first_shown" else name: value for name, value in saved.items()})


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
    z, rows = finite_logits(logits), np.arange(len(labels))

    def loss(log_t: float) -> float:
        return float(-log_softmax(z / np.exp(log_t))[rows, labels].mean())

    # Over log T: convex in 1/T, and one step means the same ratio everywhere.
    optimum = minimize_scalar(loss, bounds=(-LOG_T_BOUND, LOG_T_BOUND), method="bounded", options={"xatol": 1e-8})
    if optimum.x < 1e-3 - LOG_T_BOUND:
        raise InSampleError(
            f"the temperature runs to its lower bound ({np.exp(optimum.x):.2g}): these do not look like held-out "
            "logits; were in-sample predictions given?"
        )
    if optimum.x > LOG_T_BOUND - 1e-3:
        logger.warning("the logits say nothing about the labels of the held-out battles (temperature at its bound)")
    return float(np.exp(optimum.x))


def fit_temperature_scaling(logits: Floats, labels: Integers, position_bias: bool) -> Calibrator:
    """Return the calibrator with T, and with ``position_bias`` also c, that minimises the log loss.

    Args:
        logits: (n, 3) held-out logits in class order.
        labels: (n,) in {0, 1, 2}.
        position_bias: whether c is fitted too.

    Raises:
        UserError: a logit is not finite.
        InSampleError: T lands on its lower bound.
    """
    if not position_bias:
        return Calibrator(fit_temperature(logits, labels))
    return _minimise_log_loss(logits, labels, tie=False, position_bias=True)


def fit_vector_scaling(logits: Floats, labels: Integers, position_bias: bool) -> Calibrator:
    """Return the calibrator with T, s and b, and with ``position_bias`` also c, that minimises the log loss.

    Arguments and errors are those of :func:`fit_temperature_scaling`.

    Source: Guo et al. 2017, section 4.2 (vector scaling), with one scale and bias for both responses.
    """
    return _minimise_log_loss(logits, labels, tie=True, position_bias=position_bias)


def no_calibration(logits: Floats, labels: Integers, position_bias: bool) -> Calibrator:
    """Return the identity. Raises: UserError: a logit is not finite."""
    finite_logits(logits)
    return Calibrator()


CALIBRATORS: dict[str, Callable[[Floats, Integers, bool], Calibrator]] = {
    "temperature": fit_temperature_scaling,
    "vector": fit_vector_scaling,
    "none": no_calibration,
}


def fit_calibrator(kind: str, order: str, logits: Floats, labels: Integers, groups: Integers, seed: int) -> Calibrator:
    """Fit the configured calibrator on held-out logits.

    A fit that is worse than the identity on its own rows is refused: the identity is returned, with a warning. The same
    happens where the logits look in-sample: no temperature can be fitted to them, and
    :mod:`ensemble.stacking.leakage` names the members that are possibly leaked.

    Args:
        kind: a name in ``CALIBRATORS``.
        order: "symmetric" (no position bias), "position" (always with one), or "auto": with one if its gain in log
            loss, cross-validated over groups within these rows, exceeds its standard error.
        logits: (n, 3) held-out logits.
        labels: (n,).
        groups: (n,).
        seed: of the split that "auto" uses.

    Raises:
        UserError: a logit is not finite.
    """
    fit = CALIBRATORS[kind]
    try:
        biased = order == "position" or (order == "auto" and _position_bias_pays(fit, logits, labels, groups, seed))
        fitted = fit(logits, labels, biased)
    except InSampleError as error:
        logger.warning("%s; nothing is calibrated", error)
        return Calibrator()
    return identity_if_better(fitted, logits, labels)


def identity_if_better(fitted: Calibrator, logits: Floats, labels: Integers) -> Calibrator:
    """Return ``fitted``, or the identity where that has a smaller log loss on the rows of the fit."""
    ours, plain = (float(row_log_loss(c.apply(logits), labels).mean()) for c in (fitted, Calibrator()))
    if ours <= plain + 1e-7:
        return fitted
    logger.warning("the calibrator fits its own rows worse than none (%.4f, %.4f): it is left out", ours, plain)
    return Calibrator()


def finite_logits(logits: Floats) -> NDArray[np.float64]:
    """Return (n, 3) logits as float64. Raises: UserError: some are not finite."""
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise UserError(f"{int((~np.isfinite(z)).any(axis=1).sum())} rows have logits that are not finite")
    return z


def _minimise_log_loss(logits: Floats, labels: Integers, tie: bool, position_bias: bool) -> Calibrator:
    """Return the calibrator with the smallest log loss; without ``tie`` s = 1 and b = 0, without a bias c = 0."""
    temperature = fit_temperature(logits, labels)
    z, rows = finite_logits(logits), np.arange(len(labels))
    z = z - z.mean(axis=1, keepdims=True)

    def calibrator(parameters: NDArray[np.float64]) -> Calibrator:
        log_t, log_s, bias, c = (float(value) for value in parameters)
        return Calibrator(float(np.exp(log_t)), c, float(np.exp(log_s)), bias)

    def loss(parameters: NDArray[np.float64]) -> float:
        return float(-log_softmax(calibrator(parameters).calibrated(z))[rows, labels].mean())

    limits = np.array([LOG_T_BOUND, tie * LOG_SCALE_BOUND, tie * BIAS_BOUND, position_bias * BIAS_BOUND])
    start = np.array([np.log(temperature), 0.0, 0.0, 0.0])
    optimum = minimize(loss, start, method="L-BFGS-B", bounds=list(zip(-limits, limits, strict=True)))
    return calibrator(optimum.x)


def _position_bias_pays(
    fit: Callable[[Floats, Integers, bool], Calibrator],
    logits: Floats,
    labels: Integers,
    groups: Integers,
    seed: int,
) -> bool:
    """Return whether the cross-validated gain of a position bias exceeds its standard error."""
    _, unit = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(seed).integers(BIAS_FOLDS, size=int(unit.max()) + 1)[unit]
    gain = np.zeros(len(labels))
    for k in range(BIAS_FOLDS):
        train, held = fold != k, fold == k
        if not held.any() or not train.any():
            return False
        plain, biased = (
            row_log_loss(fit(logits[train], labels[train], bias).apply(logits[held]), labels[held])
            for bias in (False, True)
        )
        gain[held] = plain - biased
    sums = np.bincount(unit, gain)
    return bool(sums.sum() > np.sqrt(len(sums)) * sums.std())
