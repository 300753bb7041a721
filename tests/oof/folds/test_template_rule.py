"""Template rule: a long shared beginning alone joins no prompts, and prompts alike beyond it are joined."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import polars as pl
import pytest

from oof.config import Groups
from oof.folds import near_duplicates
from oof.folds.groups import group_battles
from oof.folds.near_duplicates import TEMPLATE, TEMPLATE_TEXTS, TINY, alike_beyond_template
from tests.fixtures.small_tables import HEADER, WORDS, groups_of, sentence, table_of
from tests.fixtures.text_similarity import shingles, similarity

MARGIN = 0.05  # above the threshold, where LSH finds practically every pair


class LenientRule:
    """The template rule, written once more for sorted texts; where it is in doubt, texts are no near-duplicates.

    Half as many texts as make a known template for the grouping make one here, the 5-grams of all templates that begin
    alike are left out, and small edits under a known template do not count.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self.texts, self.threshold = texts, threshold
        self.families: dict[str, frozenset[str]] = {}  # first characters -> 5-grams of all templates that begin so

    def near_duplicates(self, one: str, two: str) -> bool:
        clear = min(self.threshold + MARGIN, 1.0)
        if similarity(one, two) < clear:
            return False
        families = [self.family(text[:TEMPLATE]) for text in (one, two) if self.template(text)]
        if families:
            return min(similarity_beyond(one, two, family) for family in families) >= clear
        left, right = (text.split(" ") for text in (one, two))
        words = [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))]
        rests = " ".join(left[len(words) :]), " ".join(right[len(words) :])
        if len(" ".join(words)) < TEMPLATE or not all(rests) or max(map(len, rests)) <= TINY:
            return True
        return similarity(*rests) >= self.threshold / 2 + MARGIN

    def family(self, beginning: str) -> frozenset[str]:
        if beginning not in self.families:
            start, stop = self._range(beginning)
            templates = {self.template(text) for text in self.texts[start:stop]}
            self.families[beginning] = frozenset().union(*map(shingles, templates - {""}))
        return self.families[beginning]

    def template(self, text: str) -> str:
        """Return the longest known template that the text begins with, or an empty string."""
        words = text.split(" ")
        n = bisect_left(range(len(words)), True, key=lambda n: self._sharing(words[: n + 1]) < TEMPLATE_TEXTS // 2)
        template = " ".join(words[:n])
        return template if len(template) >= TEMPLATE else ""

    def _sharing(self, words: Sequence[str]) -> int:
        start, stop = self._range(" ".join(words))
        return stop - start

    def _range(self, beginning: str) -> tuple[int, int]:
        return bisect_left(self.texts, beginning), bisect_left(self.texts, beginning + "\U0010ffff")


def similarity_beyond(one: str, two: str, family: frozenset[str]) -> float:
    return similarity(one, two, family) if (shingles(one) | shingles(two)) - family else 0.0


def known_template(text: str, texts: Sequence[str]) -> str:
    """Return the longest beginning in whole words that is a known template, by counting every prefix; or ""."""
    ends = [i for i in range(TEMPLATE, len(text) + 1) if text[i : i + 1] in ("", " ")]
    shared = [end for end in ends if sum(other.startswith(text[:end]) for other in texts) >= TEMPLATE_TEXTS]
    return text[: max(shared, default=0)]


def alike_by_the_rule(one: str, two: str, templates: tuple[str, str], threshold: float) -> bool:
    """The rule as documented, for a pair that reaches the threshold, without small edits under a known template."""
    if any(templates):
        left_out = frozenset().union(*(shingles(template) for template in templates if template))
        return similarity(one, two, left_out) >= threshold
    left, right = one.split(" "), two.split(" ")
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    rests = " ".join(left[n:]), " ".join(right[n:])
    if len(" ".join(left[:n])) < TEMPLATE or not all(rests):
        return True
    ends = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rests[0][::-1], rests[1][::-1], strict=False)))
    return max(map(len, rests)) - ends <= TINY or similarity(*rests) >= threshold / 2


def texts_with_templates(seed: int) -> list[str]:
    """Return sorted texts under two headers, one of which is a known template with a longer one inside, and edits."""
    rng = np.random.default_rng(seed)
    header, rare = sentence(rng, 9), sentence(rng, 9)
    headers = [header] * 3 + [f"{header} {sentence(rng, 2)}", rare, "", ""]
    words = WORDS[:12]
    bodies = [" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(80)]
    texts = [f"{headers[i % len(headers)]} {body}".strip() for i, body in enumerate(bodies)]
    for text in texts[:50]:
        edited = text.split()
        edited[int(rng.integers(len(edited)))] = f"edit{rng.integers(9)}"
        texts += [" ".join(edited), f"{text} please"]
    return sorted(set(texts))


# --- the grouping against independent implementations


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
def test_clear_near_duplicates_are_in_one_group(seed: int, threshold: float) -> None:
    texts = texts_with_templates(seed)
    groups = group_battles(table_of(texts), Groups(threshold=threshold)).tolist()
    rule = LenientRule(texts, threshold)
    pairs = [pair for pair in itertools.combinations(range(len(texts)), 2) if rule.near_duplicates(*at(texts, pair))]
    assert len(pairs) > 20
    assert not [at(texts, (i, j)) for i, j in pairs if groups[i] != groups[j]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
def test_the_rule_for_a_pair_equals_python_sets(seed: int, threshold: float) -> None:
    texts = texts_with_templates(seed)
    templates = [known_template(text, texts) for text in texts]
    pairs = [pair for pair in itertools.combinations(range(len(texts)), 2) if similarity(*at(texts, pair)) >= threshold]
    flags = alike_beyond_template(pl.Series(texts), np.array(pairs), threshold).tolist()
    assert flags == [alike_by_the_rule(*at(texts, pair), at(templates, pair), threshold) for pair in pairs]
    assert 0 < sum(flags) < len(flags)


def at(texts: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    return texts[pair[0]], texts[pair[1]]


def test_known_templates_equal_those_found_by_counting_every_prefix() -> None:
    rng = random.Random(0)
    heads = [" ".join(rng.choices(WORDS, k=k)) for k in (4, 9, 12)]
    texts = sorted({f"{rng.choice(heads)} {' '.join(rng.choices(WORDS[:3], k=rng.randint(1, 4)))}" for _ in range(400)})
    lengths = near_duplicates._template_lengths(pl.Series(texts)).tolist()
    assert lengths == [len(known_template(text, texts)) for text in texts]
    assert 0 < sum(length > 0 for length in lengths) < len(texts)


# --- headers


@pytest.mark.parametrize("n", [2, 5, 200])
def test_a_shared_header_alone_joins_nothing(n: int) -> None:
    rng = np.random.default_rng(n)
    texts = [f"{HEADER}: {sentence(rng, 2)}" for _ in range(n)]
    assert min(similarity(*pair) for pair in itertools.combinations(texts[:5], 2)) >= 0.7
    assert len(set(groups_of(*texts))) >= 0.98 * n  # a few of 200 share a word and differ by a tiny rest


@pytest.mark.parametrize("n", [5, 200])
def test_near_duplicates_under_a_shared_header_are_joined(n: int) -> None:
    rng = np.random.default_rng(n)
    bodies = [sentence(rng, 12) for _ in range(n)]
    edited = [body.replace(body.split()[5], "edited") for body in bodies]
    groups = groups_of(*(f"{HEADER}: {body}" for body in [*bodies, *edited]))
    assert groups[:n] == groups[n:]
    assert len(set(groups)) == n


def test_a_tiny_difference_after_a_shared_beginning_is_a_small_edit() -> None:
    first, second, third = groups_of(f"{HEADER} in 2023?", f"{HEADER} in 2024?", f"{HEADER} thank u")
    assert first == second == third  # what differs has at most 10 characters


def test_a_known_template_with_short_slots_makes_no_giant_group() -> None:
    topics = [f"{one} {two}" for one, two in itertools.combinations(WORDS[:16], 2)]
    sizes = np.bincount(groups_of(*(f"{HEADER}: should we have a {topic}" for topic in topics)))
    assert sizes.max() <= 16


def test_an_edited_copy_of_a_known_template_does_not_bridge_its_family() -> None:
    rng = np.random.default_rng(0)
    header = sentence(rng, 60)
    bodies = [sentence(rng, 10) for _ in range(60)]
    edited = header.replace(header.split()[2], "edited")
    assert similarity(f"{edited} {bodies[0]}", f"{header} {bodies[1]}") >= 0.7
    groups = groups_of(
        *(f"{header} {body}" for body in bodies), f"{edited} {bodies[0]}", f"{edited} {sentence(rng, 10)}"
    )
    assert len(set(groups[:60])) == 60
    assert groups[60] == groups[0]  # the same beyond the template
    assert groups[61] not in groups[:61]


def test_a_prompt_and_its_own_continuation_are_joined() -> None:
    first, second = groups_of(HEADER, f"{HEADER}. Thank you, that is kind!")
    assert first == second
