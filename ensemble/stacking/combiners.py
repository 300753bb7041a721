"""Combiners of members' logits: mean, log-linear pool, greedy selection and logistic regression.

A combiner reads the members that it was fitted on. It maps a design to (n, 3) logits, and swapping A and B swaps its
output exactly. It is saved as JSON, never as code. A new combiner is one subclass of :class:`UntunedCombiner` in
``COMBINERS``; the suite in ``tests/ensemble/stacking/test_combiners.py`` then runs on it. LightGBM, which needs tuned
parameters, has a module of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ensemble.features.design_matrix import Design
from ensemble.stacking.log_pool import fit_pool, pool_logits
from oof.classes import CLASSES, TIE, pinned_as, swap_classes, swap_labels, with_tie
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.metrics import CLIP, Integers, softmax

FILE = "combiner.json"
RIDGE = 10.0  # divided by the battles: pull of the pool's weights towards the plain mean, which fades as they grow
LARGEST_WEIGHT = 20.0  # of a member's log-probabilities, which is 1 / its temperature
GREEDY_DRAWS = 25  # the best prefix is kept, so more draws only refine the weights
LOGISTIC_FEATURES = "lengths"  # the family of features beside the logits; LightGBM reads all families
LOGISTIC_C = 0.01  # scikit-learn's C: matters with few rows only, where 1.0 could be worse than the members alone
ABSENT_LOGIT = -20.0  # of a class that never occurred


@dataclass(frozen=True)
class Combiner(ABC):
    """A fitted combiner: a frozen dataclass of numbers and tuples, which are its JSON file."""

    kind: ClassVar[str]  # its name in settings, files and tables

    @property
    def reads_terms(self) -> bool:
        """Whether it reads the design's term counts, which need not be made for other combiners."""
        return False

    def logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits in class order; of swapped battles the same with a and b swapped.

        The tie is pinned where no battle of the design can end in one.
        """
        values = self._logits(design)
        return values if design.ties else with_tie(values[:, :TIE])

    @abstractmethod
    def _logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits; those of the tie do not count where no battle can end in one."""

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, {"kind": self.kind, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**{name: _tuples(value) for name, value in read_json(folder / FILE).items() if name != "kind"})


class UntunedCombiner(Combiner):
    """A combiner that is fitted on battles and labels alone, without tuned parameters."""

    @classmethod
    @abstractmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        """Return the combiner fitted on (n) battles with (n,) labels in {0, 1, 2}."""


@dataclass(frozen=True)
class PlainMean(UntunedCombiner):
    """The mean of the members' logits as they are; nothing is fitted."""

    members: tuple[str, ...]
    kind: ClassVar[str] = "plain_mean"

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        finite_pool(design)
        return cls(tuple(design.members))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        return np.asarray(finite_pool(design.keep(self.members)).mean(axis=1))


@dataclass(frozen=True)
class Mean(UntunedCombiner):
    """The mean of the members' logits, each divided by a temperature of its own."""

    members: tuple[str, ...]
    scales: tuple[float, ...]  # 1 / temperature
    kind: ClassVar[str] = "mean"

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        return cls(tuple(design.members), fit_scales(finite_pool(design), labels))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        return np.asarray(_scaled(design.keep(self.members), self.scales).mean(axis=1))


@dataclass(frozen=True)
class LogPool(UntunedCombiner):
    """Log-linear pool with one weight per member and a term for the tie."""

    members: tuple[str, ...]
    weights: tuple[float, ...]
    tie: float
    kind: ClassVar[str] = "log_pool"

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        """Return the pool that minimises the log loss of the rows plus a ridge towards equal weights."""
        *weights, tie = fit_pool(finite_pool(design), labels, RIDGE / len(labels)).tolist()
        return cls(tuple(design.members), tuple(weights), tie)

    def _logits(self, design: Design) -> NDArray[np.float64]:
        return pool_logits(finite_pool(design.keep(self.members)), np.asarray(self.weights), self.tie)


@dataclass(frozen=True)
class Greedy(UntunedCombiner):
    """Mean of the members' probabilities after a temperature of their own, each counted as often as it was drawn.

    Source: Caruana, Niculescu-Mizil, Crew & Ksikes, Ensemble Selection from Libraries of Models, ICML 2004.
    """

    members: tuple[str, ...]
    scales: tuple[float, ...]  # 1 / temperature
    counts: tuple[int, ...]
    kind: ClassVar[str] = "greedy"

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        """Draw, with replacement, the member that lowers the log loss most; a draw goes to the first of equals."""
        scales = fit_scales(finite_pool(design), labels)
        chosen = softmax(_scaled(design, scales))[np.arange(len(labels)), :, labels]  # (n, m): probability of the label
        total, drawn, losses = np.zeros(len(labels)), [], []
        for n_drawn in range(1, GREEDY_DRAWS + 1):
            candidates = -np.log(np.maximum((total[:, None] + chosen) / n_drawn, CLIP)).mean(axis=0)
            best = int(candidates.argmin())
            total = total + chosen[:, best]
            drawn.append(best)
            losses.append(float(candidates[best]))
        prefix = drawn[: int(np.argmin(losses)) + 1]
        return cls(tuple(design.members), scales, tuple(np.bincount(prefix, minlength=chosen.shape[1]).tolist()))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        weights = np.asarray(self.counts) / sum(self.counts)
        probs = np.einsum("nmc,m->nc", softmax(_scaled(design.keep(self.members), self.scales)), weights)
        return np.asarray(np.log(np.maximum(probs, CLIP)))


@dataclass(frozen=True)
class Logistic(UntunedCombiner):
    """Multinomial logistic regression on the members' logits and the length features.

    Inputs are standardised, ``(x - mean) / scale``, then multiplied by ``coef`` (3, d), plus ``intercept`` (3,). It is
    trained on every battle in both orders, and the outputs of both orders are averaged.
    """

    members: tuple[str, ...]
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coef: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]
    kind: ClassVar[str] = "logistic"
    strength: ClassVar[float] = LOGISTIC_C

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        """Return the regression on all rows; a class that never occurs keeps a probability near zero.

        Raises:
            UserError: a logit or a length feature is not finite.
        """
        features = tuple(design.names[i] for i in design.columns(LOGISTIC_FEATURES))
        return cls.fit_on(design, labels, tuple(design.members), features)

    @classmethod
    def fit_on(cls, design: Design, labels: Integers, members: tuple[str, ...], features: tuple[str, ...]) -> Self:
        """Return the regression on the logits of some members and some columns; errors are those of :meth:`fit`."""
        x, y = both_orders(*_logistic_inputs(design.keep(members), features), labels)
        mean, spread = x.mean(axis=0), x.std(axis=0)
        scale = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, 1.0)
        coef, intercept = fit_logistic_regression((x - mean) / scale, y, ABSENT_LOGIT, C=cls.strength, max_iter=1000)
        return cls(members, features, *(_tuples(values.tolist()) for values in (mean, scale, coef, intercept)))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        given, swapped = (
            ((x - np.array(self.mean)) / np.array(self.scale)) @ np.array(self.coef).T + np.array(self.intercept)
            for x in _logistic_inputs(design.keep(self.members), self.features)
        )
        return np.asarray((given + swap_classes(swapped)) / 2)


COMBINERS: dict[str, type[UntunedCombiner]] = {
    c.kind: c for c in (PlainMean, Mean, LogPool, Greedy, Logistic)
}  # simple to complex


def finite_pool(design: Design) -> NDArray[np.float64]:
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


def fit_scales(pool: NDArray[np.float64], labels: Integers) -> tuple[float, ...]:
    """Return for each of m members the factor of its logits, (n, m, 3), with the smallest log loss: 1 / temperature.

    It is not negative: a member that is worse than nothing gets 0, and is flat.
    """
    scales = (float(fit_pool(pool[:, [i]], labels, tie=False)[0]) for i in range(pool.shape[1]))
    return tuple(min(max(scale, 0.0), LARGEST_WEIGHT) for scale in scales)


def _scaled(design: Design, scales: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the (n, m, 3) member logits times each member's factor."""
    pool = finite_pool(design)
    return pinned_as(pool, pool * np.asarray(scales)[:, None])


def both_orders(x: NDArray[Any], x_swapped: NDArray[Any], labels: Integers) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return (2n, d) rows, every battle as given and then every battle swapped, and their (2n,) labels."""
    return np.concatenate([x, x_swapped]), np.concatenate([labels, swap_labels(labels)])


def fit_logistic_regression(
    x: Any, labels: Integers, absent_logit: float, **settings: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (3, d) coefficients and (3,) intercepts of scikit-learn's multinomial logistic regression.

    Args:
        x: (n, d) inputs, dense or sparse.
        labels: (n,) in {0, 1, 2}.
        absent_logit: intercept of a class that never occurs; its coefficients are 0.
        settings: of :class:`sklearn.linear_model.LogisticRegression`.
    """
    coef, intercept = np.zeros((len(CLASSES), x.shape[1])), np.full(len(CLASSES), absent_logit)
    present, counts = np.unique(labels, return_counts=True)
    if len(present) == 1 or not x.shape[1]:  # nothing to learn but how often each class occurs
        intercept[present] = np.log(counts / counts.sum())
        return coef, intercept
    model = LogisticRegression(**settings).fit(x, labels)
    if len(present) == 2:  # scikit-learn keeps one row of two: the log odds of the second class
        coef[present] = np.vstack([-model.coef_, model.coef_]) / 2
        intercept[present] = np.array([-1, 1]) * model.intercept_[0] / 2
        return coef, intercept
    return model.coef_, model.intercept_


def _logistic_inputs(design: Design, features: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (n, 3m + d) inputs of the battles as given and of the swapped battles."""
    absent = [name for name in features if name not in design.names]
    if absent:
        raise UserError(f"the stack was fitted with the feature {absent[0]!r}, which these battles lack")
    columns, pool = [design.names.index(name) for name in features], finite_pool(design)
    inputs = []
    for x, z in ((design.x, pool), (design.x_swapped, swap_classes(pool))):
        values = x[:, columns].astype(np.float64)
        if not np.isfinite(values).all():
            name = features[int((~np.isfinite(values)).any(axis=0).argmax())]
            raise UserError(f"feature {name!r}: some values are not finite; the logistic combiner cannot use it")
        inputs.append(np.concatenate([z.reshape(len(z), -1), values], axis=1))
    return inputs[0], inputs[1]


def _tuples(value: Any) -> Any:
    """Return nested lists as nested tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
