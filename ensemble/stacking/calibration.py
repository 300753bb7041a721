"""Calibrators of three-class logits, shrunk to the identity: one temperature, or scales for the tie and the sides, too.

``probs = softmax(log_softmax(z) / T * (r, 1 / r, s) + (c, -c, b))`` for logits z of (a, b, tie): T scales confidence, s
and b treat the tie apart. c and r are the asymmetric terms: the bias and the scale of the response that is shown first.
They are the only place where A and B may differ, and they are reported. Scales are of log-probabilities: where the
classes have different scales, it matters which number all logits of a row share.

The terms are fitted in blocks, T, then (T, s, b), then the asymmetric ones, each from the values of those before it,
from which it is moved only as far as the evidence goes (:mod:`ensemble.statistics.shrinkage`): what few groups suggest
is mostly noise, and a calibrator of noise is worse than none.

A new calibrator is one function with the signature of :func:`fit_temperature_scaling`, listed in ``CALIBRATORS`` and in
the choices of ``stack.calibrator``; the suite in ``tests/ensemble/stacking/test_calibration.py`` then runs on it. A
calibrator with more parameters adds fields to :class:`Calibrator` whose defaults change nothing, so that saved
calibrators stay readable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.stacking.calibration_fit import (
    POSITION,
    POSITION_BIAS,
    TEMPERATURE,
    TEMPERATURE_AND_TIE,
    Block,
    InSampleError,
    finite_logits,
    fit_blocks,
)
from ensemble.statistics.standard_errors import standard_error
from oof.classes import TIE as TIE_CLASS
from oof.classes import with_tie, without_ties
from oof.metrics import Floats, Integers, log_softmax, row_log_loss, softmax

logger = logging.getLogger(__name__)

NAMES_IN_FILES = {"position_bias": "first_shown", "position_scale": "first_shown_scale"}
ASYMMETRY_FOLDS = 5  # of the cross-validation that decides on the asymmetric terms


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibrator; ``Calibrator()`` is the identity.

    Attributes:
        temperature: T.
        position_bias: c, added to the logit of the response shown first and subtracted from the other's.
        tie_scale: s.
        tie_bias: b.
        position_scale: r, by which the log-probability of the response shown first is multiplied and the other's
            divided.
        without_ties: whether it was fitted on models of two classes, whose tie stays pinned.
    """

    temperature: float = 1.0
    position_bias: float = 0.0
    tie_scale: float = 1.0
    tie_bias: float = 0.0
    position_scale: float = 1.0
    without_ties: bool = False

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Return (n, 3) probabilities of (n, 3) logits in class order."""
        return softmax(self.calibrated(logits))

    def symmetric(self) -> Calibrator:
        """Return the calibrator without the asymmetric terms."""
        return replace(self, position_bias=0.0, position_scale=1.0)

    def calibrated(self, logits: Floats) -> NDArray[np.float64]:
        """Return the (n, 3) calibrated logits."""
        scales = np.array([self.position_scale, 1 / self.position_scale, self.tie_scale])
        biases = np.array([self.position_bias, -self.position_bias, self.tie_bias])
        calibrated = log_softmax(logits) / self.temperature * scales + biases
        return with_tie(calibrated[..., :TIE_CLASS]) if self.without_ties else calibrated

    def to_dict(self) -> dict[str, float]:
        """Return the parameters by their names in files, where the asymmetric terms are those of ``first_shown``."""
        return {NAMES_IN_FILES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return the calibrator of :meth:`to_dict`; a parameter that is missing has its default."""
        names = {theirs: ours for ours, theirs in NAMES_IN_FILES.items()}
        return cls(**{names.get(name, name): value for name, value in saved.items()})


def shrunk_temperature(logits: Floats, labels: Integers, groups: Integers) -> float:
    """Return T > 0 that minimises the log loss of ``softmax(logits / T)``, shrunk to 1 by its standard error by groups.

    Arguments are those of :func:`fit_temperature_scaling`. The temperature is 1 where the logits separate the labels,
    with a warning.

    Raises:
        UserError: a logit is not finite.
    """
    try:
        return _calibrator(logits, labels, groups, [TEMPERATURE]).temperature
    except InSampleError as error:
        logger.warning("%s; the temperature stays 1", error)
        return 1.0


def fit_temperature_scaling(logits: Floats, labels: Integers, groups: Integers) -> Calibrator:
    """Return the calibrator with T, and with c as its asymmetric term.

    The asymmetric terms are fitted last and do not change the others: a caller who wants none drops them.

    Args:
        logits: (n, 3) held-out logits in class order.
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.

    Raises:
        UserError: a logit is not finite.
        InSampleError: T lands on its lower bound.
    """
    return _calibrator(logits, labels, groups, [TEMPERATURE, POSITION_BIAS])


def fit_vector_scaling(logits: Floats, labels: Integers, groups: Integers) -> Calibrator:
    """Return the calibrator with T, s and b, and with c and r as its asymmetric terms.

    Arguments and errors are those of :func:`fit_temperature_scaling`.

    Source: Guo et al. 2017, section 4.2 (vector scaling); Berta et al., Structured matrix scaling for multi-class
    calibration, 2026 (log-probabilities, temperature first, shrinkage of the rest).
    """
    return _calibrator(logits, labels, groups, [TEMPERATURE, TEMPERATURE_AND_TIE, POSITION])


def no_calibration(logits: Floats, labels: Integers, groups: Integers) -> Calibrator:
    """Return the identity. Raises: UserError: a logit is not finite."""
    return Calibrator(without_ties=without_ties(finite_logits(logits)))


CALIBRATORS: dict[str, Callable[[Floats, Integers, Integers], Calibrator]] = {
    "temperature": fit_temperature_scaling,
    "vector": fit_vector_scaling,
    "none": no_calibration,
}


def fit_calibrator(
    kind: str, order: str, logits: Floats, labels: Integers, groups: Integers, seed: int, one_order: bool = False
) -> Calibrator:
    """Fit the configured calibrator on held-out logits.

    A fit that is worse than the identity on its own rows is refused: the identity is returned, with a warning. The same
    happens where the logits look in-sample: no temperature can be fitted to them, and
    :mod:`ensemble.stacking.leakage` names the members that are possibly leaked.

    Args:
        kind: a name in ``CALIBRATORS``.
        order: of the asymmetric terms: "symmetric" (none), "position" (always fitted), or "auto": fitted with
            ``one_order``, and else if their gain in log loss, cross-validated over groups within these rows, exceeds
            its standard error.
        logits: (n, 3) held-out logits.
        labels: (n,).
        groups: (n,).
        seed: of the split that "auto" uses.
        one_order: whether the members scored the battles in the given order only, so that their own position bias is
            still in the logits.

    Raises:
        UserError: a logit is not finite.
    """
    fit = CALIBRATORS[kind]
    try:
        fitted = fit(logits, labels, groups)
    except InSampleError as error:
        logger.warning("%s; nothing is calibrated", error)
        return Calibrator()
    plain = fitted.symmetric()
    if fitted != plain and order != "position" and not (order == "auto" and one_order):
        fitted = fitted if order == "auto" and _asymmetry_pays(fit, logits, labels, groups, seed) else plain
    return identity_if_better(fitted, logits, labels)


def identity_if_better(fitted: Calibrator, logits: Floats, labels: Integers) -> Calibrator:
    """Return ``fitted``, or the identity where that has a smaller log loss on the rows of the fit."""
    ours, plain = (float(row_log_loss(c.apply(logits), labels).mean()) for c in (fitted, Calibrator()))
    if ours <= plain + 1e-7:
        return fitted
    logger.warning("the calibrator fits its own rows worse than none (%.4f, %.4f): it is left out", ours, plain)
    return Calibrator()


def _calibrator(logits: Floats, labels: Integers, groups: Integers, blocks: Sequence[Block]) -> Calibrator:
    log_t, log_s, b, c, log_r = fit_blocks(logits, labels, groups, blocks).tolist()
    return Calibrator(
        temperature=float(np.exp(log_t)),
        position_bias=c,
        tie_scale=float(np.exp(log_s)),
        tie_bias=b,
        position_scale=float(np.exp(log_r)),
        without_ties=without_ties(np.asarray(logits)),
    )


def _asymmetry_pays(
    fit: Callable[[Floats, Integers, Integers], Calibrator],
    logits: Floats,
    labels: Integers,
    groups: Integers,
    seed: int,
) -> bool:
    """Return whether the cross-validated gain of the asymmetric terms exceeds its standard error."""
    _, unit = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(seed).integers(ASYMMETRY_FOLDS, size=int(unit.max()) + 1)[unit]
    gain = np.zeros(len(labels))
    for k in range(ASYMMETRY_FOLDS):
        train, held = fold != k, fold == k
        if not held.any() or not train.any():
            return False
        try:
            fitted = fit(logits[train], labels[train], groups[train])
        except InSampleError:  # of a part of the rows; the fit on all decides
            return False
        plain, asymmetric = (row_log_loss(c.apply(logits[held]), labels[held]) for c in (fitted.symmetric(), fitted))
        gain[held] = plain - asymmetric
    return bool(gain.mean() > standard_error(gain, groups))
