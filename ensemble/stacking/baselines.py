"""Baselines without a language model: class shares, a regression on lengths, and a regression on TF-IDF terms.

A stack of language models must beat them to be worth its price. The TF-IDF baseline is a logistic regression on the
difference of the responses' TF-IDF vectors and on lengths. Words and pairs of words are hashed (nothing is fitted, and
memory does not grow with the vocabulary); the inverse document frequencies, the scales and the regression are fitted
on the training rows alone. Swapping A and B negates the difference and the log ratios, training sees both orders, and
the scores of both are averaged, so the output is swapped exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import normalize

from ensemble.features.design_matrix import Design
from ensemble.features.term_counts import BUCKETS, TermCounts
from ensemble.stacking.combiners import FILE, Logistic, UntunedCombiner, fit_logistic_regression
from oof.classes import CLASSES, classes_of_data, swap_classes, swap_labels
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.metrics import Integers, log_softmax

ABSENT = 1e-12  # probability of a class that never occurred
LENGTHS_C = 1.0  # scikit-learn's C: three lengths, so even few battles need no more of a penalty
MIN_RESPONSES = 4  # that a term must occur in
TERMS_C = 0.05  # scikit-learn's C: thousands of terms, few battles
LENGTH_SCALE = 3.0  # of the length inputs, which the penalty on terms should not shrink
MAX_ITERATIONS = 200  # of L-BFGS
TFIDF_FILE = "tfidf.json"
STACKED_FOLDS = 5  # of the logits that a stacker is trained on

Floats = NDArray[np.float64]


def prior_probs(labels: Integers, n: int, ties: bool = True) -> Floats:
    """Return (n, 3): the class shares of ``labels``, Laplace-smoothed, for each of n battles; without ties 0."""
    counts = np.bincount(labels, minlength=len(CLASSES)) + 1.0
    counts[len(classes_of_data(ties)) :] = 0.0
    return np.tile(counts / counts.sum(), (n, 1))


@dataclass(frozen=True)
class Prior(UntunedCombiner):
    """The class shares of both orders, in which A and B win equally often."""

    shares: tuple[float, ...]
    kind: ClassVar[str] = "prior"

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        return cls(tuple(prior_probs(np.concatenate([labels, swap_labels(labels)]), 1)[0].tolist()))

    def _logits(self, design: Design) -> Floats:
        return np.tile(np.log(self.shares), (len(design.ids), 1))


@dataclass(frozen=True)
class LengthOnly(Logistic):
    """Multinomial logistic regression on the length features alone."""

    kind: ClassVar[str] = "length_only"
    strength: ClassVar[float] = LENGTHS_C

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        return cls.fit_on(design, labels, (), tuple(design.names[i] for i in design.columns("lengths")))


@dataclass(frozen=True)
class TfidfModel:
    """The fitted regression, saved as JSON.

    Attributes:
        terms: (t,) buckets of the hashed terms that it reads.
        idf: (t,) their inverse document frequencies.
        spread: (3,) scales of the lengths.
        coef: (3, t + 3) of terms and lengths.
        intercept: (3,).
    """

    terms: Floats
    idf: Floats
    spread: Floats
    coef: Floats
    intercept: Floats

    def logits(self, counts: TermCounts) -> Floats:
        """Return (n, 3) logits, the mean of both orders'."""
        inputs = _both_orders(counts, self.terms.astype(np.int64), self.idf, self.spread)
        given, swapped = np.split(np.asarray(inputs @ self.coef.T) + self.intercept, 2)
        return np.asarray((log_softmax(given) + swap_classes(log_softmax(swapped))) / 2)

    def save(self, file: Path) -> None:
        write_json(file, {name: value.tolist() for name, value in vars(self).items()})

    @classmethod
    def load(cls, file: Path) -> TfidfModel:
        return cls(**{name: np.array(value, dtype=np.float64) for name, value in read_json(file).items()})


def fit_tfidf(train: TermCounts, labels: Integers) -> TfidfModel:
    """Return the regression on (n) training battles with (n,) labels."""
    y = np.concatenate([labels, swap_labels(labels)])
    if len(np.unique(y)) < 2:
        prior = np.log(prior_probs(labels, 1)[0])
        return TfidfModel(np.empty(0), np.empty(0), np.ones(3), np.zeros((3, 3)), prior)
    responses = vstack([train.a, train.b]).tocsr()
    # Without rare terms there are fewer unknowns, and the fit is far faster.
    terms = np.flatnonzero(np.bincount(responses.indices, minlength=BUCKETS) >= MIN_RESPONSES)
    idf = TfidfTransformer().fit(responses[:, terms]).idf_ if len(terms) else np.empty(0)
    spread = np.maximum(_lengths(train).std(axis=0), 1e-6)
    del responses  # the inputs need the memory
    inputs = _both_orders(train, terms, idf, spread)
    coef, intercept = fit_logistic_regression(inputs, y, np.log(ABSENT), C=TERMS_C, max_iter=MAX_ITERATIONS, tol=1e-3)
    return TfidfModel(terms.astype(np.float64), np.asarray(idf, dtype=np.float64), spread, coef, intercept)


def out_of_fold_tfidf(counts: TermCounts, labels: Integers, groups: Integers, seed: int) -> Floats:
    """Return (n, 3) logits of each battle by regressions on other groups' battles, for training a stacker.

    Five folds of whole groups, more than stage one's, so that the regressions are nearly as good as the one on all.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        return np.repeat(fit_tfidf(counts, labels).intercept[None], len(labels), axis=0)
    splitter = GroupKFold(min(STACKED_FOLDS, n_groups), shuffle=True, random_state=seed)
    logits = np.empty((len(labels), len(CLASSES)))
    for rest, held in splitter.split(labels, groups=groups):
        logits[held] = fit_tfidf(counts.take(rest), labels[rest]).logits(counts.take(held))
    return logits


@dataclass(frozen=True)
class Text(UntunedCombiner):
    """The regression on TF-IDF terms."""

    model: TfidfModel
    kind: ClassVar[str] = "text"

    @property
    def reads_terms(self) -> bool:
        return True

    @classmethod
    def fit(cls, design: Design, labels: Integers) -> Self:
        return cls(fit_tfidf(terms_of(design), labels))

    def _logits(self, design: Design) -> Floats:
        return self.model.logits(terms_of(design))

    def save(self, folder: Path) -> None:
        """Write ``tfidf.json`` and ``combiner.json``."""
        self.model.save(folder / TFIDF_FILE)
        write_json(folder / FILE, {"kind": self.kind})

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(TfidfModel.load(folder / TFIDF_FILE))


BASELINES: dict[str, type[UntunedCombiner]] = {c.kind: c for c in (Prior, LengthOnly, Text)}  # simple to complex


def terms_of(design: Design) -> TermCounts:
    """Return the term counts of (n) battles.

    Raises:
        UserError: the battles have no texts.
    """
    if design.terms is None:
        raise UserError("the stack learned from the texts of its battles, which these battles lack; give them texts")
    return design.terms


def _lengths(counts: TermCounts) -> Floats:
    """Return (n, 3): the log ratio of words, its absolute value, and the mean log words (the first is odd)."""
    ratio = counts.log_words[:, 0] - counts.log_words[:, 1]
    return np.stack([ratio, np.abs(ratio), counts.log_words.sum(axis=1) / 2], axis=1)


def _both_orders(counts: TermCounts, terms: NDArray[np.int64], idf: Floats, spread: Floats) -> csr_matrix:
    """Return the (2n, t + 3) inputs of the (n) battles as given, then with A and B swapped.

    Of the competition's battles the inputs are 300 MB: they are written once, without the copies of stacked matrices.
    """
    difference = _tfidf(counts.a[:, terms], idf) - _tfidf(counts.b[:, terms], idf)
    n, t = difference.shape
    indptr = difference.indptr + 3 * np.arange(n + 1)  # each row ends in three lengths
    lengths, size = indptr[1:, None] - [3, 2, 1], int(indptr[-1])
    of_terms = np.ones(size, dtype=bool)
    of_terms[lengths] = False
    data, columns = np.empty(2 * size), np.empty(2 * size, dtype=np.int32)
    given, swapped = np.split(data, 2)
    given[of_terms], columns[:size][of_terms] = difference.data, difference.indices
    given[lengths], columns[lengths] = LENGTH_SCALE * _lengths(counts) / spread, np.arange(t, t + 3)
    del difference, of_terms, lengths
    columns[size:], swapped[:] = columns[:size], given
    np.negative(given, out=swapped, where=columns[:size] <= t)  # only the last two lengths treat A and B alike
    return csr_matrix((data, columns, np.append(indptr, size + indptr[1:])), shape=(2 * n, t + 3))


def _tfidf(counts: csr_matrix, idf: Floats) -> csr_matrix:
    """Return (1 + log count) times idf, in rows of length 1, as TfidfTransformer does."""
    weights = counts.astype(np.float64)
    np.log(weights.data, out=weights.data)
    weights.data += 1.0
    weights.data *= idf[weights.indices]
    return csr_matrix(normalize(weights, copy=False)) if len(idf) else weights
