"""Ties: who sees them, what they cost, and where they come from.

A predictor is *blind* to ties if its probability of a tie is not at least ``LEAST_GAP`` higher on ties than on decided
battles, or the interval of that difference reaches 0: it says nothing about which battles are ties. It is *weak* on
ties if it loses more on them than the prior does, which only knows how frequent they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.slices import Bools
from ensemble.statistics.binning import bin_means, equal_mass_bins
from ensemble.statistics.bootstrap import contrast, group_interval
from ensemble.statistics.scores import tie_recall
from oof.metrics import Floats, Integers, row_log_loss

LEAST_GAP = 0.01  # of P(tie) between ties and decided battles
SHORT = 20  # words: both responses shorter than this are "both short"
BINS = 8


def tie_report(probs: Floats, labels: Integers, groups: Integers, seed: int) -> dict[str, Any] | None:
    """Return one predictor's numbers about ties; None where there are no ties or nothing else.

    ``confusion[i][j]`` counts battles of class i whose most probable class is j. ``cost`` is what ties contribute
    to the log loss (nats a battle), ``excess`` the mean loss on ties minus the prior's there.
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
    named = int((top == 2).sum())
    return {
        "n_ties": int(ties.sum()),
        "share": float(ties.mean()),
        "mean_p_tie": group_interval(p, groups, seed),
        "recall": tie_recall(probs, labels),
        "recall_interval": group_interval((top[ties] == 2).astype(float), groups[ties], seed),
        "named_ties": named,
        "precision": float(ties[top == 2].mean()) if named else None,
        "gap": gap,
        "loss_on_ties": float(losses[ties].mean()),
        "loss_on_decided": float(losses[~ties].mean()),
        "prior_on_ties": float(prior),
        "excess": excess,
        "cost": float(losses[ties].sum() / len(losses)),
        "cost_share": float(losses[ties].sum() / losses.sum()),
        "confusion": confusion.tolist(),
        "calibration": _calibration(p, ties, groups),
        "verdict": _verdict(gap, excess),
    }


def _verdict(gap: dict[str, float | None], excess: dict[str, float]) -> str:
    if gap["value"] is None or gap["value"] < LEAST_GAP or (gap["low"] is not None and gap["low"] <= 0):
        return "blind to ties"
    if gap["low"] is None:
        return "too few groups to say"
    return "weak on ties" if excess["low"] > 0 else "sees ties"


def _calibration(p: Floats, ties: Bools, groups: Integers) -> list[dict[str, Any]]:
    bins = equal_mass_bins(p, BINS)
    means, rates = bin_means(p, bins, BINS, groups), bin_means(ties.astype(float), bins, BINS, groups)
    return [{"predicted": m["value"], **rate} for m, rate in zip(means, rates, strict=True) if rate["n"]]


def origins(facts: pl.DataFrame) -> dict[str, Bools]:
    """Return (n,) flags of each kind of battle, exclusive, in this order: the first that holds."""
    empty_a, empty_b = (facts[f"words_{side}"].to_numpy() == 0 for side in "ab")
    short = (facts["words_a"].to_numpy() < SHORT) & (facts["words_b"].to_numpy() < SHORT)
    rules = {
        "identical answers": facts["identical"].to_numpy(),
        "both bad": (facts["refusal_a"].to_numpy() | empty_a) & (facts["refusal_b"].to_numpy() | empty_b),
        "both short": short,
    }
    left, found = np.ones(facts.height, dtype=bool), {}
    for name, flags in rules.items():
        found[name] = flags & left
        left &= ~flags
    return found | {"other": left}


def origin_rows(
    facts: pl.DataFrame, probs: Mapping[str, Floats], labels: Integers, groups: Integers, seed: int
) -> list[dict[str, Any]]:
    """Return for each origin: battles, tie rate, share of all ties, each predictor's mean P(tie) and mean loss."""
    ties, rows = labels == 2, []
    losses = {name: row_log_loss(p, labels) for name, p in probs.items()}
    for name, at in origins(facts).items():
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
