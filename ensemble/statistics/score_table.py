"""Scores of every predictor with intervals, and all paired differences: ``RUN/stack/scores.json``.

Every score is a function of sums over rows (of losses, hits, gaps of calibration bins), so one set of resamples serves
all: every predictor is scored on the same draws, and a resample is one matrix product.

**Calibration errors** are binned (15 bins of equal mass) and therefore biased: even a perfect model has one above 0.
Each is therefore reported with ``expected_if_calibrated``, its mean when labels are drawn from these very
probabilities, and ``upper_if_calibrated``, the 95 % point of the same draws: a value below is no evidence of
miscalibration. A resample has the same bias once more, so the interval is moved back by it (mean of the draws minus
the value) and cut at 0.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 3 (top-label error); Kull et al.,
Beyond temperature scaling, NeurIPS 2019, section 2 (class-wise error); Bröcker & Smith, Increasing the Reliability of
Reliability Diagrams, 2007 (consistency resampling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.binning import equal_mass_bins
from ensemble.statistics.resamples import SHARED_RESAMPLES, Resamples
from ensemble.statistics.scores import CALIBRATION_BINS, hit_credits, row_scores
from ensemble.statistics.standard_errors import LEVEL
from oof.classes import TIE, classes_of_data
from oof.metrics import CLIP, Floats, Integers

SIMULATED = 20_000_000  # rows drawn in all to find a calibrated model's calibration error; 20 to 200 draws of the table


def score_table(
    predictions: Mapping[str, Floats],
    labels: Integers,
    groups: Integers,
    seed: int,
    resamples: int = SHARED_RESAMPLES,
) -> dict[str, Any]:
    """Return the content of ``scores.json``.

    Args:
        predictions: predictor -> (n, 3) probabilities of (a, b, tie).
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.
        seed: of the bootstrap and of the simulated labels.
        resamples: bootstrap draws.

    Returns:
        ``predictors``: name -> metric -> {value, low, high}, null where no such battle exists; ``paired``: for each
        pair {first, second} and metric the interval of first minus second. Where no battle is a tie and no predictor
        expects one, there are no metrics of ties.
    """
    resampled = Resamples.draw(groups, seed, resamples)
    probs = {name: np.asarray(p, np.float64) for name, p in predictions.items()}
    classes = classes_of_data(bool((labels == TIE).any() or any((p[:, TIE] > CLIP).any() for p in probs.values())))
    predictors = {name: _scores(p, labels, resampled, seed, classes) for name, p in probs.items()}
    rows = {name: row_scores(probs, labels) for name, probs in predictions.items()}
    paired = [
        {"first": one, "second": other}
        | {metric: resampled.mean(values - rows[other][metric]) for metric, values in rows[one].items()}
        for one, other in combinations(predictions, 2)
    ]
    return {
        "n": len(labels),
        "groups": len(np.unique(groups)),
        "level": LEVEL,
        "resamples": resamples,
        "bins": CALIBRATION_BINS,
        "predictors": predictors,
        "paired": paired,
    }


def _scores(
    probs: NDArray[np.float64], labels: Integers, resampled: Resamples, seed: int, classes: Sequence[str]
) -> dict[str, Any]:
    rows, ties = row_scores(probs, labels), labels == TIE
    intervals: dict[str, Any] = {name: resampled.mean(values) for name, values in rows.items()}
    by_class = {name: labels == c for c, name in enumerate(classes)}
    intervals |= {f"log_loss_of_{name}": resampled.mean(rows["log_loss"], at) for name, at in by_class.items()}
    intervals |= {f"recall_of_{name}": resampled.mean(rows["accuracy"], at) for name, at in by_class.items()}
    if len(classes) > TIE:
        intervals["log_loss_of_decided"] = resampled.mean(rows["log_loss"], ~ties)
        intervals["mean_probability_of_tie_minus_share"] = resampled.mean(probs[:, TIE] - ties)
    return intervals | _calibration_errors(probs, labels, resampled, seed, classes)


def _calibration_errors(
    probs: NDArray[np.float64], labels: Integers, resampled: Resamples, seed: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return the top-label error, that of each class, and the class-wise error, their mean."""
    confidence, credits = probs.max(axis=1), hit_credits(probs)
    forecasts = {"top_label": confidence} | {name: probs[:, c] for c, name in enumerate(names)}
    bins = {name: equal_mass_bins(values, CALIBRATION_BINS) for name, values in forecasts.items()}
    n = resampled.sums(np.ones(len(labels)))

    def outcomes(classes: Integers) -> dict[str, NDArray[np.float64]]:
        hits = credits[np.arange(len(classes)), classes]
        return {"top_label": hits} | {name: (classes == c).astype(np.float64) for c, name in enumerate(names)}

    observed = outcomes(labels)
    errors = {
        name: np.abs(resampled.binned_sums(observed[name] - values, bins[name], CALIBRATION_BINS)).sum(axis=1) / n
        for name, values in forecasts.items()
    }
    rng, cumulative = np.random.default_rng(seed), probs.cumsum(axis=1)[:, :2] / probs.sum(axis=1, keepdims=True)
    draws: dict[str, list[float]] = {name: [] for name in forecasts}
    for _ in range(int(np.clip(SIMULATED / len(labels), 20, 200))):
        drawn = outcomes((rng.random((len(labels), 1)) > cumulative).sum(axis=1))
        for name, values in forecasts.items():
            gaps = np.bincount(bins[name], drawn[name] - values, minlength=CALIBRATION_BINS)
            draws[name].append(float(np.abs(gaps).sum() / len(labels)))
    simulated = {name: np.array(values) for name, values in draws.items()}
    errors["class_wise"] = np.mean([errors[name] for name in names], axis=0)
    simulated["class_wise"] = np.mean([simulated[name] for name in names], axis=0)
    return {
        f"{name}_calibration_error": {
            **resampled.calibration_error(errors[name]),
            "expected_if_calibrated": float(simulated[name].mean()),
            "upper_if_calibrated": float(np.quantile(simulated[name], LEVEL)),
        }
        for name in errors
    }
