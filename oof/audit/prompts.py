"""Near-duplicate prompts in different folds, found by exact comparison.

Sampled prompts are compared with all prompts through sparse indicator matrices of character 5-grams (scikit-learn's
``CountVectorizer``), candidate pairs once more as Python sets: no MinHash, and no code of the grouping's measure. Pairs
that are alike only by a shared template are not reported; that decision is the grouping's own rule
(:func:`oof.folds.near_duplicates.alike_beyond_template`). A reported pair is ``MARGIN`` above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from oof.data.text_columns import prompt_texts
from oof.folds.groups import normalise
from oof.folds.minhash import CAP, SHINGLE
from oof.folds.near_duplicates import alike_beyond_template

MARGIN = 0.05  # pairs this near the threshold are not reported: LSH may miss a few of them
CHUNK = 4096  # prompts whose 5-grams are in memory at a time
MAX_PAIRS = 50_000  # candidate pairs that are measured; of more, as many at random


@dataclass(frozen=True)
class SplitPair:
    """Ids of two battles in different folds, at least one of them scored, and their prompts' similarity."""

    one: str
    other: str
    similarity: float


def near_duplicates(table: pl.DataFrame, threshold: float, sample: int) -> tuple[int, list[SplitPair]]:
    """Return how many scored prompts were compared with all, and the near-duplicates that lie in other folds.

    Prompts equal after normalisation are found everywhere, near-duplicates of the sampled prompts only. Prompts
    of fewer than 5 or more than 20,000 normalised characters are not compared.

    Args:
        table: battles with id, role, prompt and fold; roles train, extra and unlabelled.
        threshold: Jaccard similarity of the run's grouping.
        sample: most prompts to compare; they are drawn with a fixed seed.
    """
    prompts = _distinct(table)
    texts, ids = prompts["text"].to_list(), prompts["first"].to_list()
    equal = prompts.filter("scored", pl.col("low") != pl.col("high")).select("first", "last").rows()
    split = [SplitPair(first, last, 1.0) for first, last in equal]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.flatnonzero(prompts["scored"].to_numpy()))[:sample])
    if len(chosen) == 0:
        return 0, split
    low, high = prompts["low"].to_numpy(), prompts["high"].to_numpy()
    pairs = _candidates(texts, chosen, threshold)
    pairs = pairs[np.minimum(low[pairs[:, 0]], low[pairs[:, 1]]) != np.maximum(high[pairs[:, 0]], high[pairs[:, 1]])]
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:MAX_PAIRS])]
    clear = min(threshold + MARGIN, 1.0)
    similarity = np.array([_jaccard(texts[one], texts[two]) for one, two in pairs.tolist()])
    pairs, similarity = pairs[similarity >= clear], similarity[similarity >= clear]
    alike = alike_beyond_template(prompts["text"], pairs, clear)
    for (one, two), value in zip(pairs[alike].tolist(), similarity[alike].tolist(), strict=True):
        split.append(SplitPair(ids[one], ids[two], value))
    return len(chosen), split


def _distinct(table: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct prompts, sorted: text, is any battle scored, low and high fold, ids of such battles."""
    parts = [normalise(prompt_texts(part)) for part in table.iter_slices(20_000)]
    texts = pl.concat(parts) if parts else pl.Series([], dtype=pl.String)
    return (
        table.select("id", "role", "fold")
        .with_columns(texts.alias("text"))
        .filter(pl.col("text").str.len_chars().is_between(SHINGLE, CAP))
        .group_by("text")
        .agg(
            scored=(pl.col("role") == "train").any(),
            low=pl.col("fold").min(),
            high=pl.col("fold").max(),
            first=pl.col("id").sort_by("fold", "id").first(),
            last=pl.col("id").sort_by("fold", "id").last(),
        )
        .sort("text")
    )


def _candidates(texts: Sequence[str], chosen: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Return (m, 2) positions (chosen, other) of pairs that may reach the threshold.

    Their shared 5-grams are at least the threshold's share of the chosen text's own.
    """
    size = (SHINGLE, SHINGLE)
    counter = CountVectorizer(analyzer="char", ngram_range=size, binary=True, lowercase=False, dtype=np.int32)
    own = csr_array(counter.fit_transform([texts[i] for i in chosen]))
    needed = threshold * np.diff(own.indptr)
    place = np.full(len(texts), len(texts))  # of a chosen text among the chosen, so that two of them meet once
    place[chosen] = np.arange(len(chosen))
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, len(texts), CHUNK):
        shared = (own @ csr_array(counter.transform(texts[start : start + CHUNK])).T).tocoo()
        row, other = shared.coords[0], start + shared.coords[1]
        kept = (shared.data >= needed[row]) & (row < place[other])
        pairs.append(np.stack([chosen[row[kept]], other[kept]], axis=1))
    return np.concatenate(pairs)


def _jaccard(one: str, two: str) -> float:
    """Return the Jaccard similarity of the character 5-grams of two texts of at least 5 characters."""
    left, right = ({text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in (one, two))
    return len(left & right) / len(left | right)
