"""Choice among all combiners, and their files.

The rule is "one standard error": the simplest combiner whose loss is within one standard error of the best one's. The
error is that of the paired difference, summed by group, because battles that are hard for one combiner are hard for
the other.

Source: Breiman, Friedman, Olshen & Stone, Classification and Regression Trees, 1984, section 3.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.combiners import COMBINERS, FILE, Combiner
from ensemble.stacking.lightgbm_stacker import Stacker
from ensemble.statistics.standard_errors import standard_error
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.metrics import Integers, row_log_loss, softmax

KINDS = (*COMBINERS, Stacker.kind)  # from simple to complex
RULES = ("auto", "best")  # values of stack.final beside the names of combiners


def load_combiner(folder: Path) -> Combiner:
    """Return the combiner that was saved in ``folder``.

    Raises:
        UserError: its kind is unknown.
    """
    kind = read_json(folder / FILE).get("kind")
    if kind not in KINDS:
        raise UserError(f"{folder / FILE}: unknown combiner {kind!r}; run 'make stack' with this RUN again")
    return Stacker.load(folder) if kind == Stacker.kind else COMBINERS[kind].load(folder)


def out_of_fold(kind: str, design: Design, labels: Integers, folds: Integers) -> NDArray[np.float64]:
    """Return (n, 3) logits of each row by an untuned combiner that was fitted on the other folds."""
    logits = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        logits[held] = COMBINERS[kind].fit(design.take(rest), labels[rest]).logits(design.take(held))
    return logits


@dataclass(frozen=True)
class Choice:
    """The chosen combiner, and the reason in words."""

    kind: str
    reason: str


def choose(setting: str, logits: dict[str, NDArray[np.float64]], labels: Integers, groups: Integers) -> Choice:
    """Return which combiner to use.

    Args:
        setting: "auto" (the one-standard-error rule), "best" (the smallest loss, however close the others are) or the
            name of a combiner.
        logits: name -> (n, 3) out-of-fold logits of the same rows.
        labels: (n,).
        groups: (n,).
    """
    if setting not in RULES:
        return Choice(setting, f"stack.final={setting}")
    losses = {kind: row_log_loss(softmax(logits[kind]), labels) for kind in KINDS}
    best = min(KINDS, key=lambda kind: float(losses[kind].mean()))
    if setting == "best":
        return Choice(best, f"{best} has the smallest loss ({losses[best].mean():.4f})")
    for kind in KINDS[: KINDS.index(best)]:
        difference = losses[kind] - losses[best]
        error = standard_error(difference, groups)
        if difference.mean() <= error:
            return Choice(
                kind,
                f"{kind} ({losses[kind].mean():.4f}) is the simplest within one standard error ({error:.4f}) of the "
                f"best, {best} ({losses[best].mean():.4f})",
            )
    return Choice(best, f"{best} has the smallest loss ({losses[best].mean():.4f}), none simpler comes near it")
