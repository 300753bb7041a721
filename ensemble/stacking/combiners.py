"""What every combiner of members is, and the simplest: their mean, a log-pool; beside them two plain baselines.

A combiner maps a design to (n, 3) logits, and exchanging A and B exchanges its output exactly. It is saved as JSON
(LightGBM beside it as text), never as code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensemble.features.design_matrix import Design
from oof.classes import swap_classes, swap_labels
from oof.common.atomic_files import write_json
from oof.common.errors import UserError
from oof.metrics import log_softmax

RIDGE = 0.01  # pull of the pool's weights towards the plain mean: decides only where members are few or alike

FILE = "combiner.json"

Integers = NDArray[np.integer[Any]]


class Combiner(Protocol):
    """A fitted combiner. ``kind`` names it in settings, files and tables."""

    kind: ClassVar[str]

    def logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits in class order; of mirrored battles the same with a and b exchanged."""
        ...

    def save(self, folder: Path) -> None: ...


def checked_pool(design: Design) -> NDArray[np.float64]:
    """Return the (n, m, 3) member logits.

    Raises:
        UserError: some are not finite.
    """
    broken = np.asarray(np.any(~np.isfinite(design.pool), axis=2))
    if broken.any():
        worst = design.members[int(broken.sum(axis=0).argmax())]
        raise UserError(
            f"{int(broken.any(axis=1).sum())} battles have logits that are not finite, most of them of the member "
            f"{worst!r}; score them again"
        )
    return design.pool


def write_parameters(folder: Path, kind: str, parameters: dict[str, Any]) -> None:
    write_json(folder / FILE, {"kind": kind, **parameters})


@dataclass(frozen=True)
class Mean:
    """The plain mean of the members' logits; nothing is fitted."""

    kind: ClassVar[str] = "mean"

    def logits(self, design: Design) -> NDArray[np.float64]:
        return np.asarray(checked_pool(design).mean(axis=1))

    def save(self, folder: Path) -> None:
        write_parameters(folder, self.kind, {})


@dataclass(frozen=True)
class LogPool:
    """Weighted log-opinion pool ``sum_m w_m z_m + (0, 0, tie)`` of the members' centred log-probabilities.

    Source: Genest & Zidek, Combining Probability Distributions, Statistical Science 1986 (logarithmic pool).
    """

    weights: tuple[float, ...]
    tie: float
    kind: ClassVar[str] = "log_pool"

    def logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits; mirrored battles get the same with a and b exchanged, by construction."""
        pooled = np.einsum("nmc,m->nc", checked_pool(design), np.asarray(self.weights))
        return np.asarray(pooled + np.array([0.0, 0.0, self.tie]))

    def save(self, folder: Path) -> None:
        write_parameters(folder, self.kind, asdict(self))


def mean_logits(design: Design) -> NDArray[np.float64]:
    """Return (n, 3): the plain mean of the members' logits."""
    return Mean().logits(design)


def fit_log_pool(design: Design, labels: Integers) -> LogPool:
    """Return the pool that minimises the log loss of the rows plus a small ridge towards equal weights."""
    m, rows = design.pool.shape[1], np.arange(len(labels))
    start = np.append(np.full(m, 1.0 / m), 0.0)

    def loss(parameters: NDArray[np.float64]) -> float:
        logits = LogPool(tuple(parameters[:m].tolist()), float(parameters[m])).logits(design)
        ridge = RIDGE * np.square(parameters - start).sum()
        return float(-log_softmax(logits)[rows, labels].mean() + ridge)

    found = minimize(loss, start, method="L-BFGS-B").x
    return LogPool(tuple(float(w) for w in found[:m]), float(found[m]))


def prior_probs(labels: Integers, n: int) -> NDArray[np.float64]:
    """Return (n, 3): the class shares of ``labels``, Laplace-smoothed, for each of n battles."""
    counts = np.bincount(labels, minlength=3) + 1.0
    return np.tile(counts / counts.sum(), (n, 1))


def length_only_probs(train: Design, labels: Integers, held_out: Design) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of a multinomial logistic regression on the length features alone.

    Trained on each battle and its mirror image, and averaged over both, like everything else.
    """
    columns = train.columns("lengths")
    x, y = doubled(train.x[:, columns], train.x_swapped[:, columns], labels)
    if len(np.unique(y)) < 2 or not columns:  # battles without text have no lengths
        return prior_probs(labels, len(held_out.ids))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)

    def probs(values: NDArray[np.float32]) -> NDArray[np.float64]:
        full = np.full((len(values), 3), 1e-12)  # a class that never occurred
        full[:, model.classes_] = model.predict_proba(values)
        return np.asarray(full / full.sum(axis=1, keepdims=True))

    return np.asarray((probs(held_out.x[:, columns]) + swap_classes(probs(held_out.x_swapped[:, columns]))) / 2)


def doubled(x: NDArray[Any], x_swapped: NDArray[Any], labels: Integers) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return (2n, d) rows, every battle then every mirror image, and their (2n,) labels."""
    return np.concatenate([x, x_swapped]), np.concatenate([labels, swap_labels(labels)])
