"""Abstention of a student: thresholds and ranges of its training battles, stored as ``abstention.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.abstention.thresholds import GRID, LEVELS, Thresholds, confidence
from ensemble.abstention.training_ranges import TrainingRanges
from oof.common.atomic_files import read_json, sealed, write_json
from oof.common.errors import UserError
from oof.metrics import Floats

ABSTENTION = "abstention.json"
REMEDY = "run 'make distill' with its RUN again, which trains nothing"


@dataclass(frozen=True)
class Abstention:
    """When a student gives no verdict."""

    thresholds: Thresholds
    ranges: TrainingRanges

    def answered(self, probs: Floats, max_error: float) -> NDArray[np.bool_]:
        """Return (n,) whether a judge with (n, 3) probabilities answers at an error rate of ``max_error``.

        Raises:
            UserError: ``max_error`` is no share.
        """
        threshold = self.thresholds.at(checked_level(max_error))
        return confidence(probs) >= (np.inf if threshold is None else threshold)

    def write(self, folder: Path) -> None:
        """Write ``abstention.json``."""
        counts = self.thresholds
        content = {
            "delta": counts.delta,
            "groups": counts.groups,
            "grid": GRID.tolist(),
            "answered": counts.answered.tolist(),
            "wrong": counts.wrong.tolist(),
            "thresholds": _by_level(counts),
            "training": asdict(self.ranges),
        }
        write_json(folder / ABSTENTION, sealed(content))

    @classmethod
    def read(cls, folder: Path) -> Abstention:
        """Read ``abstention.json``.

        Raises:
            UserError: the folder has none, or it is damaged or of another version.
        """
        path = folder / ABSTENTION
        if not path.is_file():
            raise UserError(f"{path}: missing, so max_error cannot be kept; {REMEDY}")
        content = read_json(path)
        try:
            answered, wrong = (np.array(content[name], dtype=np.int64) for name in ("answered", "wrong"))
            thresholds = Thresholds(answered, wrong, float(content["delta"]))
            if content["grid"] != GRID.tolist() or answered.shape != GRID.shape or wrong.shape != GRID.shape:
                raise ValueError("another grid of thresholds")
            if content["thresholds"] != _by_level(thresholds) or content["groups"] != thresholds.groups:
                raise ValueError("its thresholds are not those of its counts")
            return cls(thresholds, TrainingRanges(**content["training"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not as this version writes it ({error}); delete it and {REMEDY}") from error


def checked_level(max_error: float) -> float:
    """Return ``max_error``.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if isinstance(max_error, bool) or not isinstance(max_error, int | float) or not 0 < max_error < 1:
        raise UserError(f"max_error={max_error!r}: give the share of wrong verdicts, between 0 and 1, such as 0.2")
    return float(max_error)


def _by_level(thresholds: Thresholds) -> dict[str, float | None]:
    return {f"{level:g}": thresholds.at(level) for level in LEVELS}
