"""How good is each predictor, how sure is that, and which differences are real: ``RUN/stack/scores.json``.

Everything is a function of sums over rows (a loss, a hit, the gap of a calibration bin), so one group bootstrap serves
all: groups are drawn with replacement, every predictor is scored on the same draws, and a resample is one matrix
product. Differences are paired by construction.

**Calibration errors** are binned (15 bins of equal mass) and therefore biased: even a perfect model has one above 0.
So each stands beside ``expected_if_calibrated``, its mean when verdicts are drawn from these very probabilities, and
``upper_if_calibrated``, the 95 % point of the same draws: a value below is no evidence of miscalibration. A resample
has the same bias once more, so the interval is moved back by it (mean of the draws minus the value) and cut at 0.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 3 (top-label error); Kull et al.,
Beyond temperature scaling, NeurIPS 2019, section 2 (class-wise error); Bröcker & Smith, Increasing the Reliability of
Reliability Diagrams, 2007 (consistency resampling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oof.classes import CLASSES
from oof.metrics import MAX_UNITS, equal_mass_bins, row_log_loss

RESAMPLES = 1000
BINS = 15
LEVEL = 0.95
SIMULATED = 20_000_000  # rows drawn in all to find a calibrated model's calibration error; 20 to 200 draws of the table
COMPARED = ("log_loss", "accuracy", "brier")

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Interval = dict[str, float | None]


@dataclass(frozen=True)
class Resamples:
    """Bootstrap draws of groups: ``unit`` (n,) is each row's unit, ``counts`` (r, units) how often it was drawn."""

    unit: NDArray[np.int64]
    counts: NDArray[np.float64]

    @classmethod
    def draw(cls, groups: Integers, seed: int, resamples: int = RESAMPLES) -> Resamples:
        """Draw whole groups; above 5,000 of them random bundles, as :func:`oof.metrics.group_interval` does."""
        rng = np.random.default_rng(seed)
        _, unit = np.unique(groups, return_inverse=True)
        n = int(unit.max()) + 1
        if n > MAX_UNITS:
            unit, n = rng.permutation(n)[unit] % MAX_UNITS, MAX_UNITS
        drawn = rng.integers(n, size=(resamples, n)) + np.arange(resamples)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
        return cls(unit, counts.astype(np.float64))

    def sums(self, values: Floats) -> NDArray[np.float64]:
        """Return (1 + r,) sums of (n,) values: over the rows as they are, then over each resample."""
        per_unit = np.bincount(self.unit, values, minlength=self.counts.shape[1])
        return np.append(per_unit.sum(), self.counts @ per_unit)

    def binned(self, values: Floats, bins: Integers, n_bins: int) -> NDArray[np.float64]:
        """Return (1 + r, n_bins): the same, bin by bin."""
        width = self.counts.shape[1]
        per_unit = np.bincount(self.unit * n_bins + bins, values, minlength=width * n_bins).reshape(width, n_bins)
        return np.concatenate([per_unit.sum(axis=0, keepdims=True), self.counts @ per_unit])

    def interval(self, series: NDArray[np.float64], biased: bool = False) -> Interval | None:
        """Return value, low and high of (1 + r,) values, the first over the rows as they are; None if undefined."""
        value, draws = float(series[0]), series[1:][np.isfinite(series[1:])]
        if not np.isfinite(value):
            return None
        if self.counts.shape[1] < 2 or not len(draws):
            return {"value": value, "low": None, "high": None}
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        shift = float(draws.mean()) - value if biased else 0.0
        low, high = low - shift, high - shift
        return {"value": value, "low": max(low, 0.0) if biased else float(low), "high": float(high)}


def score_table(
    predictions: Mapping[str, Floats], labels: Integers, groups: Integers, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return the content of ``scores.json``.

    Args:
        predictions: predictor -> (n, 3) probabilities of (a, b, tie).
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that are not independent of each other.
        seed: of the bootstrap and of the simulated verdicts.
        resamples: bootstrap draws.

    Returns:
        ``predictors``: name -> metric -> {value, low, high}, null where no such battle exists; ``paired``: for each
        pair {first, second} and metric the interval of first minus second.
    """
    resampled = Resamples.draw(groups, seed, resamples)
    predictors = {name: _scores(np.asarray(p, np.float64), labels, resampled, seed) for name, p in predictions.items()}
    rows = {name: row_scores(np.asarray(p, dtype=np.float64), labels) for name, p in predictions.items()}
    n = resampled.sums(np.ones(len(labels)))
    paired = [
        {"first": one, "second": other}
        | {
            metric: resampled.interval(resampled.sums(rows[one][metric] - rows[other][metric]) / n)
            for metric in COMPARED
        }
        for one, other in combinations(predictions, 2)
    ]
    facts = {"n": len(labels), "groups": len(np.unique(groups)), "level": LEVEL, "resamples": resamples, "bins": BINS}
    return {**facts, "predictors": predictors, "paired": paired}


def row_scores(probs: NDArray[np.float64], labels: Integers) -> dict[str, NDArray[np.float64]]:
    """Return (n,) log losses in nats, hits (a shared maximum counts in equal parts) and Brier scores in 0..2."""
    squares = ((probs - np.eye(3)[labels]) ** 2).sum(axis=1)
    return {
        "log_loss": row_log_loss(probs, labels),
        "accuracy": _credit(probs)[np.arange(len(labels)), labels],
        "brier": squares,
    }


def _credit(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 3): what each verdict would count as a hit."""
    top = probs == probs.max(axis=1, keepdims=True)
    return np.asarray(top / top.sum(axis=1, keepdims=True))


def _scores(probs: NDArray[np.float64], labels: Integers, resampled: Resamples, seed: int) -> dict[str, Any]:
    rows, n = row_scores(probs, labels), resampled.sums(np.ones(len(labels)))

    def mean(values: Floats, where: NDArray[np.bool_] | None = None) -> Interval | None:
        if where is None:
            return resampled.interval(resampled.sums(values) / n)
        with np.errstate(invalid="ignore", divide="ignore"):
            return resampled.interval(resampled.sums(values * where) / resampled.sums(where.astype(np.float64)))

    ties = labels == 2
    found: dict[str, Any] = {name: mean(values) for name, values in rows.items()}
    found |= {f"log_loss_of_{name}": mean(rows["log_loss"], labels == c) for c, name in enumerate(CLASSES)}
    found["log_loss_of_decided"] = mean(rows["log_loss"], ~ties)
    found |= {f"recall_of_{name}": mean(rows["accuracy"], labels == c) for c, name in enumerate(CLASSES)}
    found["mean_probability_of_tie_minus_share"] = mean(probs[:, 2] - ties)
    return found | _calibration(probs, labels, resampled, seed)


def _calibration(probs: NDArray[np.float64], labels: Integers, resampled: Resamples, seed: int) -> dict[str, Any]:
    """Return the top-label error, each class's own, and the class-wise error, their mean."""
    confidence, credit = probs.max(axis=1), _credit(probs)
    forecasts = {"top_label": confidence} | {name: probs[:, c] for c, name in enumerate(CLASSES)}
    bins = {name: equal_mass_bins(values, BINS) for name, values in forecasts.items()}
    n = resampled.sums(np.ones(len(labels)))

    def outcomes(verdicts: Integers) -> dict[str, NDArray[np.float64]]:
        hits = credit[np.arange(len(verdicts)), verdicts]
        return {"top_label": hits} | {name: (verdicts == c).astype(np.float64) for c, name in enumerate(CLASSES)}

    seen = outcomes(labels)
    errors = {
        name: np.abs(resampled.binned(seen[name] - values, bins[name], BINS)).sum(axis=1) / n
        for name, values in forecasts.items()
    }
    rng, cumulative = np.random.default_rng(seed), probs.cumsum(axis=1)[:, :2] / probs.sum(axis=1, keepdims=True)
    draws: dict[str, list[float]] = {name: [] for name in forecasts}
    for _ in range(int(np.clip(SIMULATED / len(labels), 20, 200))):
        drawn = outcomes((rng.random((len(labels), 1)) > cumulative).sum(axis=1))
        for name, values in forecasts.items():
            gaps = np.bincount(bins[name], drawn[name] - values, minlength=BINS)
            draws[name].append(float(np.abs(gaps).sum() / len(labels)))
    simulated = {name: np.array(values) for name, values in draws.items()}
    errors["class_wise"] = np.mean([errors[name] for name in CLASSES], axis=0)
    simulated["class_wise"] = np.mean([simulated[name] for name in CLASSES], axis=0)
    return {
        f"{name}_calibration_error": _beside(resampled.interval(errors[name], True), simulated[name]) for name in errors
    }


def _beside(interval: Interval | None, simulated: NDArray[np.float64]) -> dict[str, float | None]:
    expected = {"expected_if_calibrated": float(simulated.mean())}
    return {**(interval or {}), **expected, "upper_if_calibrated": float(np.quantile(simulated, LEVEL))}
