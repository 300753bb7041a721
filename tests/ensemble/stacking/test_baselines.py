"""The TF-IDF baseline: it learns, swaps exactly, and fits nothing on held-out rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfTransformer

from ensemble.features.term_counts import TermCounts, count_terms
from ensemble.stacking.baselines import TfidfModel, _tfidf, fit_tfidf, out_of_fold_tfidf
from oof.metrics import log_loss, softmax

WORDS = ["plain", "bright", "red", "slow", "tall", "old"]


def battles(n: int, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Return battles that the response with the word "good" wins; both or neither is a tie."""
    rng = np.random.default_rng(seed)
    good = rng.random((n, 2)) < 0.5
    texts = [[" ".join([*rng.choice(WORDS, 8), *(["good"] if good[i, s] else [])]) for i in range(n)] for s in (0, 1)]
    labels = np.where(good[:, 0] == good[:, 1], 2, np.where(good[:, 0], 0, 1))
    table = pl.DataFrame({"response_a": [[t] for t in texts[0]], "response_b": [[t] for t in texts[1]]})
    return table, labels


def tfidf_probs(train: TermCounts, labels: np.ndarray, held: TermCounts) -> np.ndarray:
    return softmax(fit_tfidf(train, labels).logits(held))


def swapped(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(response_a="response_b", response_b="response_a")


def test_finds_the_word_that_wins() -> None:
    (table, labels), (unseen, truth) = battles(600), battles(200, seed=1)
    probs = tfidf_probs(count_terms(table), labels, count_terms(unseen))
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    decided = truth < 2
    assert (probs[decided, :2].argmax(axis=1) == truth[decided]).mean() > 0.95
    assert log_loss(probs, truth) < 1.0


def test_swapping_the_responses_swaps_the_output_exactly() -> None:
    (table, labels), (unseen, _) = battles(200), battles(50, seed=1)
    train = count_terms(table)
    probs = tfidf_probs(train, labels, count_terms(unseen))
    np.testing.assert_array_equal(tfidf_probs(train, labels, count_terms(swapped(unseen))), probs[:, [1, 0, 2]])


def test_the_prediction_of_a_held_out_battle_does_not_depend_on_the_others() -> None:
    """Nothing, not even a document frequency, is fitted on the held-out rows."""
    (table, labels), (unseen, _) = battles(200), battles(50, seed=1)
    train, held = count_terms(table), count_terms(unseen)
    together = tfidf_probs(train, labels, held)
    alone = tfidf_probs(train, labels, held.take(np.array([3])))
    np.testing.assert_allclose(alone[0], together[3], atol=1e-12)


@pytest.mark.parametrize("labels", [np.full(57, 2), np.arange(57) % 2])
def test_few_rows_and_absent_classes_are_accepted(labels: np.ndarray) -> None:
    table, _ = battles(57)
    assert np.isfinite(tfidf_probs(count_terms(table), labels, count_terms(table))).all()


def test_term_weights_are_those_of_scikit_learn() -> None:
    counts = count_terms(battles(40)[0]).a[:, :2000].tocsr()
    oracle = TfidfTransformer(sublinear_tf=True).fit(counts)
    np.testing.assert_allclose(_tfidf(counts, oracle.idf_).toarray(), oracle.transform(counts).toarray(), atol=1e-6)


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 1], [2]])
def test_a_saved_model_predicts_the_same(classes: list[int], tmp_path: Path) -> None:
    table, labels = battles(120)
    texts = count_terms(table)
    model = fit_tfidf(texts, np.array(classes)[labels % len(classes)])
    model.save(tmp_path / "text.json")
    np.testing.assert_array_equal(TfidfModel.load(tmp_path / "text.json").logits(texts), model.logits(texts))


def test_labels_of_a_group_do_not_reach_its_own_out_of_fold_logits() -> None:
    table, labels = battles(200)
    texts, groups = count_terms(table), np.arange(200) // 10
    changed = np.where(groups == 3, (labels + 1) % 3, labels)
    before, after = (out_of_fold_tfidf(texts, y, groups, seed=0) for y in (labels, changed))
    np.testing.assert_array_equal(before[groups == 3], after[groups == 3])
    assert not np.array_equal(before, after)
