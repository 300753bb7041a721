"""All combiners by name, from simple to complex, and the rule that chooses among them.

The rule is "one standard error": the simplest whose loss is within one standard error of the best one's. The error is
that of the paired difference, summed by group, for battles that are hard for one combiner are hard for the other.

Source: Breiman, Friedman, Olshen & Stone, Classification and Regression Trees, 1984, section 3.4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.combiners import FILE, Combiner, LogPool, Mean, fit_log_pool
from ensemble.stacking.greedy import Greedy, fit_greedy
from ensemble.stacking.lightgbm_stacker import Stacker
from ensemble.stacking.logistic import Logistic, fit_logistic
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.metrics import row_log_loss, softmax

Integers = NDArray[np.integer[Any]]

# name -> fit(design, labels); LightGBM, the last and most complex, is fitted with the tuned parameters
SIMPLE: dict[str, Callable[[Design, Integers], Combiner]] = {
    "mean": lambda design, labels: Mean(),
    "log_pool": fit_log_pool,
    "greedy": fit_greedy,
    "logistic": fit_logistic,
}
KINDS = (*SIMPLE, "lightgbm")


def load_combiner(folder: Path) -> Combiner:
    """Return the combiner that was saved in ``folder``.

    Raises:
        UserError: its kind is unknown.
    """
    saved = read_json(folder / FILE)
    kind = saved.pop("kind", None)
    if kind == "mean":
        return Mean()
    if kind == "log_pool":
        return LogPool(tuple(saved["weights"]), saved["tie"])
    if kind == "greedy":
        return Greedy(tuple(saved["counts"]))
    if kind == "logistic":
        coef = tuple(tuple(row) for row in saved["coef"])
        features, mean, scale, intercept = (tuple(saved[k]) for k in ("features", "mean", "scale", "intercept"))
        return Logistic(features, mean, scale, coef, intercept)
    if kind == "lightgbm":
        return Stacker.load(folder)
    raise UserError(f"{folder / FILE}: unknown combiner {kind!r}; run 'make stack' with this RUN again")


def out_of_fold(kind: str, design: Design, labels: Integers, folds: Integers) -> NDArray[np.float64]:
    """Return (n, 3) logits of each row by a simple combiner that was fitted on the other folds."""
    logits = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        logits[held] = SIMPLE[kind](design.take(rest), labels[rest]).logits(design.take(held))
    return logits


@dataclass(frozen=True)
class Choice:
    """The chosen combiner, and why in words."""

    kind: str
    reason: str


def choose(setting: str, logits: dict[str, NDArray[np.float64]], labels: Integers, groups: Integers) -> Choice:
    """Return which combiner to use.

    Args:
        setting: "auto", "best" (the smallest loss, however close the others come) or the name of a combiner.
        logits: name -> (n, 3) out-of-fold logits of the same rows.
        labels: (n,).
        groups: (n,).
    """
    if setting not in ("auto", "best"):
        return Choice(setting, f"stack.final={setting}")
    losses = {kind: row_log_loss(softmax(logits[kind]), labels) for kind in KINDS}
    best = min(KINDS, key=lambda kind: float(losses[kind].mean()))
    if setting == "best":
        return Choice(best, f"{best} has the smallest loss ({losses[best].mean():.4f})")
    for kind in KINDS:
        loss = losses[kind] - losses[best]
        error = standard_error(loss, groups)
        if kind == best:
            return Choice(kind, f"{kind} has the smallest loss ({losses[kind].mean():.4f}), none simpler comes near it")
        if loss.mean() <= error:
            return Choice(
                kind,
                f"{kind} ({losses[kind].mean():.4f}) is the simplest within one standard error ({error:.4f}) of the "
                f"best, {best} ({losses[best].mean():.4f})",
            )
    raise AssertionError("the best is among them")


def standard_error(values: NDArray[np.float64], groups: Integers) -> float:
    """Return the standard error of the mean of (n,) values whose rows are independent between groups only."""
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.bincount(unit, values - values.mean())
    k = len(sums)
    return float(np.sqrt(np.square(sums).sum() * k / max(k - 1, 1)) / len(values))
