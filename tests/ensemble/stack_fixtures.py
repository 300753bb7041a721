"""Synthetic OOF logits with a known optimum: two noisy members, a length effect, a tie band."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from ensemble.design import Design, build_design


class Arena(NamedTuple):
    design: Design
    table: pl.DataFrame
    logits: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]
    truth: NDArray[np.float64]


def probabilities(advantage: NDArray[np.float64], tie: float = 0.8) -> NDArray[np.float64]:
    a, b = expit(advantage - tie), expit(-advantage - tie)
    return np.stack([a, b, 1 - a - b], axis=1)


def make_arena(n: int, seed: int = 0, k: int = 3, noise: float = 0.7, position: float = 0.0) -> Arena:
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1.5, n)
    words = rng.integers(3, 60, size=(n, 2))
    length = np.log1p(words[:, 0]) - np.log1p(words[:, 1])
    truth = probabilities(quality + 0.8 * length + position)
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    logits = {}
    for name, temperature in (("one", 1.0), ("two", 0.5)):
        orders = [np.log(probabilities(quality + rng.normal(0, noise, n))) / temperature for _ in range(2)]
        logits[name] = np.stack(orders, axis=1).astype(np.float32)
    table = pl.DataFrame(
        {
            "id": [f"b{i}" for i in range(n)],
            "prompt": [["what is it?"]] * n,
            "response_a": [[" ".join(["word"] * w)] for w in words[:, 0]],
            "response_b": [[" ".join(["term"] * w)] for w in words[:, 1]],
        }
    )
    groups = np.arange(n) // 2
    return Arena(build_design(table, logits), table, logits, labels, groups % k, groups, truth)
