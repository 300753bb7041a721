"""Groups: near-duplicate prompts are joined transitively, and the order of rows changes no group."""

from __future__ import annotations

import itertools
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.config import Groups
from oof.folds import minhash, near_duplicates
from oof.folds.groups import group_battles, normalise
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import HEADER, WORDS, groups_of, sentence, table_of
from tests.fixtures.text_similarity import similarity

DATA = Path(os.environ.get("ARENA_DATA", ROOT.parent / "shared" / "data"))


def partition(ids: list[str], groups: list[int]) -> set[frozenset[str]]:
    pairs = sorted(zip(groups, ids, strict=True))
    return {frozenset(name for _, name in rows) for _, rows in itertools.groupby(pairs, key=lambda pair: pair[0])}


# --- brute force: the documented rule for few texts (no known template), by Python sets and a loop over all pairs


def is_near_duplicate(one: str, two: str, threshold: float) -> bool:
    if one == two:
        return True
    if similarity(one, two) < threshold:
        return False
    left, right = one.split(" "), two.split(" ")
    n = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    if len(" ".join(left[:n])) < near_duplicates.TEMPLATE:
        return True
    one, two = " ".join(left[n:]), " ".join(right[n:])
    if not one or not two:
        return True
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    if max(len(one), len(two)) <= near_duplicates.TINY:
        return True
    return similarity(" ".join(left[n:]), " ".join(right[n:])) >= threshold / 2


def brute_force(texts: list[str], threshold: float) -> list[int]:
    labels = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if is_near_duplicate(texts[i], texts[j], threshold):
            old, new = labels[j], labels[i]
            labels = [new if label == old else label for label in labels]
    return labels


@st.composite
def related_texts(draw: st.DrawFn) -> list[str]:
    """A few texts made from each other by replacing, dropping, adding and appending words."""
    word = st.sampled_from(WORDS)
    texts = [" ".join(draw(st.lists(word, min_size=1, max_size=40)))]
    for _ in range(draw(st.integers(0, 8))):
        words = draw(st.sampled_from(texts)).split()
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(words)))
            edit = draw(st.sampled_from(["replace", "drop", "add", "cut", "append"]))
            if edit == "replace" and at < len(words):
                words[at] = draw(word)
            elif edit == "drop" and len(words) > 1 and at < len(words):
                del words[at]
            elif edit == "add":
                words.insert(at, draw(word))
            elif edit == "cut":
                words = words[: max(at, 1)]
            else:
                words += draw(st.lists(word, max_size=8))
        texts.append(" ".join(words))
    return texts


@settings(max_examples=60)
@given(texts=related_texts(), threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_groups_equal_brute_force(texts: list[str], threshold: float) -> None:
    table = table_of(texts)
    found = group_battles(table, Groups(threshold=threshold)).tolist()
    assert partition(table["id"].to_list(), found) == partition(table["id"].to_list(), brute_force(texts, threshold))


@settings(max_examples=40)
@given(texts=related_texts(), seed=st.integers(0, 1000))
def test_row_order_changes_no_groups_number(texts: list[str], seed: int) -> None:
    table = table_of(texts).with_columns(pl.Series("group", groups_of(*texts)))
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=seed)
    assert group_battles(shuffled, Groups()).tolist() == shuffled["group"].to_list()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=20))
def test_exact_jaccard_equals_python_sets(pairs: list[tuple[str, str]]) -> None:
    found = minhash.jaccard([one for one, _ in pairs], [two for _, two in pairs])
    padded = [(one.ljust(5, "\0"), two.ljust(5, "\0")) for one, two in pairs]
    assert found == pytest.approx([similarity(one, two) for one, two in padded])


def test_the_numbers_of_groups_are_the_same_in_every_version() -> None:
    """Folds are drawn from groups in this order, and cluster intervals are resampled in it."""
    answers = {"response_a": [["a"], ["a"], ["x"], ["a"], ["y"], ["a"], [""]]}
    answers |= {"response_b": [["b"], ["b"], ["y"], ["b"], ["x"], ["b"], [""]]}
    prompts = ["river", "stone", "", "river!", "", "cloud", ""]
    table = table_of(prompts, group_key=["k", "l", "m", "n", "m", "l", "k"], **answers)
    assert group_battles(table, Groups()).tolist() == [4, 0, 3, 4, 3, 2, 1]
    assert group_battles(table, Groups(column="c")).tolist() == [1, 3, 0, 2, 0, 3, 1]


# --- normalisation


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("What is the capital of France?", "  what IS the\tcapital of france "),
        ("What's up, Doc?!", "what s up doc"),
        ("ﬁnd the ½ of it", "find the 1\u20442 of it"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("he\u200bllo", "hello"),
        ("\ufeffhello", "hello"),
        ("\uff21\uff22\uff23\u3000\uff11\uff12", "abc 12"),
        ("line one\r\nline two", "line one line two"),
        ("a\x00b", "a b"),
        ("ΑΣ", "ας"),
        ("? ?", " ?\t\n?"),
    ],
)
def test_texts_that_read_the_same_are_equal_after_normalisation(one: str, two: str) -> None:
    assert len(set(normalise(pl.Series([one, two])).to_list())) == 1
    first, second = groups_of(one, two)
    assert first == second


@pytest.mark.parametrize(
    ("one", "two"), [("?", "!"), ("1+1", "1=1"), ("🙂", "🙁"), ("हिंदी", "हद"), ("a", "b"), ("…", "")]
)
def test_texts_that_differ_are_different_after_normalisation(one: str, two: str) -> None:
    assert len(set(normalise(pl.Series([one, two])).to_list())) == 2
    first, second = groups_of(one, two)
    assert first != second


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(pl.Series([text]))
    again = normalise(once)
    assert again[0] == once[0]
    assert unicodedata.is_normalized("NFKC", once[0])


def test_all_user_turns_of_a_conversation_are_compared() -> None:
    rng = np.random.default_rng(0)
    opening, one, two = sentence(rng, 3), sentence(rng, 12), sentence(rng, 12)
    groups = groups_of([opening, one], [opening, two], [opening, one], [f"{opening} {one}"])
    assert groups[0] == groups[2] == groups[3] != groups[1]


# --- near-duplicates


def test_small_edits_are_joined_transitively() -> None:
    words = sentence(np.random.default_rng(1), 40).split()
    chain = [words]
    for i in range(13):  # each differs from the last by a word, the first from the last by thirteen
        chain.append([*chain[-1]])
        chain[-1][3 * i] = f"edited{i}"
    texts = [" ".join(words) for words in chain]
    assert similarity(texts[0], texts[-1]) < 0.5
    assert len(set(groups_of(*texts))) == 1


@pytest.mark.parametrize("n", [20, 100])
def test_any_number_of_variants_with_one_word_changed_are_one_group(n: int) -> None:
    words = sentence(np.random.default_rng(0), 40).split()
    texts = [" ".join([*words[:at], f"new{i}", *words[at + 1 :]]) for i in range(n) for at in [i % 40]]
    assert len(set(groups_of(*texts))) == 1


@pytest.mark.slow
def test_thousands_of_near_duplicates_in_one_bucket_are_few_groups() -> None:
    rng = np.random.default_rng(0)
    words = sentence(rng, 50).split()
    texts = []
    for i in range(3000):
        copy = [*words]
        copy[rng.integers(50)] = f"edit{i}"
        texts.append(" ".join(copy))
    sizes = np.bincount(groups_of(*texts))
    # An edit near the end looks like a template's slot: such variants stay together, but apart from the others.
    assert sizes.max() > 0.75 * 3000
    assert len(sizes) <= 15


def test_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [sentence(rng, 6) for _ in range(60)]
    texts += [text.replace("r", "rr", 1) for text in texts] + [f"{HEADER} {text}" for text in texts]
    whole = groups_of(*texts)
    monkeypatch.setattr(minhash, "CHUNK", 200)
    monkeypatch.setattr("oof.folds.groups.CHUNK_ROWS", 7)
    assert groups_of(*texts) == whole


def test_very_long_prompts_are_near_duplicates_by_both_ends_and_equal_as_wholes() -> None:
    rng = np.random.default_rng(0)
    long = sentence(rng, 30_000)
    middle = len(long) // 2
    assert len(long) > 5 * minhash.CAP
    changed = long[:middle] + sentence(rng, 50) + long[middle:]
    other = sentence(rng, 30_000)
    groups = groups_of(long, changed, long.upper(), other)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_threshold_one_joins_equal_sets_only() -> None:
    groups = groups_of("a small river", "a small river!", "a small rivers", config=Groups(threshold=1.0))
    assert groups[0] == groups[1] != groups[2]


# --- battles without prompts, group column, responses


def test_each_row_without_any_text_is_its_own_group() -> None:
    nothing = [[""], [], [None], [""]]
    table = table_of([""] * 4, response_a=nothing, response_b=nothing)
    assert len(set(group_battles(table, Groups()).tolist())) == 4


def test_empty_prompts_are_joined_by_equal_responses_in_either_order() -> None:
    table = table_of(["", " ", "", ""], response_a=[["x"], ["Y"], ["x"], [""]], response_b=[["y"], ["X"], ["z"], [""]])
    groups = group_battles(table, Groups()).tolist()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_empty_prompts_are_joined_by_responses_that_differ_in_their_turns_alone() -> None:
    table = table_of(["", ""], response_a=[["one", "two"], ["one two"]], response_b=[["x"], ["x"]])
    assert len(set(group_battles(table, Groups()).tolist())) == 1


def test_a_battle_without_any_text_is_not_joined_with_responses_that_read_like_its_id() -> None:
    table = table_of(["", ""], id=["b", "x"], response_a=[["id"], [""]], response_b=[["x"], [""]])
    assert len(set(group_battles(table, Groups()).tolist())) == 2


def test_no_battles_make_no_groups() -> None:
    none = group_battles(table_of([]), Groups())
    assert (none.shape, none.dtype) == ((0,), np.int64)


@pytest.mark.parametrize(
    ("name", "groups"), [("pandalm_testset", 170), ("tulu_human_eval", 332), ("ukpconvarg1_dev", 16)]
)
def test_real_data_has_its_documented_number_of_groups(name: str, groups: int) -> None:
    path = DATA / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    prompts = [json.loads(cell) for cell in pl.read_csv(path)["prompt"]]
    found = groups_of(*([turn or "" for turn in turns] for turns in prompts))
    assert len(set(found)) == groups
