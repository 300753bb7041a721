"""Temperature scaling of one model's logits: ``from ensemble import Temperature``."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy import float64
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from ensemble.stacking.arrays import classes_of, single_logits
from ensemble.stacking.calibration import Calibrator, fit_temperature_scaling


class Temperature(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Divides logits by one number, which makes their probabilities as confident as they are right.

    Fit it on held-out logits: on those of the training data it would see a model that is never wrong. Probabilities
    become logits by their logarithm.

    Attributes:
        temperature_: T > 0; above 1 the model was too confident. Few battles or groups are little evidence, and leave
            it near 1 (:mod:`ensemble.statistics.shrinkage`).

    Example:
        >>> temperature = Temperature().fit(logits, labels)
        >>> temperature.apply(new_logits)

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """

    def fit(self, logits: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Set T to the value with the smallest log loss, moved towards 1 where the groups are little evidence for it.

        Args:
            logits: (n, 3) held-out logits in the order (a, b, tie), or (n, 2, 3) in both orders, of which the mean
                counts; an array or a data frame.
            labels: (n,) 0 (A wins), 1 (B wins), 2 (tie), or "a", "b", "tie".
            groups: (n,) battles that are not independent of each other, such as those of one prompt; without groups
                each battle is one.

        Raises:
            InputError: shapes or labels do not fit, or a logit is not finite.
            InSampleError: the logits separate the labels as no held-out logits do.
        """
        values, (classes, _) = single_logits(logits), classes_of(column_or_1d(labels))
        check_consistent_length(values, classes)
        units = np.arange(len(classes)) if groups is None else column_or_1d(groups)
        check_consistent_length(values, units)
        self.temperature_ = fit_temperature_scaling(values, classes, units).temperature
        return self

    def apply(self, logits: ArrayLike) -> NDArray[float64]:
        """Return the (n, 3) calibrated probabilities of logits as in :meth:`fit`."""
        check_is_fitted(self)
        return Calibrator(self.temperature_).apply(single_logits(logits))
