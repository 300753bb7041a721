"""Greedy ensemble selection: add the member, with replacement, whose inclusion lowers the log loss most.

Source: Caruana, Niculescu-Mizil, Crew & Ksikes, Ensemble Selection from Libraries of Models, ICML 2004.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.combiners import checked_pool, write_parameters
from oof.metrics import CLIP, softmax

STEPS = 25  # members drawn; the best prefix is kept, so more steps only refine the weights

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Greedy:
    """Mean of the members' probabilities, each counted as often as it was drawn."""

    counts: tuple[int, ...]
    kind: ClassVar[str] = "greedy"

    def logits(self, design: Design) -> NDArray[np.float64]:
        weights = np.asarray(self.counts) / sum(self.counts)
        probs = np.einsum("nmc,m->nc", softmax(checked_pool(design)), weights)
        return np.asarray(np.log(np.maximum(probs, CLIP)))

    def save(self, folder: Path) -> None:
        write_parameters(folder, self.kind, asdict(self))


def fit_greedy(design: Design, labels: Integers) -> Greedy:
    """Return the best prefix of ``STEPS`` greedy draws; a tie goes to the member that comes first."""
    chosen = softmax(checked_pool(design))[np.arange(len(labels)), :, labels]  # (n, m): probability of the label
    total, drawn, losses = np.zeros(len(labels)), [], []
    for step in range(1, STEPS + 1):
        candidates = -np.log(np.maximum((total[:, None] + chosen) / step, CLIP)).mean(axis=0)
        best = int(candidates.argmin())
        total = total + chosen[:, best]
        drawn.append(best)
        losses.append(float(candidates[best]))
    prefix = drawn[: int(np.argmin(losses)) + 1]
    return Greedy(tuple(np.bincount(prefix, minlength=chosen.shape[1]).tolist()))
