"""Stage two's core: tune, stack and calibrate inside each outer fold, then once more on everything.

For outer fold k the study, the boosters, their number of rounds and the calibrator see the other folds only; the
calibrator is fitted on the *inner* out-of-fold logits of the best trial. So no label of fold k reaches its own
prediction in this stage.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ensemble.calibrate import Calibrator, fit_calibrator
from ensemble.combiners import length_only_probs, mean_logits, prior_probs
from ensemble.design import Design
from ensemble.stacker import Stacker, fit_stacker
from ensemble.tuning import Tuned, tune
from oof import store
from oof.config import Stack
from oof.errors import UserError
from oof.metrics import softmax

Integers = NDArray[np.integer[Any]]
CROSS_FITTED = ("prior", "length_only", "mean", "stack", "calibrated", "teacher")


@dataclass
class StackResult:
    """What stage two leaves.

    Attributes:
        predictions: name -> (n, 3) cross-fitted probabilities: prior, length_only, mean (nothing fitted), stack,
            calibrated, and teacher (calibrated without the first-shown term).
        stacker: the final stacker, tuned and trained on all battles; ``calibrator`` likewise.
        folds: per outer fold the calibrator, the parameters and the rounds.
    """

    predictions: dict[str, NDArray[np.float64]]
    stacker: Stacker
    calibrator: Calibrator
    folds: list[dict[str, Any]] = field(default_factory=list)

    def predict(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) calibrated probabilities of battles that were never in the run."""
        return self.calibrator.apply(self.stacker.logits(design))

    def facts(self) -> dict[str, Any]:
        """Return what the manifest and the report say."""
        sampler = {"sampler": "TPE, multivariate", "optuna": metadata.version("optuna")}
        return {"calibrator": self.calibrator.to_dict(), "folds": self.folds, "tuning": sampler}

    def save(self, folder: Path) -> None:
        """Save the final stack: boosters as text, the rest as JSON."""
        self.stacker.save(folder)
        store.write_json(folder / "calibrator.json", self.calibrator.to_dict())

    @classmethod
    def load(cls, folder: Path) -> StackResult:
        calibrator = Calibrator(**store.read_json(folder / "calibrator.json"))
        return cls({}, Stacker.load(folder), calibrator)


def cross_fit(
    design: Design, labels: Integers, folds: Integers, groups: Integers, config: Stack, seed: int, studies: Path
) -> StackResult:
    """Return cross-fitted predictions of every battle and the final stack.

    Args:
        design: (n) scored battles.
        labels: (n,) in {0, 1, 2}.
        folds: (n,) 0..k-1, those of stage one.
        groups: (n,).
        config: trials, rounds, order, calibrator.
        seed: of tuning and boosting.
        studies: folder of the Optuna journals (k + 1 files), kept between attempts.

    Raises:
        UserError: fewer than two folds.
    """
    outer = np.unique(folds)
    if len(outer) < 2:
        raise UserError(f"stacking needs battles in at least 2 folds, not {len(outer)}")
    out = {name: np.full((len(labels), 3), np.nan) for name in CROSS_FITTED}
    out["mean"] = softmax(mean_logits(design))
    facts: list[dict[str, Any]] = []
    bar = tqdm(total=len(outer) + 1, desc="stack", disable=not sys.stderr.isatty(), leave=False)

    def fit(rows: NDArray[np.int64], name: str) -> tuple[Stacker, Calibrator, Tuned]:
        part, y, g = design.take(rows), labels[rows], groups[rows]
        tuned = tune(part, y, folds[rows], g, config.trials, config.rounds, seed, studies / f"{name}.log")
        stacker = fit_stacker(part, y, tuned.params, tuned.rounds, seed)
        calibrator = fit_calibrator(config.calibrator, config.order, tuned.logits, y, g, seed)
        bar.update(1)
        return stacker, calibrator, tuned

    for fold in outer:
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        unseen = design.take(held)
        stacker, calibrator, tuned = fit(rest, f"fold-{fold}")
        logits = stacker.logits(unseen)
        out["prior"][held] = prior_probs(labels[rest], len(held))
        out["length_only"][held] = length_only_probs(design.take(rest), labels[rest], unseen)
        out["stack"][held] = softmax(logits)
        out["calibrated"][held] = calibrator.apply(logits)
        out["teacher"][held] = calibrator.apply_symmetric(logits)
        facts.append({"fold": int(fold), **calibrator.to_dict(), "rounds": tuned.rounds, "params": tuned.params})
    stacker, calibrator, _ = fit(np.arange(len(labels)), "final")
    bar.close()
    return StackResult(out, stacker, calibrator, facts)
