"""Balance of folds: their sizes, groups and class shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES, class_counts


def fold_report(table: pl.DataFrame, groups: NDArray[np.int64], folds: NDArray[np.int32], k: int) -> dict[str, Any]:
    """Return the balance of the folds as plain JSON values.

    Keys: k, battles, groups, largest_group (scored battles), groups_of_several, shares (of the labels),
    largest_share_difference (of any class in any fold from its overall share), folds (the same per fold, and the
    numbers of extra and unlabelled battles held out with it), extra and unlabelled (held_out: in a fold, whether with
    scored battles of their group or without; free: in none).
    """
    role, label = table["role"].to_numpy(), table["label"].fill_null(-1).to_numpy()
    scored = role == "train"
    overall = _shares(label[scored])
    sizes = np.bincount(np.unique(groups[scored], return_inverse=True)[1])
    rows: list[dict[str, Any]] = []
    difference = 0.0
    for fold in range(k):
        inside = folds == fold
        held_out = scored & inside
        shares = _shares(label[held_out])
        difference = max([difference] + [abs(shares[name] - overall[name]) for name in CLASSES])
        rows.append(
            {
                "fold": fold,
                "battles": int(held_out.sum()),
                "groups": len(set(groups[held_out].tolist())),
                "labels": dict(zip(CLASSES, class_counts(label[held_out]).tolist(), strict=True)),
                "shares": shares,
                "extra": int((inside & (role == "extra")).sum()),
                "unlabelled": int((inside & (role == "unlabelled")).sum()),
            }
        )
    others = {
        name: {
            "held_out": int(((role == name) & (folds >= 0)).sum()),
            "free": int(((role == name) & (folds < 0)).sum()),
        }
        for name in ("extra", "unlabelled")
    }
    return {
        "k": k,
        "battles": int(scored.sum()),
        "groups": len(sizes),
        "largest_group": int(sizes.max(initial=0)),
        "groups_of_several": int((sizes > 1).sum()),
        "shares": overall,
        "largest_share_difference": round(difference, 6),
        "folds": rows,
        **others,
    }


def _shares(labels: NDArray[Any]) -> dict[str, float]:
    shares = class_counts(labels) / max(len(labels), 1)
    return {name: round(float(share), 6) for name, share in zip(CLASSES, shares, strict=True)}
