"""Ranges of the training battles, and warnings about battles that are unlike them.

The guarantee of abstention holds for battles like those of training. These checks are cheap and find coarse differences
only: a battle without a warning may still be unlike the training battles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.text_statistics import SCRIPTS, code_points, script_shares
from oof.data.schemas import TEXTS
from oof.metrics import Integers

LONG = "0.995"  # quantile of the tokens above which a battle is longer than those of training
QUANTILES = ("0.5", "0.9", LONG)
RARE = 0.005  # share of the training battles below which truncation, or a script, counts as unseen
CHARACTERS = 500  # of each text that tell its script
BLOCK = 2_000  # battles at a time
NO_SCRIPT = "none"  # of a battle without letters


@dataclass(frozen=True)
class TrainingRanges:
    """Ranges of the training battles.

    Attributes:
        tokens: quantile -> tokens of prompt and both responses, before truncation; empty where they were not counted.
        truncated: share of the battles of which the student read a part only.
        scripts: script of most letters -> share of the battles.
    """

    tokens: dict[str, float]
    truncated: float
    scripts: dict[str, float]

    @classmethod
    def of(cls, table: pl.DataFrame, given: Integers | None = None, kept: Integers | None = None) -> TrainingRanges:
        """Return the ranges of n battles.

        Args:
            table: (n) battles.
            given: (n, 3) tokens of prompt and responses; None = not known.
            kept: (n, 3) those of them that the student reads.
        """
        names, counts = np.unique(scripts_of(table), return_counts=True)
        scripts = {str(name): float(count / table.height) for name, count in zip(names, counts, strict=True)}
        if given is None or kept is None:
            return cls({}, 0.0, scripts)
        tokens = {name: float(np.quantile(given.sum(axis=1), float(name))) for name in QUANTILES}
        return cls(tokens, float((kept < given).any(axis=1).mean()), scripts)

    def warnings(self, table: pl.DataFrame, given: Integers, kept: Integers) -> list[tuple[str, ...]]:
        """Return for each of n battles how it is unlike the training battles; arguments as of :meth:`of`."""
        long = np.asarray(given.sum(axis=1) > self.tokens.get(LONG, np.inf))
        cut, cut_in_training = np.asarray(kept < given), not self.tokens or self.truncated >= RARE
        rows = []
        for is_long, is_cut, script in zip(long.tolist(), cut.tolist(), scripts_of(table).tolist(), strict=True):
            checks = {
                f"longer than {float(LONG):.1%} of the training battles": is_long,
                "truncated, as training battles were not": any(is_cut) and not cut_in_training,
                f"mostly in {script} letters, as training battles were not": script != NO_SCRIPT
                and self.scripts.get(script, 0.0) < RARE,
            }
            rows.append(tuple(message for message, holds in checks.items() if holds))
        return rows


def scripts_of(table: pl.DataFrame) -> NDArray[np.str_]:
    """Return the script of most letters of each of (n) battles; "none" without letters."""
    return np.concatenate([np.empty(0, "U8"), *(_scripts(block) for block in table.iter_slices(BLOCK))])


def _scripts(table: pl.DataFrame) -> NDArray[np.str_]:
    beginnings = [pl.col(name).list.join("\n").str.head(CHARACTERS) for name in TEXTS]
    texts = table.select(text=pl.concat_str(beginnings, separator="\n"))["text"]
    shares = script_shares(*code_points(texts), len(texts))
    return np.where(shares.any(axis=1), np.array(SCRIPTS)[shares.argmax(axis=1)], NO_SCRIPT)
