"""Comparison of two predictors, overall and by slice.

The *advantage* of the first over the second is the second's log loss minus the first's on the same battles, in nats:
above 0, the first is better. Each slice is one null hypothesis ("no difference on this slice"). Holm's method adjusts
their p-values together, so the probability that any finding of a comparison is false is at most 5 %. Intervals are per
slice (95 % each, by groups), not simultaneous.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.report.examples import strongest_cases
from ensemble.report.run_data import RunData
from ensemble.report.slices import Bools, Slice, strata
from ensemble.statistics.bootstrap import Interval, contrast, group_interval
from ensemble.statistics.interval_words import above_zero, below_zero, too_few
from ensemble.statistics.standard_errors import holm, p_value
from oof.classes import CLASSES
from oof.metrics import Floats, Integers, row_log_loss

ALPHA = 0.05
GRID = 20  # cells on a side of the heat map of two predictors' probabilities
POINTS = 2000  # marks of a scatter plot; of more battles a seeded sample is drawn, so that the page stays small
DRAWN = 8  # pairs of members with figures; further pairs have tables only


def compare_members(run: RunData, properties: pl.DataFrame, slices: list[Slice]) -> list[dict[str, Any]]:
    """Return the comparison of each pair of members, and the effect of the corpus on it if there is a corpus.

    Args:
        run: n battles.
        properties: (n) battles, as :func:`ensemble.report.slices.battle_properties` returns them.
        slices: of the n battles.
    """
    pairs = list(combinations(run.members, 2))
    n_points = POINTS * 3 // min(max(len(pairs), 3), DRAWN)
    comparisons = []
    for first, second in pairs:
        comparison = compare((first, second), run, slices) | side_by_side((first, second), run, n_points)
        comparison["seen"] = None
        if run.in_corpus is not None:
            advantage = _advantage((first, second), run)
            comparison["seen"] = corpus_effect(advantage, run.in_corpus, run.groups, strata(properties), run.seed)
        comparisons.append(comparison)
    return comparisons


def _advantage(names: tuple[str, str], run: RunData) -> NDArray[np.float64]:
    """Return the (n,) advantages of the first predictor over the second."""
    return row_log_loss(run.probs[names[1]], run.labels) - row_log_loss(run.probs[names[0]], run.labels)


def compare(names: tuple[str, str], run: RunData, slices: list[Slice]) -> dict[str, Any]:
    """Return losses, advantage, p-value and finding of two predictors, over all battles and per slice."""
    first, second = (row_log_loss(run.probs[name], run.labels) for name in names)
    advantage, groups = second - first, run.groups
    rows: list[dict[str, Any]] = []
    for part in [Slice("all", "all battles", np.ones(len(run.labels), dtype=bool)), *slices]:
        at = part.flags
        rows.append(
            {
                "family": part.family,
                "slice": part.name,
                "n": int(at.sum()),
                "n_groups": len(np.unique(groups[at])),
                "loss_first": float(first[at].mean()),
                "loss_second": float(second[at].mean()),
                "advantage": group_interval(advantage[at], groups[at], run.seed),
                "p": p_value(advantage[at], groups[at]),
            }
        )
    adjusted = holm([row["p"] for row in rows[1:]])  # the overall difference is a single, planned test
    for row, p in zip(rows, [rows[0]["p"], *adjusted], strict=True):
        row["p_adjusted"] = p
        row["finding"] = _finding(row, names)
    return {"first": names[0], "second": names[1], "overall": rows[0], "slices": rows[1:]}


def _finding(row: dict[str, Any], names: tuple[str, str]) -> str:
    if row["p_adjusted"] is None:
        return too_few(row["n_groups"])
    if row["p_adjusted"] >= ALPHA:
        return "no difference shown"
    return f"{names[0] if row['advantage']['value'] > 0 else names[1]} better"


def corpus_effect(advantage: Floats, in_corpus: Bools, groups: Integers, strata: Integers, seed: int) -> dict[str, Any]:
    """Return the advantage on prompts that are in the corpus and that are not, and the difference, with intervals.

    ``matched`` is the difference between battles of the same stratum.

    Args:
        advantage: (n,) of one member over another.
        in_corpus: (n,) whether the prompt is in the corpus.
        groups: (n,) group numbers.
        strata: (n,) numbers of similar battles (:func:`ensemble.report.slices.strata`).
        seed: of the bootstrap.
    """
    effect: dict[str, Any] = {"n_seen": int(in_corpus.sum()), "n_unseen": int((~in_corpus).sum())}
    for name, at in (("seen", in_corpus), ("unseen", ~in_corpus)):
        effect[name] = group_interval(advantage[at], groups[at], seed) if at.any() else None
    effect["difference"] = contrast(advantage, in_corpus, groups, seed)
    effect["matched"] = contrast(advantage, in_corpus, groups, seed, strata)
    difference: Interval = effect["difference"]
    if difference["low"] is None:
        effect["finding"] = too_few(difference.get("groups", 0))  # 0 where all prompts are on one side
    elif above_zero(difference):
        effect["finding"] = "larger on prompts in the corpus"
    elif below_zero(difference):
        effect["finding"] = "smaller on prompts in the corpus"
    else:
        effect["finding"] = "no difference shown"
    return effect


def side_by_side(names: tuple[str, str], run: RunData, n_points: int = POINTS) -> dict[str, Any]:
    """Return who is right alone, the two predictors' probabilities of the verdict, and the strongest cases."""
    probs = run.probs[names[0]], run.probs[names[1]]
    return {
        "right_alone": right_alone(probs, run.labels),
        "grid": probability_grid(probs, run.labels),
        "points": probability_points(probs, run.labels, run.seed, n_points),
        "strongest": strongest_cases(run.table, _advantage(names, run), run.labels),
    }


def right_alone(probs: tuple[Floats, Floats], labels: Integers) -> dict[str, Any]:
    """Return how often the most probable class of both, one or neither predictor is the verdict, per class."""
    first, second = (p.argmax(axis=1) == labels for p in probs)
    cases = {"both": first & second, "first": first & ~second, "second": ~first & second, "neither": ~first & ~second}
    rows = {}
    for name, flags in cases.items():
        counts = np.bincount(labels[flags], minlength=len(CLASSES)).tolist()
        rows[name] = {"n": int(flags.sum()), **dict(zip(CLASSES, counts, strict=True))}
    return rows


def probability_grid(probs: tuple[Floats, Floats], labels: Integers) -> dict[str, Any]:
    """Return (GRID, GRID) counts of battles by the two predictors' probability of the verdict, and their correlation.

    Row i, column j: the first predictor's probability in [j, j + 1) / GRID, the second's in [i, i + 1) / GRID.
    """
    of_verdict = [p[np.arange(len(labels)), labels] for p in probs]
    cells = [np.minimum((p * GRID).astype(np.int64), GRID - 1) for p in of_verdict]
    counts = np.zeros((GRID, GRID), dtype=np.int64)
    np.add.at(counts, (cells[1], cells[0]), 1)
    constant = any(p.std() == 0 for p in of_verdict)
    correlation = None if constant else float(np.corrcoef(of_verdict[0], of_verdict[1])[0, 1])
    return {"cells": GRID, "counts": counts.tolist(), "correlation": correlation}


def probability_points(
    probs: tuple[Floats, Floats], labels: Integers, seed: int, n_points: int = POINTS
) -> dict[str, Any]:
    """Return the two predictors' probabilities of the verdict per battle; of more than ``n_points`` a seeded sample.

    ``first``, ``second`` (to three decimals, finer than a screen) and ``verdict`` (0, 1, 2) have ``n_shown`` values.
    """
    n = len(labels)
    rows = np.arange(n)
    if n > n_points:
        rows = np.sort(np.random.default_rng(seed).choice(n, n_points, replace=False))
    first, second = (np.round(np.asarray(p[rows, labels[rows]], dtype=np.float64), 3).tolist() for p in probs)
    return {"n": n, "n_shown": len(rows), "first": first, "second": second, "verdict": labels[rows].tolist()}
