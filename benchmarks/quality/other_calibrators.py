"""Calibrators of probmetrics after the best single member: structured vector and matrix scaling.

    python -m benchmarks.quality.other_calibrators battles.npz probabilities.npz [MORE PAIRS]

``benchmarks/quality/choice.py`` writes the battles and starts this script in the environment that has probmetrics, so
it imports numpy and probmetrics alone. For each outer fold, the member with the smallest log loss on the other folds is
calibrated on them, and the fold's probabilities are written: ``svs`` and ``sms``.

Source: Berta, Holzmüller, Jordan & Bach, Structured Matrix Scaling for Multi-Class Calibration, 2025 (probmetrics).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def calibrated(pool: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Return each calibrator's (n, 3) probabilities from the (n, m, 3) logits of m members."""
    from probmetrics.calibrators import get_calibrator

    exponentials = np.exp(pool - pool.max(axis=2, keepdims=True))
    probs = exponentials / exponentials.sum(axis=2, keepdims=True)
    result = {name: np.empty((len(labels), 3)) for name in ("svs", "sms")}
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        losses = -np.log(probs[rest, :, labels[rest]]).mean(axis=0)
        best = int(losses.argmin())
        for name, values in result.items():
            model = get_calibrator(name)
            model.fit(probs[rest, best], labels[rest])
            values[held] = model.predict_proba(probs[held, best])
    return result


def main() -> int:
    paths = [Path(path) for path in sys.argv[1:]]
    for battles, out in zip(paths[::2], paths[1::2], strict=True):
        data = np.load(battles)
        np.savez(out, **calibrated(data["pool"], data["labels"], data["folds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
