"""Table of ``benchmarks/quality/peers.py``: losses of ours and of other libraries' judges, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from benchmarks.common import cell
from benchmarks.speed.synthetic_arena import probabilities
from ensemble.distillation.plan import cross_fitted_temperature
from ensemble.stacking.baselines import prior_probs
from oof.metrics import row_log_loss, softmax

PEER, REWARDS = "pairjudge", "reward-trainer"
TITLES = {
    "prior": "class shares",
    "member": "ours: member",
    "stack": "ours: stack",
    "student": "ours: student",
    "pairjudge": "pairjudge",
    "pairjudge-lr": "pairjudge, our learning rate",
    "pairjudge-layout": "pairjudge, our template",
    REWARDS: "RewardTrainer, tie threshold",
}
LOG_SCALE, LOG_THRESHOLD = (-7.0, 5.0), (-7.0, 3.0)  # bounds of the fit
TINY = 1e-15

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def fit_ties(margins: Floats, labels: Integers, scaled: bool) -> tuple[float, float]:
    """Return the scale (1 unless ``scaled``) and the threshold of the smallest log loss on (n,) battles.

    A response wins where its reward is larger by more than the threshold; else it is a tie.
    Source: Rao & Kupper, Ties in paired-comparison experiments, 1967.
    """

    def loss(logs: Floats) -> float:
        scale, threshold = np.exp([logs[0] if scaled else 0.0, logs[-1]])
        return float(row_log_loss(probabilities(scale * margins, threshold), labels).mean())

    bounds = [LOG_SCALE, LOG_THRESHOLD] if scaled else [LOG_THRESHOLD]
    fit = optimize.minimize(loss, np.full(len(bounds), -0.5), method="L-BFGS-B", bounds=bounds)
    scale, threshold = np.exp([fit.x[0] if scaled else 0.0, fit.x[-1]])
    return float(scale), float(threshold)


def cross_fitted_ties(margins: Floats, labels: Integers, folds: Integers, scaled: bool) -> Floats:
    """Return (n, 3) probabilities; those of a fold by the threshold of the other folds' battles, out of fold, too."""
    probs = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        scale, threshold = fit_ties(margins[rest], labels[rest], scaled)
        probs[held] = probabilities(scale * margins[held], threshold)
    return probs


def class_shares(labels: Integers, folds: Integers) -> Floats:
    """Return (n, 3) shares of the classes in the other folds, as stage two's prior counts them."""
    probs = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        held = folds == fold
        probs[held] = prior_probs(labels[~held], int(held.sum()))
    return probs


@dataclass(frozen=True)
class Scored:
    """Battles of the folds that every contender has finished, with the probabilities of each contender.

    Attributes:
        labels: (n,) classes.
        folds: (n,) fold numbers, at least two of them.
        groups: (n,) groups of near-duplicate prompts.
        plain: contender -> (n, 3) probabilities as they are.
        calibrated: contender -> (n, 3) probabilities, calibrated by the other folds.
        costs: contender -> facts of its folds.
        problems: contender -> why it lacks folds.
    """

    labels: Integers
    folds: Integers
    groups: Integers
    plain: dict[str, Floats] = field(default_factory=dict)
    calibrated: dict[str, Floats] = field(default_factory=dict)
    costs: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def add_logits(self, name: str, logits: NDArray[np.floating]) -> None:
        """Add a contender by its (n, 2, 3) logits of both orders, which are averaged."""
        mean = logits.astype(np.float64).mean(axis=1)
        self.plain[name] = softmax(mean)
        self.calibrated[name] = self._at_temperature(mean)

    def add_probs(self, name: str, probs: NDArray[np.floating]) -> None:
        """Add a contender by its (n, 2, 3) probabilities of both orders, which are averaged."""
        mean = probs.astype(np.float64).mean(axis=1)
        self.plain[name] = mean / mean.sum(axis=1, keepdims=True)
        self.calibrated[name] = self._at_temperature(np.log(np.maximum(self.plain[name], TINY)))

    def add_rewards(self, name: str, rewards: NDArray[np.floating]) -> None:
        """Add a contender by the (n, 2) rewards of the two responses."""
        margins = rewards[:, 0].astype(np.float64) - rewards[:, 1]
        self.plain[name] = cross_fitted_ties(margins, self.labels, self.folds, scaled=False)
        self.calibrated[name] = cross_fitted_ties(margins, self.labels, self.folds, scaled=True)

    def add_calibrated(self, name: str, probs: Floats) -> None:
        """Add a contender by (n, 3) probabilities that are calibrated already."""
        self.plain[name] = self.calibrated[name] = probs

    def _at_temperature(self, logits: Floats) -> Floats:
        return cross_fitted_temperature(logits, self.labels, self.folds, self.groups)[0]


def total(costs: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the sum of a fact over folds; NaN where a fold lacks it, or there is none."""
    return float(sum(cost.get(name, np.nan) for cost in costs)) if costs else float("nan")


def train_rate(costs: Sequence[Mapping[str, Any]], epochs: float) -> float:
    """Return the battles that are trained on in a second, each counted once in an epoch."""
    return total(costs, "trained") * epochs / total(costs, "train_seconds")


def score_rate(costs: Sequence[Mapping[str, Any]]) -> float:
    """Return the battles that are scored in a second, in both orders."""
    return total(costs, "scored") / total(costs, "score_seconds")


def table(scored: Scored, epochs: float) -> list[str]:
    """Return the Markdown table, a line for each contender; differences are its loss minus pairjudge's."""
    head = ["", "log loss", f"minus {PEER}", "calibrated", f"minus {PEER}", "accuracy"]
    head += ["steps", "trained/s", "scored/s", "CPU s", "peak GB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, title in TITLES.items():
        if name not in scored.plain:
            continue
        cells = [title, *losses(scored, scored.plain, name), *losses(scored, scored.calibrated, name)]
        cells.append(f"{(scored.plain[name].argmax(axis=1) == scored.labels).mean():.1%}")
        costs = scored.costs.get(name, ())
        peak = max((cost.get("peak_gb", np.nan) for cost in costs), default=np.nan)
        rates = [number(rate, ".2f") for rate in (train_rate(costs, epochs), score_rate(costs))]
        cells += [number(total(costs, "steps"), ",.0f"), *rates]
        cells += [number(total(costs, "cpu_seconds"), ",.0f"), number(peak, ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def losses(scored: Scored, probs: Mapping[str, Floats], name: str) -> list[str]:
    """Return the cells of a contender's log loss and of its difference from pairjudge's."""
    own = row_log_loss(probs[name], scored.labels)
    if PEER not in probs or name == PEER:
        return [f"{own.mean():.4f}", ""]
    return [f"{own.mean():.4f}", cell(own - row_log_loss(probs[PEER], scored.labels), scored.groups, "+")]


def beside_rewards(scored: Scored) -> list[str]:
    """Return a sentence about each of ours minus RewardTrainer, if that was measured, both calibrated."""
    if REWARDS not in scored.calibrated:
        return []
    losses = {name: row_log_loss(probs, scored.labels) for name, probs in scored.calibrated.items()}
    cells = [
        f"{TITLES[name]} {cell(losses[name] - losses[REWARDS], scored.groups, '+')}"
        for name in ("member", "stack", "student")
        if name in losses
    ]
    return [f"Minus RewardTrainer, both calibrated: {'; '.join(cells)}.", ""] if cells else []


def speed(scored: Scored, epochs: float) -> list[str]:
    """Return a sentence about our member's speed and memory beside pairjudge's, if both are known."""
    ours, theirs = (scored.costs.get(name, ()) for name in ("member", PEER))
    trained, rated = train_rate(ours, epochs) / train_rate(theirs, epochs), score_rate(ours) / score_rate(theirs)
    if np.isnan(trained) or np.isnan(rated):
        return []
    return [f"Our member trains {trained:.2f} times and scores {rated:.2f} times as many battles in a second.", ""]
