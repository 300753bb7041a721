"""Near-duplicate prompts in different folds, found by an exact measure that shares no code with the grouping.

Sampled prompts are compared with all prompts through sparse indicator matrices of character 5-grams (scikit-learn's
``CountVectorizer``), candidates once more as Python sets. The template rule of :mod:`oof.folds.near_duplicates` is applied
independently and leniently: what is reported here is alike beyond doubt, ``MARGIN`` above the threshold.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from oof.folds.groups import normalise
from oof.folds.minhash import CAP, SHINGLE
from oof.folds.near_duplicates import BUCKET, TEMPLATE, TINY

MARGIN = 0.05  # pairs this near the threshold are not held against the grouping
CHUNK = 4096  # prompts whose 5-grams are in memory at a time
MAX_PAIRS = 50_000  # candidate pairs that are measured; of more, as many at random


@dataclass(frozen=True)
class TornPair:
    """Ids of two battles in different folds, at least one of them scored, and their prompts' similarity."""

    one: str
    other: str
    similarity: float


def near_duplicates(table: pl.DataFrame, threshold: float, sample: int) -> tuple[int, list[TornPair]]:
    """Return how many scored prompts were compared with all, and the near-duplicates that lie in other folds.

    Prompts equal after normalisation are found everywhere, near-duplicates of the sampled prompts only. Prompts
    of fewer than 5 or more than 20,000 normalised characters are left out here.

    Args:
        table: battles with id, role, prompt and fold; roles train, extra and unlabelled.
        threshold: Jaccard similarity of the run's grouping.
        sample: most prompts to compare; they are drawn with a fixed seed.
    """
    prompts = _distinct(table)
    texts, ids = prompts["text"].to_list(), prompts["first"].to_list()
    equal = prompts.filter("scored", pl.col("low") != pl.col("high")).select("first", "last").rows()
    torn = [TornPair(first, last, 1.0) for first, last in equal]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.flatnonzero(prompts["scored"].to_numpy()))[:sample])
    if len(chosen) == 0:
        return 0, torn
    low, high = prompts["low"].to_numpy(), prompts["high"].to_numpy()
    pairs = _alike(texts, chosen, threshold)
    pairs = pairs[np.minimum(low[pairs[:, 0]], low[pairs[:, 1]]) != np.maximum(high[pairs[:, 0]], high[pairs[:, 1]])]
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:MAX_PAIRS])]
    templates = _Templates(texts, threshold)
    for one, two in pairs.tolist():
        similarity = _jaccard(texts[one], texts[two])
        if similarity >= min(threshold + MARGIN, 1.0) and not templates.explain(one, two):
            torn.append(TornPair(ids[one], ids[two], similarity))
    return len(chosen), torn


def _distinct(table: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct prompts, sorted: text, is any battle scored, low and high fold, ids of such battles."""
    parts = [normalise(part["prompt"].list.join("\n")) for part in table.iter_slices(20_000)]
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


def _alike(texts: Sequence[str], chosen: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Return (m, 2) positions (chosen, other) whose shared 5-grams are enough, given the chosen text's own number."""
    size = (SHINGLE, SHINGLE)
    counter = CountVectorizer(analyzer="char", ngram_range=size, binary=True, lowercase=False, dtype=np.int32)
    own = csr_array(counter.fit_transform([texts[i] for i in chosen]))
    needed = threshold * np.diff(own.indptr)
    place = np.full(len(texts), len(texts))  # of a chosen text among the chosen, so that two of them meet once
    place[chosen] = np.arange(len(chosen))
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(texts), CHUNK):
        shared = (own @ csr_array(counter.transform(texts[start : start + CHUNK])).T).tocoo()
        row, other = shared.coords[0], start + shared.coords[1]
        kept = (shared.data >= needed[row]) & (row < place[other])
        found.append(np.stack([chosen[row[kept]], other[kept]], axis=1))
    return np.concatenate(found)


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(len(text) - SHINGLE + 1, 1))}


def _jaccard(one: str, two: str, without: Set[str] = frozenset()) -> float:
    """Return the Jaccard similarity of two texts' 5-grams, some left out."""
    left, right = _shingles(one) - without, _shingles(two) - without
    return len(left & right) / max(len(left | right), 1)


class _Templates:
    """The known templates among sorted texts, and the rule for what is alike beyond them; doubts are resolved as no.

    Half as many texts as make a known template for the grouping make one here.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self.texts, self.threshold = texts, threshold
        self.families: dict[str, frozenset[str]] = {}  # first characters -> 5-grams of all templates that begin so

    def explain(self, one: int, two: int) -> bool:
        """Is the likeness of two texts only that of a template?"""
        texts = self.texts[one], self.texts[two]
        families = [self.family(text[:TEMPLATE]) for text in texts if self.known(text)]
        if families:
            return min(_jaccard(*texts, family) for family in families) < min(self.threshold + MARGIN, 1.0)
        left, right = (text.split(" ") for text in texts)
        words = [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))]
        rests = " ".join(left[len(words) :]), " ".join(right[len(words) :])
        if len(" ".join(words)) < TEMPLATE or not all(rests) or max(map(len, rests)) <= TINY:
            return False
        return _jaccard(*rests) < self.threshold / 2 + MARGIN

    def family(self, beginning: str) -> frozenset[str]:
        if beginning not in self.families:
            start, stop = self._range(beginning)
            known = {self.known(text) for text in self.texts[start:stop]}
            self.families[beginning] = frozenset().union(*map(_shingles, known - {""}))
        return self.families[beginning]

    def known(self, text: str) -> str:
        """Return the longest known template that the text begins with, or an empty string."""
        words = text.split(" ")
        n = bisect_left(range(len(words)), True, key=lambda n: self._sharing(words[: n + 1]) < BUCKET // 2)
        template = " ".join(words[:n])
        return template if len(template) >= TEMPLATE else ""

    def _sharing(self, words: Sequence[str]) -> int:
        start, stop = self._range(" ".join(words))
        return stop - start

    def _range(self, beginning: str) -> tuple[int, int]:
        return bisect_left(self.texts, beginning), bisect_left(self.texts, beginning + "\U0010ffff")
