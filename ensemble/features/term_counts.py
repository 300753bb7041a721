"""Hashed words and pairs of words of both responses, for the TF-IDF baseline.

Hashing fits nothing, and memory does not grow with the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BUCKETS = 2**17  # of hashed words and pairs of words
MAX_CHARACTERS = 6000  # read of a response: bounds time and memory on long conversations


@dataclass(frozen=True)
class TermCounts:
    """Terms of (n) battles.

    Attributes:
        a: (n, BUCKETS) counts of the hashed terms of response A.
        b: the same of response B.
        log_words: (n, 2) log words of both responses.
    """

    a: csr_matrix
    b: csr_matrix
    log_words: NDArray[np.float64]

    def take(self, rows: NDArray[np.integer]) -> TermCounts:
        return TermCounts(self.a[rows], self.b[rows], self.log_words[rows])


def count_terms(table: pl.DataFrame) -> TermCounts:
    """Return the term counts of (n) battles in the table's order."""
    from sklearn.feature_extraction.text import HashingVectorizer  # takes a second to import

    hashing = HashingVectorizer(
        n_features=BUCKETS, ngram_range=(1, 2), alternate_sign=False, norm=None, dtype=np.float32
    )
    joined = [table[f"response_{side}"].list.join("\n") for side in ("a", "b")]
    counts = [hashing.transform(texts.str.slice(0, MAX_CHARACTERS).to_list()) for texts in joined]
    words = [texts.str.count_matches(r"\S+").to_numpy().astype(np.float64) for texts in joined]
    return TermCounts(counts[0], counts[1], np.log1p(np.stack(words, axis=1)))
