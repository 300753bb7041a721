"""Ties: how well predictors detect them, their share of the log loss, and their origins.

A predictor is *blind* to ties if its mean probability of a tie is not at least ``LEAST_GAP`` higher on ties than on
decided battles, or the interval of this difference reaches 0. It is *weak* on ties if its loss on them is higher than
that of the prior, which knows only how frequent ties are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.slices import Bools
from ensemble.statistics.binning import bin_means, equal_mass_bins
from ensemble.statistics.bootstrap import Interval, contrast, group_interval
from ensemble.statistics.interval_words import above_zero, too_few
from ensemble.statistics.scores import tie_recall
from oof.metrics import Floats, Integers, row_log_loss

LEAST_GAP = 0.01  # difference of mean P(tie) between ties and decided battles
SHORT = 20  # words: a shorter response is short
BINS = 8  # of the calibration curve


def tie_report(probs: Floats, labels: Integers, groups: Integers, seed: int) -> dict[str, Any] | None:
    """Return one predictor's numbers about ties; None if no battle or every battle is a tie.

    ``confusion[i][j]`` counts battles of class i whose most probable class is j. ``cost`` is the contribution of ties
    to the log loss in nats per battle, ``excess`` the mean loss on ties minus the prior's loss there.

    Args:
        probs: (n, 3).
        labels: (n,) classes.
        groups: (n,) group numbers.
        seed: of the bootstrap.
    """
    ties = labels == 2
    if not ties.any() or ties.all():
        return None
    losses, p = row_log_loss(probs, labels), np.asarray(probs[:, 2], dtype=np.float64)
    top = probs.argmax(axis=1)
    prior = -np.log(ties.mean())
    gap = contrast(p, ties, groups, seed)
    excess = group_interval(losses[ties] - prior, groups[ties], seed)
    confusion = np.zeros((3, 3), dtype=np.int64)
    np.add.at(confusion, (labels, top), 1)
    n_predicted = int((top == 2).sum())
    return {
        "n_ties": int(ties.sum()),
        "share": float(ties.mean()),
        "mean_p_tie": group_interval(p, groups, seed),
        "recall": tie_recall(probs, labels),
        "recall_interval": group_interval((top[ties] == 2).astype(float), groups[ties], seed),
        "named_ties": n_predicted,
        "precision": float(ties[top == 2].mean()) if n_predicted else None,
        "gap": gap,
        "loss_on_ties": float(losses[ties].mean()),
        "loss_on_decided": float(losses[~ties].mean()),
        "prior_on_ties": float(prior),
        "excess": excess,
        "cost": float(losses[ties].sum() / len(losses)),
        "cost_share": float(losses[ties].sum() / losses.sum()),
        "confusion": confusion.tolist(),
        "calibration": _calibration(p, ties, groups),
        "verdict": _finding(gap, excess),
    }


def _finding(gap: Interval, excess: Interval) -> str:
    if "groups" in gap:
        return too_few(gap["groups"])
    if gap["value"] is None or gap["value"] < LEAST_GAP or not above_zero(gap):
        return "blind to ties"
    return "weak on ties" if above_zero(excess) else "sees ties"


def _calibration(p: Floats, ties: Bools, groups: Integers) -> list[dict[str, Any]]:
    bins = equal_mass_bins(p, BINS)
    means, rates = bin_means(p, bins, BINS, groups), bin_means(ties.astype(float), bins, BINS, groups)
    return [{"predicted": m["value"], **rate} for m, rate in zip(means, rates, strict=True) if rate["n"]]


def origins(properties: pl.DataFrame) -> dict[str, Bools]:
    """Return (n,) flags of each kind of battle; a battle has the first kind whose rule it meets."""
    empty_a, empty_b = (properties[f"words_{side}"].to_numpy() == 0 for side in "ab")
    short = (properties["words_a"].to_numpy() < SHORT) & (properties["words_b"].to_numpy() < SHORT)
    rules = {
        "identical answers": properties["identical"].to_numpy(),
        "both bad": (properties["refusal_a"].to_numpy() | empty_a) & (properties["refusal_b"].to_numpy() | empty_b),
        "both short": short,
    }
    left, kinds = np.ones(properties.height, dtype=bool), {}
    for name, flags in rules.items():
        kinds[name] = flags & left
        left &= ~flags
    return kinds | {"other": left}


def origin_rows(
    properties: pl.DataFrame, probs: Mapping[str, Floats], labels: Integers, groups: Integers, seed: int
) -> list[dict[str, Any]]:
    """Return for each kind of battle its number, tie rate, share of all ties, and predictors' mean P(tie) and loss.

    Args:
        properties: (n) battles, as :func:`ensemble.report.slices.battle_properties` returns them.
        probs: predictor -> (n, 3).
        labels: (n,) classes.
        groups: (n,) group numbers.
        seed: of the bootstrap.
    """
    ties, rows = labels == 2, []
    losses = {name: row_log_loss(p, labels) for name, p in probs.items()}
    for name, at in origins(properties).items():
        if not at.any():
            rows.append({"origin": name, "n": 0, "tie_rate": None, "share_of_ties": 0.0, "predictors": {}})
            continue
        predictors = {
            key: {"mean_p_tie": float(p[at, 2].mean()), "loss": float(losses[key][at].mean())}
            for key, p in probs.items()
        }
        rate = group_interval(ties[at].astype(float), groups[at], seed)
        share = float(ties[at].sum() / max(ties.sum(), 1))
        rows.append({"origin": name, "n": int(at.sum()), "tie_rate": rate, "share_of_ties": share,
                     "predictors": predictors})  # fmt: skip
    return rows
