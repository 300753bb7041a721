"""The TF-IDF baseline: it learns, swaps exactly, and fits nothing on held-out rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensemble.features.design_matrix import add_terms
from ensemble.features.term_counts import TermCounts, count_terms
from ensemble.stacking.baselines import (
    LengthOnly,
    Prior,
    Text,
    TfidfModel,
    _tfidf,
    fit_tfidf,
    out_of_fold_tfidf,
    prior_probs,
)
from oof.common.errors import UserError
from oof.metrics import log_loss, log_softmax, softmax
from tests.fixtures.arenas import SWAP, make_arena

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


def test_the_prior_is_the_smoothed_class_shares() -> None:
    labels = np.array([0, 0, 0, 2])
    np.testing.assert_allclose(prior_probs(labels, 2), [[4 / 7, 1 / 7, 2 / 7]] * 2)
    np.testing.assert_allclose(prior_probs(labels[:3], 2, ties=False), [[4 / 5, 1 / 5, 0]] * 2)
    design = make_arena(4).design
    prior = Prior.fit(design, labels)  # of both orders
    np.testing.assert_allclose(softmax(prior.logits(design)), [[4 / 11, 4 / 11, 3 / 11]] * 4)


def test_length_only_is_scikit_learn_s_regression_on_the_lengths_of_both_orders() -> None:
    arena = make_arena(300, seed=2)
    columns = arena.design.columns("lengths")
    given, swapped = arena.design.x[:, columns].astype(float), arena.design.x_swapped[:, columns].astype(float)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-9, max_iter=5000))
    theirs.fit(np.concatenate([given, swapped]), np.concatenate([arena.labels, np.array(SWAP)[arena.labels]]))
    ours = softmax(LengthOnly.fit(arena.design, arena.labels).logits(arena.design))
    np.testing.assert_allclose(ours, theirs.predict_proba(given), atol=1e-3)


def rare_battles(n: int, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Return battles with ever rarer words and lengths that differ; the longer response wins more often."""
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(400)]
    shares = 1 / np.arange(1, 401)
    texts = [
        [" ".join(rng.choice(words, rng.integers(2, 30), p=shares / shares.sum())) for _ in range(n)] for _ in "ab"
    ]
    longer = np.array([len(a) > len(b) for a, b in zip(*texts, strict=True)])
    labels = np.where(rng.random(n) < 0.25, 2, np.where(rng.random(n) < 0.75, ~longer, longer))
    return pl.DataFrame({f"response_{s}": [[t] for t in side] for s, side in zip("ab", texts, strict=True)}), labels


@pytest.mark.parametrize("absent", [None, 2])
def test_the_text_baseline_is_scikit_learn_s_regression_on_tfidf_differences_and_lengths(absent: int | None) -> None:
    table, labels = rare_battles(150)
    labels = labels if absent is None else labels % 2
    counts = count_terms(table)
    responses = vstack([counts.a, counts.b]).tocsr()
    often = np.flatnonzero(np.asarray((responses > 0).sum(axis=0)).ravel() >= 4)
    tfidf = TfidfTransformer(sublinear_tf=True).fit(responses[:, often])
    difference = tfidf.transform(counts.a[:, often]) - tfidf.transform(counts.b[:, often])
    texts = (table[f"response_{side}"].list.first().to_list() for side in "ab")
    words = np.log1p([[len(text.split()) for text in side] for side in texts]).T
    ratio = words[:, 0] - words[:, 1]
    lengths = np.stack([ratio, abs(ratio), words.mean(axis=1)], axis=1)
    lengths = 3 * lengths / lengths.std(axis=0)
    given = hstack([difference, csr_matrix(lengths)]).tocsr()
    swapped = hstack([-difference, csr_matrix(lengths * [-1, 1, 1])]).tocsr()
    theirs = LogisticRegression(C=0.05, tol=1e-9, max_iter=5000)
    theirs.fit(vstack([given, swapped]).tocsr(), np.concatenate([labels, np.array(SWAP)[labels]]))
    expected = np.zeros((150, 3))
    expected[:, theirs.classes_] = theirs.predict_proba(given)
    model = fit_tfidf(counts, labels)
    np.testing.assert_array_equal(model.terms, often)
    np.testing.assert_allclose(softmax(model.logits(counts)), expected, atol=3e-3)


def test_the_output_is_the_mean_of_the_log_probabilities_of_both_orders() -> None:
    """Also of a model that is far from symmetric, as a fit that stops early may be."""
    rng = np.random.default_rng(0)
    table, _ = rare_battles(30)
    counts = count_terms(table)
    terms = np.flatnonzero(counts.a.sum(axis=0))[:20].astype(float)
    model = TfidfModel(terms, np.ones(20), np.ones(3), rng.normal(size=(3, 23)), np.array([1.0, -1.0, 0.5]))
    a, b = (_tfidf(side[:, terms.astype(int)], model.idf).toarray() for side in (counts.a, counts.b))
    ratio = counts.log_words[:, 0] - counts.log_words[:, 1]
    lengths = 3 * np.stack([ratio, abs(ratio), counts.log_words.mean(axis=1)], axis=1)
    given = np.concatenate([a - b, lengths], axis=1) @ model.coef.T + model.intercept
    swapped = np.concatenate([b - a, lengths * [-1, 1, 1]], axis=1) @ model.coef.T + model.intercept
    expected = (log_softmax(given) + log_softmax(swapped)[:, SWAP]) / 2
    np.testing.assert_allclose(model.logits(counts), expected, atol=1e-6)


def test_a_class_that_never_occurs_is_as_good_as_impossible() -> None:
    table, labels = rare_battles(60)
    counts = count_terms(table)
    assert 0 < tfidf_probs(counts, labels % 2, counts)[:, 2].max() < 1e-9
    np.testing.assert_allclose(tfidf_probs(counts, np.full(60, 2), counts), [[1 / 63, 1 / 63, 61 / 63]] * 60)


def test_responses_of_one_length_are_no_obstacle() -> None:
    table = pl.DataFrame({f"response_{side}": [["a word"]] * 30 for side in "ab"})
    labels, counts = np.arange(30) % 3, count_terms(table)
    np.testing.assert_allclose(tfidf_probs(counts, labels, counts), 1 / 3, atol=1e-3)


@pytest.mark.parametrize(("n_groups", "parts"), [(20, 5), (3, 3), (2, 2)])
def test_out_of_fold_logits_are_those_of_regressions_on_the_other_groups(n_groups: int, parts: int) -> None:
    table, labels = rare_battles(120)
    counts, groups = count_terms(table), np.arange(120) % n_groups
    logits, held_out = out_of_fold_tfidf(counts, labels, groups, seed=4), []
    for rest, held in GroupKFold(parts, shuffle=True, random_state=4).split(labels, groups=groups):
        alone = fit_tfidf(counts.take(rest), labels[rest]).logits(counts.take(held))
        np.testing.assert_array_equal(logits[held], alone)
        held_out += list(held)
    assert sorted(held_out) == list(range(120))


def test_one_group_has_no_out_of_fold_logits_but_the_intercepts() -> None:
    table, labels = rare_battles(40)
    counts = count_terms(table)
    logits = out_of_fold_tfidf(counts, labels, np.zeros(40, dtype=int), seed=0)
    np.testing.assert_array_equal(logits, np.tile(fit_tfidf(counts, labels).intercept, (40, 1)))


def test_battles_without_texts_are_refused() -> None:
    arena = make_arena(40)
    text = Text.fit(add_terms(arena.design, arena.table), arena.labels)
    for act in (lambda: text.logits(arena.design), lambda: Text.fit(arena.design, arena.labels)):
        with pytest.raises(UserError, match="texts"):
            act()
