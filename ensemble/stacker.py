"""LightGBM on OOF logits and battle features, started from the log-pool and symmetric by construction.

Boosting begins at the pooled logits (``init_score``), so with little data it stays there and can only add what
the features support. It is trained on every battle and its mirror image, and its scores of both are averaged,
so exchanging A and B exchanges the output exactly. LightGBM's ``predict`` ignores ``init_score``: it is added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ensemble.combiners import LogPool, doubled, fit_log_pool, write_parameters
from ensemble.design import SWAP, Design
from oof import store

SMALL = 50_000  # rows up to which one thread is as fast as many, and far faster on a busy machine
FIXED: dict[str, Any] = {
    "objective": "multiclass",
    "num_class": 3,
    "metric": "multi_logloss",
    "boost_from_average": False,
    "deterministic": True,
    "force_row_wise": True,
    "max_bin": 63,
    "bagging_freq": 1,
    "verbosity": -1,
}
PATIENCE = 25  # rounds without a gain

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
        with store.replacing(folder / "booster.txt") as temporary:
            temporary.write_text(self.booster.model_to_string(), encoding="utf-8")
        store.write_json(folder / "pool.json", {"weights": list(self.pool.weights), "tie": self.pool.tie})
        write_parameters(folder, self.kind, {})

    @classmethod
    def load(cls, folder: Path) -> Stacker:
        pool = store.read_json(folder / "pool.json")
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
    return (given + swapped[:, SWAP]) / 2


def _dataset(design: Design, labels: Integers, pool: LogPool, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    x, y = doubled(design.x, design.x_swapped, labels)
    start = pool.logits(design)
    score = np.concatenate([start, start[:, SWAP]])
    names = [f"f{i}" for i in range(x.shape[1])]  # member names may hold characters that LightGBM refuses
    return lgb.Dataset(
        x,
        y,
        init_score=score.ravel(order="F"),
        reference=reference,
        feature_name=names,
        params=FIXED,
        free_raw_data=False,
    )


def fit_stacker(design: Design, labels: Integers, params: dict[str, Any], rounds: int, seed: int) -> Stacker:
    """Return the stacker after ``rounds`` rounds on all rows."""
    pool = fit_log_pool(design, labels)
    settings = {**FIXED, **params, "seed": seed, "num_threads": _threads(design)}
    booster = lgb.train(settings, _dataset(design, labels, pool), num_boost_round=max(rounds, 1))
    # Through its text form at once: a booster that came from another process is then the same to the last byte.
    return Stacker(lgb.Booster(model_str=booster.model_to_string()), pool)


def fit_early_stopped(
    train: Design,
    labels: Integers,
    held_out: Design,
    held_labels: Integers,
    params: dict[str, Any],
    rounds: int,
    seed: int,
) -> tuple[int, NDArray[np.float64]]:
    """Train with early stopping on held-out rows; return the best round and the held-out (n, 3) logits there."""
    pool = fit_log_pool(train, labels)
    data = _dataset(train, labels, pool)
    valid = _dataset(held_out, held_labels, pool, reference=data)
    settings = {**FIXED, **params, "seed": seed, "num_threads": _threads(train)}
    stop = lgb.early_stopping(PATIENCE, verbose=False)
    booster = lgb.train(settings, data, num_boost_round=rounds, valid_sets=[valid], callbacks=[stop])
    best = max(1, booster.best_iteration)
    return best, pool.logits(held_out) + _boosted(booster, held_out, best)
