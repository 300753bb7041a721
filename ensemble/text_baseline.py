"""The text baseline: TF-IDF of response A minus that of B, and lengths, in a logistic regression. No language model.

What a stack of language models must beat to be worth its price. Words and pairs of words are hashed once (nothing is
fitted, memory does not grow with the vocabulary); the inverse document frequencies, the scales and the regression are
fitted on the training rows alone. Exchanging A and B negates the difference and the log ratios, training sees both
orders, and the scores of both are averaged: the output is exchanged exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from ensemble.combiners import prior_probs
from ensemble.design import SWAP
from oof.metrics import softmax

BUCKETS = 2**17  # of hashed words and pairs of words
CHARACTERS = 6000  # of a response that are read: bounds time and memory on long conversations
RARE = 4  # responses that a term must occur in
STRENGTH = 0.05  # scikit-learn's C: thousands of terms, few battles
LENGTHS = 3.0  # scale of the lengths, which so escape the penalty on terms
STEPS = 200  # of L-BFGS, at most

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Texts:
    """Counts of hashed terms of each response (n, BUCKETS), and (n,) log words of each."""

    a: csr_matrix
    b: csr_matrix
    log_words: NDArray[np.float64]  # (n, 2)

    def take(self, rows: NDArray[np.int64]) -> Texts:
        return Texts(self.a[rows], self.b[rows], self.log_words[rows])


def count_terms(table: pl.DataFrame) -> Texts:
    """Return the term counts of (n) battles in the table's order."""
    hashing = HashingVectorizer(
        n_features=BUCKETS, ngram_range=(1, 2), alternate_sign=False, norm=None, dtype=np.float32
    )
    joined = [table[f"response_{side}"].list.join("\n") for side in ("a", "b")]
    counts = [hashing.transform(texts.str.slice(0, CHARACTERS).to_list()) for texts in joined]
    words = [texts.str.count_matches(r"\S+").to_numpy().astype(np.float64) for texts in joined]
    return Texts(counts[0], counts[1], np.log1p(np.stack(words, axis=1)))


def text_probs(train: Texts, labels: Integers, held_out: Texts) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of held-out battles by a regression on the training battles.

    Args:
        train: the training rows.
        labels: theirs.
        held_out: (n) rows that nothing is fitted on.
    """
    present = np.unique(np.concatenate([labels, np.array(SWAP)[labels]]))
    if len(present) < 2:
        return prior_probs(labels, held_out.a.shape[0])
    both = vstack([train.a, train.b]).tocsr()
    often = np.flatnonzero(np.bincount(both.indices, minlength=BUCKETS) >= RARE)  # fewer unknowns, far faster
    train, held_out = (Texts(t.a[:, often], t.b[:, often], t.log_words) for t in (train, held_out))
    idf = TfidfTransformer(sublinear_tf=True).fit(both[:, often])
    spread = np.maximum(_lengths(train).std(axis=0), 1e-6)
    x, mirrored = _inputs(train, idf, spread)
    model = LogisticRegression(C=STRENGTH, max_iter=STEPS, tol=1e-3)
    model.fit(vstack([x, mirrored]).tocsr(), np.concatenate([labels, np.array(SWAP)[labels]]))
    given, swapped = (_logits(model, part) for part in _inputs(held_out, idf, spread))
    return softmax((given + swapped[:, SWAP]) / 2)


def _lengths(texts: Texts) -> NDArray[np.float64]:
    """Return (n, 3): the log ratio of words, its size, and the mean log words (the last two do not change sign)."""
    ratio = texts.log_words[:, 0] - texts.log_words[:, 1]
    return np.stack([ratio, np.abs(ratio), texts.log_words.sum(axis=1) / 2], axis=1)


def _inputs(texts: Texts, idf: TfidfTransformer, spread: NDArray[np.float64]) -> tuple[csr_matrix, csr_matrix]:
    difference = idf.transform(texts.a) - idf.transform(texts.b)
    lengths = LENGTHS * _lengths(texts) / spread
    mirrored = csr_matrix(lengths * np.array([-1.0, 1.0, 1.0]))
    return hstack([difference, csr_matrix(lengths)]).tocsr(), hstack([-difference, mirrored]).tocsr()


def _logits(model: LogisticRegression, x: csr_matrix) -> NDArray[np.float64]:
    full = np.full((x.shape[0], 3), np.log(1e-12))  # a class that never occurred
    full[:, model.classes_] = model.predict_log_proba(x)
    return full
