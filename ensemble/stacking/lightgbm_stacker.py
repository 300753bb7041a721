"""LightGBM on OOF logits and battle features, started from the log-pool and symmetric by construction.

Boosting begins at the pooled logits (``init_score``), so with little data it stays there and can only add what
the features support. It is trained on every battle and its mirror image, and its scores of both are averaged,
so exchanging A and B exchanges the output exactly. LightGBM's ``predict`` ignores ``init_score``: it is added here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.combiners import LogPool, doubled, fit_log_pool, write_parameters
from oof.classes import swap_classes
from oof.common.atomic_files import read_json, replacing, write_json
from oof.metrics import log_softmax

SMALL = 50_000  # rows up to which one thread is as fast as many, and far faster on a busy machine
FIXED: dict[str, Any] = {
    "objective": "multiclass",
    "num_class": 3,
    "metric": "None",  # early stopping watches what is predicted: see _Watch
    "boost_from_average": False,
    "deterministic": True,
    "force_row_wise": True,
    "max_bin": 63,
    "feature_pre_filter": False,  # or one binned data set could not serve trials of any min_data_in_leaf
    "data_random_seed": 1,  # likewise, of any seed; it matters from 200,000 rows, which are sampled to find the bins
    "bagging_freq": 1,
    "verbosity": -1,
}
PATIENCE = 25  # rounds without a gain, at most
REACH = 1.0  # what rounds without a gain may add up to, times the learning rate
TINY = 1e-300  # a probability whose logarithm is still a number

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Stacker:
    """A fitted booster and the pool it starts from."""

    booster: lgb.Booster
    pool: LogPool
    kind: ClassVar[str] = "lightgbm"

    def logits(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) logits of battles in canonical class order."""
        return self.pool.logits(design) + _boosted(self.booster, design, self.booster.current_iteration())

    def save(self, folder: Path) -> None:
        """Write ``booster.txt`` (LightGBM's text format) and ``pool.json``."""
        with replacing(folder / "booster.txt") as temporary:
            temporary.write_text(self.booster.model_to_string(), encoding="utf-8")
        write_json(folder / "pool.json", {"weights": list(self.pool.weights), "tie": self.pool.tie})
        write_parameters(folder, self.kind, {})

    @classmethod
    def load(cls, folder: Path) -> Stacker:
        pool = read_json(folder / "pool.json")
        booster = lgb.Booster(model_str=(folder / "booster.txt").read_text(encoding="utf-8"))
        return cls(booster, LogPool(tuple(pool["weights"]), pool["tie"]))


def _threads(design: Design) -> int:
    """A function of the data alone: another number of threads sums histograms in another order."""
    return 1 if len(design.x) <= SMALL else 4


def _boosted(booster: lgb.Booster, design: Design, rounds: int) -> NDArray[np.float64]:
    """Return the (n, 3) scores that boosting adds, the mean of each battle's and its mirror image's."""
    given, swapped = (
        np.asarray(
            booster.predict(x, raw_score=True, num_iteration=rounds, num_threads=_threads(design)), dtype=np.float64
        )
        for x in (design.x, design.x_swapped)
    )
    return np.asarray((given + swap_classes(swapped)) / 2)


def _dataset(design: Design, labels: Integers, pool: LogPool, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    x, y = doubled(design.x, design.x_swapped, labels)
    start = pool.logits(design)
    score = np.concatenate([start, swap_classes(start)])
    names = [f"f{i}" for i in range(x.shape[1])]  # member names may hold characters that LightGBM refuses
    return lgb.Dataset(
        x,
        y,
        init_score=score.ravel(order="F"),
        reference=reference,
        feature_name=names,
        params=FIXED,
    )


def fit_stacker(design: Design, labels: Integers, params: dict[str, Any], rounds: int, seed: int) -> Stacker:
    """Return the stacker after ``rounds`` rounds on all rows."""
    pool = fit_log_pool(design, labels)
    settings = {**FIXED, **params, "seed": seed, "num_threads": _threads(design)}
    booster = lgb.train(settings, _dataset(design, labels, pool), num_boost_round=max(rounds, 1))
    # Through its text form at once: a booster that came from another process is then the same to the last byte.
    return Stacker(lgb.Booster(model_str=booster.model_to_string()), pool)


class Split:
    """One split of the training rows, made ready once: every trial of a study trains on the same binned data.

    Args:
        design: all training rows.
        labels: theirs.
        held: which of them are held out.
    """

    def __init__(self, design: Design, labels: Integers, held: NDArray[np.bool_]) -> None:
        rest, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        train, held_out = design.take(rest), design.take(self.held)
        pool = fit_log_pool(train, labels[rest])
        self.labels = labels[self.held]
        self.threads = _threads(train)
        self.train = _dataset(train, labels[rest], pool).construct()
        self.valid = _dataset(held_out, self.labels, pool, reference=self.train).construct()


class _Watch:
    """LightGBM's metric of the held-out rows: the log loss of the mean of each battle's and its mirror image's scores.

    It keeps the scores of the best round, so that nothing is predicted again.
    """

    def __init__(self, labels: Integers) -> None:
        self.labels, self.rows = labels, np.arange(len(labels))
        self.loss, self.logits = np.inf, np.zeros((len(labels), 3))

    def __call__(self, probs: NDArray[np.float64], data: lgb.Dataset) -> tuple[str, float, bool]:
        given, swapped = np.split(
            np.log(np.maximum(probs, TINY)), 2
        )  # (2n, 3), not raw scores: the objective is theirs
        logits = (given + swap_classes(swapped)) / 2
        loss = float(-log_softmax(logits)[self.rows, self.labels].mean())
        if loss < self.loss:
            self.loss, self.logits = loss, logits
        return "log_loss", loss, False


def fit_early_stopped(split: Split, params: dict[str, Any], rounds: int, seed: int) -> tuple[int, NDArray[np.float64]]:
    """Train with early stopping on held-out rows; return the best round and the held-out (n, 3) logits there."""
    watch = _Watch(split.labels)
    settings = {**FIXED, **params, "seed": seed, "num_threads": split.threads}
    patience = min(PATIENCE, math.ceil(REACH / params["learning_rate"]))
    stop = lgb.early_stopping(patience, verbose=False)
    booster = lgb.train(
        settings, split.train, num_boost_round=rounds, valid_sets=[split.valid], feval=watch, callbacks=[stop]
    )
    return max(1, booster.best_iteration), watch.logits
