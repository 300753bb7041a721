"""Multinomial logistic regression on the members' logits and the length features.

Trained on every battle and its mirror image, and averaged over both, so exchanging A and B exchanges the output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ensemble.features.design_matrix import Design
from ensemble.stacking.combiners import checked_pool, doubled, write_parameters
from oof.classes import swap_classes
from oof.common.errors import UserError

FAMILY = "lengths"  # the features beside the logits; all of them are LightGBM's business
STRENGTH = 0.01  # scikit-learn's C: matters with few rows only, where 1.0 could be worse than the members alone
ABSENT = -20.0  # logit of a class that never occurred

Integers = NDArray[np.integer[Any]]
Nested = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Logistic:
    """Standardised inputs ``(x - mean) / scale``, then ``coef`` (3, d) and ``intercept`` (3,)."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coef: Nested
    intercept: tuple[float, ...]
    kind: ClassVar[str] = "logistic"

    def logits(self, design: Design) -> NDArray[np.float64]:
        given, swapped = (
            ((x - np.array(self.mean)) / np.array(self.scale)) @ np.array(self.coef).T + np.array(self.intercept)
            for x in _inputs(design, self.features)
        )
        return np.asarray((given + swap_classes(swapped)) / 2)

    def save(self, folder: Path) -> None:
        write_parameters(folder, self.kind, asdict(self))


def fit_logistic(design: Design, labels: Integers) -> Logistic:
    """Return the regression on all rows; a class that never occurs keeps a probability near zero.

    Raises:
        UserError: a logit or a length feature is not finite.
    """
    features = tuple(design.names[i] for i in design.columns(FAMILY))
    x, y = doubled(*_inputs(design, features), labels)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, 1.0)
    coef, intercept = np.zeros((3, x.shape[1])), np.full(3, ABSENT)
    present = np.unique(y)
    if len(present) == 1:
        intercept[present] = 0.0
    else:
        model = LogisticRegression(C=STRENGTH, max_iter=1000).fit((x - mean) / scale, y)
        if len(present) == 2:  # scikit-learn keeps one row of two: the log odds of the second class
            coef[present], intercept[present] = np.vstack([-model.coef_, model.coef_]) / 2, 0.0
            intercept[present] += np.array([-1, 1]) * model.intercept_[0] / 2
        else:
            coef, intercept = model.coef_, model.intercept_
    rows = tuple(tuple(float(v) for v in row) for row in coef)
    return Logistic(features, _floats(mean), _floats(scale), rows, _floats(intercept))


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _inputs(design: Design, features: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (n, 3m + d) inputs of the battles and of their mirror images."""
    absent = [name for name in features if name not in design.names]
    if absent:
        raise UserError(f"the stack was fitted with the feature {absent[0]!r}, which these battles lack")
    columns, pool = [design.names.index(name) for name in features], checked_pool(design)
    out = []
    for x, z in ((design.x, pool), (design.x_swapped, swap_classes(pool))):
        values = x[:, columns].astype(np.float64)
        if not np.isfinite(values).all():
            name = features[int((~np.isfinite(values)).any(axis=0).argmax())]
            raise UserError(f"feature {name!r}: some values are not finite; the logistic combiner cannot use it")
        out.append(np.concatenate([z.reshape(len(z), -1), values], axis=1))
    return out[0], out[1]
