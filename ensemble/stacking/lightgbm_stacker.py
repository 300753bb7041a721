"""LightGBM on OOF logits and battle features, symmetric by construction, in two kinds.

``lightgbm`` begins at the log-linear pool's logits (``init_score``), so with little data it stays there and can only
add what the features support. ``extra_trees`` begins at the class shares, with fixed parameters and thresholds drawn at
random: its errors are other ones, which is of use where battles are few. Both are trained on every battle in both
orders, and the scores of both orders are averaged, so swapping A and B swaps the output exactly. LightGBM's ``predict``
ignores ``init_score``: it is added here.

Source: Geurts, Ernst & Wehenkel, Extremely Randomized Trees, Machine Learning 2006 (random thresholds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.baselines import Prior
from ensemble.stacking.combiners import FILE, Combiner, LogPool, UntunedCombiner, both_orders, finite_pool
from oof.classes import swap_classes
from oof.common.atomic_files import read_json, replacing, write_json
from oof.metrics import Integers, log_softmax

ONE_THREAD_ROWS = 50_000  # up to so many rows one thread is as fast as many, and far faster on a busy machine
FIXED: dict[str, Any] = {
    "objective": "multiclass",
    "num_class": 3,
    "metric": "None",  # early stopping watches the symmetric prediction: see _SymmetricLoss
    "boost_from_average": False,
    "deterministic": True,
    "force_row_wise": True,
    "max_bin": 63,
    "feature_pre_filter": False,  # otherwise one binned data set could not serve trials of any min_data_in_leaf
    "data_random_seed": 1,  # and of any seed; it matters from 200,000 rows on, which are sampled to find the bins
    "bagging_freq": 1,
    "verbosity": -1,
}
MAX_PATIENCE = 25  # rounds without a gain
PATIENCE_TIMES_RATE = 1.0  # patience is this divided by the learning rate, up to MAX_PATIENCE
SMALLEST_PROBABILITY = 1e-300  # its logarithm is still finite
EXTRA_TREES: dict[str, Any] = {
    "extra_trees": True,
    "learning_rate": 0.06,
    "num_leaves": 15,
    "min_data_in_leaf": 20,  # rows of both orders
    "feature_fraction": 0.6,
    "bagging_fraction": 0.5,
    "lambda_l1": 0.1,
    "lambda_l2": 1.0,
}


@dataclass(frozen=True)
class Boosted(Combiner):
    """A fitted booster, the combiner that it starts from, and the members that it reads."""

    booster: lgb.Booster
    start: UntunedCombiner
    members: tuple[str, ...]
    starts_from: ClassVar[type[UntunedCombiner]]

    @classmethod
    def fit(cls, design: Design, labels: Integers, params: dict[str, Any], rounds: int, seed: int) -> Self:
        """Return the booster after ``rounds`` rounds on all (n) battles.

        Raises:
            UserError: a logit is not finite.
        """
        finite_pool(design)
        start = cls.starts_from.fit(design, labels)
        settings = {**FIXED, **params, "seed": seed, "num_threads": _threads(design)}
        booster = lgb.train(settings, _dataset(design, labels, start), num_boost_round=max(rounds, 1))
        # Through its text form at once, so that a booster from another process is the same to the last byte.
        return cls(lgb.Booster(model_str=booster.model_to_string()), start, tuple(design.members))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits in class order; of swapped battles the same with a and b swapped."""
        design = design.keep(self.members)
        finite_pool(design)
        return self.start.logits(design) + _boosted(self.booster, design, self.booster.current_iteration())

    def save(self, folder: Path) -> None:
        """Write ``booster.txt`` (LightGBM's text format), ``start/combiner.json`` and ``combiner.json``."""
        with replacing(folder / "booster.txt") as temporary:
            temporary.write_text(self.booster.model_to_string(), encoding="utf-8")
        self.start.save(folder / "start")
        write_json(folder / FILE, {"kind": self.kind, "members": list(self.members)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        booster = lgb.Booster(model_str=(folder / "booster.txt").read_text(encoding="utf-8"))
        return cls(booster, cls.starts_from.load(folder / "start"), tuple(read_json(folder / FILE)["members"]))


class Stacker(Boosted):
    """Tuned trees, from the log-linear pool."""

    kind = "lightgbm"
    starts_from = LogPool


class ExtraTrees(Boosted):
    """Trees with random thresholds, from the class shares."""

    kind = "extra_trees"
    starts_from = Prior


def _threads(design: Design) -> int:
    """Return a number that depends on the data alone: with other threads, histograms are summed in another order."""
    return 1 if len(design.x) <= ONE_THREAD_ROWS else 4


def _boosted(booster: lgb.Booster, design: Design, rounds: int) -> NDArray[np.float64]:
    """Return the (n, 3) scores that boosting adds, the mean of both orders."""
    given, swapped = (
        np.asarray(
            booster.predict(x, raw_score=True, num_iteration=rounds, num_threads=_threads(design)), dtype=np.float64
        )
        for x in (design.x, design.x_swapped)
    )
    return np.asarray((given + swap_classes(swapped)) / 2)


def _dataset(
    design: Design, labels: Integers, start: UntunedCombiner, reference: lgb.Dataset | None = None
) -> lgb.Dataset:
    """Return LightGBM's data set of (n) battles in both orders, starting from a combiner's logits."""
    x, y = both_orders(design.x, design.x_swapped, labels)
    logits = start.logits(design)
    score = np.concatenate([logits, swap_classes(logits)])
    names = [f"f{i}" for i in range(x.shape[1])]  # member names may hold characters that LightGBM refuses
    return lgb.Dataset(
        x,
        y,
        init_score=score.ravel(order="F"),
        reference=reference,
        feature_name=names,
        params=FIXED,
    )


class Split:
    """One split of the training rows, binned once: every trial of a study trains on the same data set.

    Args:
        design: (n) training battles.
        labels: (n,).
        held: (n,) which of them are held out.
        kind: that boosting is of.
    """

    def __init__(
        self, design: Design, labels: Integers, held: NDArray[np.bool_], kind: type[Boosted] = Stacker
    ) -> None:
        rest, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        train, self.held_out = design.take(rest), design.take(self.held)
        self.start = kind.starts_from.fit(train, labels[rest])
        self.labels = labels[self.held]
        self.threads = _threads(train)
        self.train = _dataset(train, labels[rest], self.start).construct()
        self.valid = _dataset(self.held_out, self.labels, self.start, reference=self.train).construct()


class _SymmetricLoss:
    """LightGBM's metric on the held-out rows: the log loss of the mean of both orders' scores.

    It keeps the scores of the best round, so that they need not be predicted again.
    """

    def __init__(self, labels: Integers) -> None:
        self.labels, self.rows = labels, np.arange(len(labels))
        self.loss, self.logits = np.inf, np.zeros((len(labels), 3))

    def __call__(self, probs: NDArray[np.float64], data: lgb.Dataset) -> tuple[str, float, bool]:
        # LightGBM passes (2n, 3) probabilities, not raw scores, to a metric of its own objective.
        given, swapped = np.split(np.log(np.maximum(probs, SMALLEST_PROBABILITY)), 2)
        logits = (given + swap_classes(swapped)) / 2
        loss = float(-log_softmax(logits)[self.rows, self.labels].mean())
        if loss < self.loss:
            self.loss, self.logits = loss, logits
        return "log_loss", loss, False


class EarlyStopped(NamedTuple):
    """Training with early stopping on a split's held-out rows.

    Attributes:
        rounds: the best round.
        logits: (n, 3) of the held-out rows there.
        booster: with the rounds until it stopped.
    """

    rounds: int
    logits: NDArray[np.float64]
    booster: lgb.Booster


def fit_early_stopped(split: Split, params: dict[str, Any], rounds: int, seed: int) -> EarlyStopped:
    """Train for at most ``rounds`` rounds, until the held-out loss has not become smaller for some rounds."""
    held_out_loss = _SymmetricLoss(split.labels)
    settings = {**FIXED, **params, "seed": seed, "num_threads": split.threads}
    patience = min(MAX_PATIENCE, math.ceil(PATIENCE_TIMES_RATE / params["learning_rate"]))
    booster = lgb.train(
        settings,
        split.train,
        num_boost_round=rounds,
        valid_sets=[split.valid],
        feval=held_out_loss,
        callbacks=[lgb.early_stopping(patience, verbose=False)],
        keep_training_booster=True,  # otherwise LightGBM drops the rounds after the best one
    )
    return EarlyStopped(max(1, booster.best_iteration), held_out_loss.logits, booster)


def logits_after(
    rounds: int, split: Split, stopped: EarlyStopped, params: dict[str, Any], seed: int
) -> NDArray[np.float64]:
    """Return the held-out (n, 3) logits after a number of rounds in which these rows had no part."""
    booster = stopped.booster
    if rounds > booster.current_iteration():
        settings = {**FIXED, **params, "seed": seed, "num_threads": split.threads}
        booster = lgb.train(settings, split.train, num_boost_round=rounds)
    return split.start.logits(split.held_out) + _boosted(booster, split.held_out, rounds)
