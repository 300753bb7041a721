"""The text baseline: TF-IDF of response A minus that of B, and lengths, in a logistic regression. No language model.

What a stack of language models must beat to be worth its price. Words and pairs of words are hashed once (nothing is
fitted, memory does not grow with the vocabulary); the inverse document frequencies, the scales and the regression are
fitted on the training rows alone. Exchanging A and B negates the difference and the log ratios, training sees both
orders, and the scores of both are averaged: the output is exchanged exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import normalize

from ensemble.stacking.combiners import prior_probs
from oof.classes import swap_classes, swap_labels
from oof.common.atomic_files import read_json, write_json
from oof.metrics import log_softmax, softmax

BUCKETS = 2**17  # of hashed words and pairs of words
CHARACTERS = 6000  # of a response that are read: bounds time and memory on long conversations
RARE = 4  # responses that a term must occur in
STRENGTH = 0.05  # scikit-learn's C: thousands of terms, few battles
LENGTHS = 3.0  # scale of the lengths, which so escape the penalty on terms
STEPS = 200  # of L-BFGS, at most
FOLDS = 5  # of the logits that a stacker is trained on

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


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


@dataclass(frozen=True)
class TextModel:
    """The fitted regression: JSON when saved.

    Attributes:
        terms: (t,) buckets of the hashed terms that it reads; ``idf`` (t,) is their inverse document frequency.
        spread: (3,) scales of the lengths.
        coef: (3, t + 3) of terms and lengths; ``intercept`` (3,).
    """

    terms: Floats
    idf: Floats
    spread: Floats
    coef: Floats
    intercept: Floats

    def logits(self, texts: Texts) -> Floats:
        """Return (n, 3) logits, the mean of both orders'."""
        given, swapped = (
            np.asarray(x @ self.coef.T) + self.intercept
            for x in _inputs(texts, self.terms.astype(np.int64), self.idf, self.spread)
        )
        return np.asarray((log_softmax(given) + swap_classes(log_softmax(swapped))) / 2)

    def save(self, file: Path) -> None:
        write_json(file, {name: value.tolist() for name, value in vars(self).items()})

    @classmethod
    def load(cls, file: Path) -> TextModel:
        return cls(**{name: np.array(value, dtype=np.float64) for name, value in read_json(file).items()})


def fit_text(train: Texts, labels: Integers) -> TextModel:
    """Return the regression on the training battles alone.

    Args:
        train: (n) battles.
        labels: (n,).
    """
    present = np.unique(np.concatenate([labels, swap_labels(labels)]))
    if len(present) < 2:
        prior = np.log(np.maximum(prior_probs(labels, 1)[0], 1e-12))
        return TextModel(np.empty(0), np.empty(0), np.ones(3), np.zeros((3, 3)), prior)
    both = vstack([train.a, train.b]).tocsr()
    terms = np.flatnonzero(np.bincount(both.indices, minlength=BUCKETS) >= RARE)  # fewer unknowns, far faster
    idf = TfidfTransformer(sublinear_tf=True).fit(both[:, terms]).idf_ if len(terms) else np.empty(0)
    spread = np.maximum(_lengths(train).std(axis=0), 1e-6)
    inputs = vstack(_inputs(train, terms, idf, spread)).tocsr()
    model = LogisticRegression(C=STRENGTH, max_iter=STEPS, tol=1e-3)
    model.fit(inputs, np.concatenate([labels, swap_labels(labels)]))
    coef, intercept = np.zeros((3, inputs.shape[1])), np.full(3, np.log(1e-12))  # a class that never occurred
    if len(present) == 2:  # scikit-learn keeps one row of two: the log odds of the second class
        coef[present] = np.vstack([-model.coef_, model.coef_]) / 2
        intercept[present] = np.array([-1, 1]) * model.intercept_[0] / 2
    else:
        coef, intercept = model.coef_, model.intercept_
    return TextModel(terms.astype(np.float64), np.asarray(idf, dtype=np.float64), spread, coef, intercept)


def text_probs(train: Texts, labels: Integers, held_out: Texts) -> Floats:
    """Return (n, 3) probabilities of held-out battles by a regression on the training battles.

    Args:
        train: the training rows.
        labels: theirs.
        held_out: (n) rows that nothing is fitted on.
    """
    return softmax(fit_text(train, labels).logits(held_out))


def out_of_fold_text(texts: Texts, labels: Integers, groups: Integers, seed: int) -> Floats:
    """Return (n, 3) logits of each battle by regressions on other groups' battles: what a stacker may be trained on.

    Five folds of whole groups, more than stage one's, so that the regressions are nearly as good as the one on all.
    """
    if len(np.unique(groups)) < 2:
        return np.repeat(fit_text(texts, labels).intercept[None], len(labels), axis=0)
    splitter = GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    logits = np.empty((len(labels), 3))
    for rest, held in splitter.split(labels, groups=groups):
        logits[held] = fit_text(texts.take(rest), labels[rest]).logits(texts.take(held))
    return logits


def _lengths(texts: Texts) -> NDArray[np.float64]:
    """Return (n, 3): the log ratio of words, its size, and the mean log words (the last two do not change sign)."""
    ratio = texts.log_words[:, 0] - texts.log_words[:, 1]
    return np.stack([ratio, np.abs(ratio), texts.log_words.sum(axis=1) / 2], axis=1)


def _inputs(texts: Texts, terms: NDArray[np.int64], idf: Floats, spread: Floats) -> tuple[csr_matrix, csr_matrix]:
    """Return the (n, t + 3) inputs of battles and of their mirror images."""
    difference = _weighted(texts.a[:, terms], idf) - _weighted(texts.b[:, terms], idf)
    lengths = LENGTHS * _lengths(texts) / spread
    mirrored = csr_matrix(lengths * np.array([-1.0, 1.0, 1.0]))
    return hstack([difference, csr_matrix(lengths)]).tocsr(), hstack([-difference, mirrored]).tocsr()


def _weighted(counts: csr_matrix, idf: Floats) -> csr_matrix:
    """Return (1 + log count) times idf, rows of length 1: what TfidfTransformer gives."""
    weights = counts.astype(np.float64)
    weights.data = (np.log(weights.data) + 1.0) * idf[weights.indices]
    return csr_matrix(normalize(weights, copy=False)) if len(idf) else weights
