"""Scores of battles by which a cascade decides: the higher the score, the sooner a battle goes on to the next level.

``margin``, ``entropy`` and ``disagreement`` read the predictions so far. ``gain`` is the predicted fall of the log
loss: a ridge regression of KL(next level || this level) on these and their products. Where the next level is
calibrated, that divergence is the expected fall of the loss given both predictions, without the noise of one verdict.

Source: Jitkrittum et al., When Does Confidence-Based Cascade Deferral Suffice?, NeurIPS 2023 (rules learned after
training, where the levels' errors differ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, rel_entr

from oof.classes import TIE, A, B
from oof.metrics import CLIP

KINDS = ("gain", "margin", "entropy", "disagreement")  # that decide on new battles
RANDOM = "random"  # the baseline of the curve
RIDGE = 10.0  # battles' worth of pull of each standardised term to zero


@dataclass(frozen=True)
class Output:
    """What one level says about n battles.

    Attributes:
        probs: (n, 3) calibrated probabilities.
        disagreement: (n,) largest difference of a log-probability between the predictions behind ``probs``, the
            student's two orders or student and members; None where there is one prediction only.
        chance: (n,) random numbers for the score ``random``; None for new battles.
    """

    probs: NDArray[np.float64]
    disagreement: NDArray[np.float64] | None = None
    chance: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[Any]) -> Output:
        """Return the output for some of the battles."""
        columns = (None if c is None else c[rows] for c in (self.disagreement, self.chance))
        return Output(self.probs[rows], *columns)


def score(kind: str, output: Output) -> NDArray[np.float64] | None:
    """Return (n,) scores that need no fit; None where this level lacks what the score reads."""
    if kind == "margin":
        ordered = np.sort(output.probs, axis=1)
        return np.asarray(1 - (ordered[:, -1] - ordered[:, -2]))
    if kind == "entropy":
        return np.asarray(entr(output.probs).sum(axis=1))
    return output.disagreement if kind == "disagreement" else output.chance


def features(output: Output) -> NDArray[np.float64]:
    """Return the (n, 5 or 6) features of the regression; swapping A and B changes none of them."""
    log_p = np.log(np.maximum(output.probs, CLIP))
    columns = [score("margin", output), score("entropy", output), output.probs[:, TIE]]
    columns += [np.abs(log_p[:, A] - log_p[:, B]), output.probs.max(axis=1), output.disagreement]
    return np.column_stack([column for column in columns if column is not None])


def expected_gain(before: Output, after: Output) -> NDArray[np.float64]:
    """Return the (n,) KL(after || before) in nats."""
    clipped = (np.maximum(output.probs, CLIP) for output in (after, before))
    return np.asarray(rel_entr(*clipped).sum(axis=1))


@dataclass(frozen=True)
class GainModel:
    """Ridge regression of the expected gain on standardised features, their squares and products.

    Attributes:
        centre: (d,) means of the features.
        scale: (d,) their standard deviations.
        weights: of the terms, in the order of :meth:`_terms`.
        intercept: of the target.
    """

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercept: float

    @classmethod
    def fit(cls, before: Output, after: Output) -> Self:
        """Fit on battles that both levels predicted; their labels are not read."""
        x, target = features(before), expected_gain(before, after)
        centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)
        terms = _terms((x - centre) / scale)
        means = terms.mean(axis=0)
        centred = terms - means
        gram = centred.T @ centred + RIDGE * np.eye(terms.shape[1])
        weights = np.linalg.solve(gram, centred.T @ (target - target.mean()))
        return cls(centre, scale, weights, float(target.mean() - means @ weights))

    def predict(self, output: Output) -> NDArray[np.float64]:
        """Return the (n,) predicted gains in nats."""
        return np.asarray(_terms((features(output) - self.centre) / self.scale) @ self.weights + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters for a JSON file."""
        lists = {name: getattr(self, name).tolist() for name in ("centre", "scale", "weights")}
        return {**lists, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return the model of :meth:`to_dict`."""
        centre, scale, weights = (np.asarray(saved[name], dtype=np.float64) for name in ("centre", "scale", "weights"))
        return cls(centre, scale, weights, float(saved["intercept"]))


def _terms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, -4.0, 4.0)  # a square of an outlier would decide alone
    pairs = combinations_with_replacement(range(x.shape[1]), 2)
    return np.column_stack([x, *(x[:, i] * x[:, j] for i, j in pairs)])
