"""Junk prompts: their share, kinds and examples, and their effect on the log loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.examples import EXAMPLES, excerpt
from ensemble.statistics.bootstrap import contrast, group_interval
from oof.data.prompt_quality import JUNK, MEANINGS, SCORES, prompt_flags
from oof.data.text_columns import prompt_texts
from oof.metrics import Floats, Integers, row_log_loss

REPEATED = 5  # prompts that most battles share


def junk_report(
    table: pl.DataFrame, probs: Mapping[str, Floats], labels: Integers, groups: Integers, seed: int
) -> dict[str, Any]:
    """Return the share of junk, a row per kind, each predictor's loss on junk, and the most repeated prompts.

    ``cost`` is the mean loss on junk minus the mean loss on the other prompts.

    Args:
        table: (n) battles.
        probs: predictor -> (n, 3).
        labels: (n,) classes.
        groups: (n,) group numbers.
        seed: of the bootstrap.
    """
    texts = prompt_texts(table)
    flags = prompt_flags(texts)
    kind_flags = {kind: flags[kind].to_numpy() for kind, score in SCORES.items() if score < JUNK}
    junk = np.any(list(kind_flags.values()), axis=0)
    kinds = [
        {"kind": kind, "meaning": MEANINGS[kind], "score": SCORES[kind], "n": int(at.sum()),
         "share": float(at.mean()), "tie_rate": float((labels[at] == 2).mean()) if at.any() else None,
         "examples": _distinct(texts, at)}
        for kind, at in kind_flags.items()
    ]  # fmt: skip
    effect = {}
    for name, p in probs.items():
        losses = row_log_loss(p, labels)
        effect[name] = {
            "junk": float(losses[junk].mean()) if junk.any() else None,
            "rest": float(losses[~junk].mean()) if not junk.all() else None,
            "cost": contrast(losses, junk, groups, seed),
        }
    return {
        "n": len(junk),
        "n_junk": int(junk.sum()),
        "share": group_interval(junk.astype(float), groups, seed),
        "kinds": kinds,
        "effect": effect,
        "repeated": _repeated(texts),
    }


def _distinct(texts: pl.Series, at: Any) -> list[str]:
    return [excerpt(text) for text in texts.filter(pl.Series(at)).unique(maintain_order=True).head(EXAMPLES)]


def _repeated(texts: pl.Series) -> list[dict[str, Any]]:
    """Return the prompts that most battles have in common, word for word."""
    counts = (
        texts.alias("text").value_counts().filter(pl.col("count") > 1).sort("count", "text", descending=[True, False])
    )
    return [{"text": excerpt(row["text"]), "n": row["count"]} for row in counts.head(REPEATED).to_dicts()]
