"""Markers of trimmed texts: their words, their ids, and the size that is set aside for them before a text is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.encoding.markers import Markers
from tests.fixtures.tokenizer_files import DEMO, OTHERS, REAL, TINY, any_tokenizer

EVERY = [*TINY, *REAL, *OTHERS, *DEMO]
EDGES = [1, 9, 10, 999, 1000, 1001, 1234, 9999, 10_000, 999_999, 1_000_000, 1_000_001, 12_003_004]


def marker_of(count: int) -> str:
    return f" … [+{count:,} tokens] …"


@pytest.mark.parametrize("name", EVERY)
def test_a_marker_says_how_many_tokens_are_gone(name: str) -> None:
    tokenizer = any_tokenizer(name)
    pool, index = Markers(tokenizer, "count").of(np.array([*EDGES, 999, 1234]))
    shown = [tokenizer.decode(ids) for ids in np.split(pool.ids, pool.offsets[1:-1])]
    assert [shown[i] for i in index] == [marker_of(count) for count in [*EDGES, 999, 1234]]
    pool, index = Markers(tokenizer, "plain").of(np.array([5, 1234]))
    assert tokenizer.decode(pool.ids) == " …"
    assert index.tolist() == [0, 0]


@pytest.mark.parametrize("name", [*REAL, *OTHERS])
def test_a_counted_marker_has_the_ids_of_its_text_in_the_tokenizers_of_real_models(name: str) -> None:
    tokenizer = any_tokenizer(name)
    pool, index = Markers(tokenizer, "count").of(np.array(EDGES))
    for i, count in zip(index, EDGES, strict=True):
        ids = pool.ids[pool.offsets[i] : pool.offsets[i + 1]].tolist()
        assert ids == tokenizer.encode(marker_of(count), add_special_tokens=False)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", ["plain", "count"])
def test_no_marker_is_larger_than_the_size_set_aside_for_a_text_of_that_length(name: str, kind: str) -> None:
    markers = Markers(any_tokenizer(name), kind)
    lost = np.array([*range(1, 3000), *EDGES[-4:]])
    pool, index = markers.of(lost)
    largest_so_far = np.maximum.accumulate(pool.lengths[index])
    aside = markers.largest(lost)
    assert (aside >= largest_so_far).all()
    assert (np.diff(aside) >= 0).all()
    assert (aside[:999] == largest_so_far[:999]).all()  # no token is wasted where the largest count is known
    assert (aside - largest_so_far).max() <= 2


@settings(max_examples=100)
@given(st.lists(st.integers(1, 10**10), max_size=6), st.integers(0, 10**10))
def test_the_size_set_aside_depends_on_the_texts_own_length_alone(lengths: list[int], length: int) -> None:
    together = COUNTED.largest(np.array([*lengths, length]))[-1]
    assert together == COUNTED.largest(np.array([length]))[0]
    lost = np.array([max(1, length // share) for share in (1, 2, 7, 1000)])
    assert together >= COUNTED.of(lost)[0].lengths.max()


COUNTED = Markers(any_tokenizer("chatml"), "count")


def test_without_trimmed_texts_there_are_no_markers() -> None:
    pool, index = COUNTED.of(np.zeros(0, dtype=np.int64))
    assert len(pool.lengths) == len(index) == 0
