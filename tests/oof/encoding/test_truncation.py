"""Properties of truncation in token counts, with brute force as the oracle."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.encoding.truncation import (
    LEAST,
    STUB,
    TemplateCosts,
    TruncationPlan,
    head_and_tail,
    least_budget,
    plan_rounds,
    share_room,
)

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Case:
    """Battles with their template's costs."""

    lengths: np.ndarray
    offsets: np.ndarray
    costs: TemplateCosts
    share: float

    @property
    def least(self) -> int:
        return least_budget(self.costs, self.offsets[1:] - 1)

    def plan(self, budget: int) -> TruncationPlan:
        return plan_rounds(self.lengths, self.offsets, self.costs, budget, self.share)


@st.composite
def cases(draw: st.DrawFn, battles: int = 4, rounds: int = 5) -> Case:
    length = st.one_of(st.integers(0, 8), st.integers(0, 120))
    counts = draw(st.lists(st.integers(1, rounds), min_size=1, max_size=battles))
    r = sum(counts)
    lengths = np.array(draw(st.lists(st.tuples(length, length, length), min_size=r, max_size=r)), dtype=np.int64)
    whole = np.array(draw(st.lists(st.integers(3, 20), min_size=r, max_size=r)), dtype=np.int64)
    more = np.array(draw(st.lists(st.integers(0, 9), min_size=r, max_size=r)), dtype=np.int64)
    share = draw(st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(0, 1)))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    small, more_digits, from_length = draw(st.integers(1, 3)), draw(st.integers(0, 5)), draw(st.integers(1, 120))
    marker = small + more_digits * (lengths >= from_length)  # of a longer text it may have more tokens
    return Case(lengths, offsets, TemplateCosts(whole, whole + more, marker), share)


budgets = st.integers(0, 900)


def body(case: Case, plan: TruncationPlan) -> np.ndarray:
    """Text tokens kept, markers not counted."""
    head, tail = head_and_tail(case.lengths, plan.kept, case.costs.marker)
    return np.where(plan.dropped[:, None], 0, head + tail)


@settings(max_examples=150)
@given(cases(), budgets)
def test_kept_tokens_and_template_stay_within_the_budget(case: Case, extra: int) -> None:
    budget = case.least + extra
    plan = case.plan(budget)
    for i, (start, end) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
        oldest = plan.oldest[i]
        first = case.costs.whole[oldest] if plan.fits[i] else case.costs.oldest[oldest]
        template = first + case.costs.whole[oldest + 1 : end].sum()
        assert plan.kept[start:end].sum() + template <= budget


@settings(max_examples=150)
@given(cases(), budgets)
def test_no_kept_text_becomes_empty_and_the_newest_round_is_always_kept(case: Case, extra: int) -> None:
    plan = case.plan(case.least + extra)
    assert not plan.dropped[case.offsets[1:] - 1].any()
    kept, stays = body(case, plan), ~plan.dropped[:, None]
    assert ((kept >= np.minimum(case.lengths, LEAST)) | ~stays).all()
    assert (kept <= case.lengths).all()


@settings(max_examples=150)
@given(cases(), budgets)
def test_early_rounds_are_dropped_whole_and_only_the_oldest_kept_one_is_trimmed(case: Case, extra: int) -> None:
    plan = case.plan(case.least + extra)
    for i, (start, end) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
        oldest = plan.oldest[i]
        assert plan.dropped[start:oldest].all()
        assert not plan.dropped[oldest:end].any()
        assert (plan.kept[oldest + 1 : end] == case.lengths[oldest + 1 : end]).all()
        if oldest > start:  # the round before it had no room for a stub of each text
            rest = plan.kept[oldest + 1 : end].sum() + case.costs.whole[oldest + 1 : end].sum()
            whole = case.lengths[oldest].sum() + case.costs.whole[oldest]
            stub = np.minimum(case.lengths[oldest - 1], STUB + case.costs.marker[oldest - 1]).sum()
            assert rest + whole + case.costs.oldest[oldest - 1] + stub > case.least + extra


@settings(max_examples=200)
@given(cases(battles=3), st.integers(0, 500), st.integers(1, 40))
def test_larger_budget_never_keeps_less_of_any_text(case: Case, extra: int, step: int) -> None:
    small, large = case.plan(case.least + extra), case.plan(case.least + extra + step)
    assert (body(case, small) <= body(case, large)).all()
    assert (small.dropped >= large.dropped).all()
    for of_small, of_large in zip(
        head_and_tail(case.lengths, small.kept, case.costs.marker),
        head_and_tail(case.lengths, large.kept, case.costs.marker),
        strict=True,
    ):
        cut = (small.kept < case.lengths) & (large.kept < case.lengths)
        assert (of_small[cut] <= of_large[cut]).all()


@settings(max_examples=75)
@given(cases(), budgets)
def test_swapping_the_responses_swaps_their_kept_tokens(case: Case, extra: int) -> None:
    costs = replace(case.costs, marker=case.costs.marker[:, [0, 2, 1]])
    swapped = Case(case.lengths[:, [0, 2, 1]], case.offsets, costs, case.share)
    assert (swapped.plan(case.least + extra).kept == case.plan(case.least + extra).kept[:, [0, 2, 1]]).all()


@settings(max_examples=75)
@given(cases(), budgets)
def test_a_battle_keeps_the_same_tokens_alone_and_among_others(case: Case, extra: int) -> None:
    budget, together = case.least + extra, case.plan(case.least + extra)
    for start, end in zip(case.offsets[:-1], case.offsets[1:], strict=True):
        costs = TemplateCosts(*(of_rounds[start:end] for of_rounds in astuple(case.costs)))
        alone = plan_rounds(case.lengths[start:end], np.array([0, end - start]), costs, budget, case.share)
        assert (alone.kept == together.kept[start:end]).all()


@settings(max_examples=100)
@given(cases(), budgets)
def test_a_battle_is_truncated_exactly_where_it_does_not_fit(case: Case, extra: int) -> None:
    plan = case.plan(case.least + extra)
    costs = case.lengths.sum(axis=1) + case.costs.whole
    fits = np.add.reduceat(costs, case.offsets[:-1]) <= case.least + extra
    assert (plan.fits == fits).all()
    inside = np.repeat(fits, np.diff(case.offsets))
    assert (plan.kept[inside] == case.lengths[inside]).all()


def shorten_longest(texts: list[int], room: int, floor: list[int], share: float) -> list[int]:
    """Brute force: cap the prompt, then take tokens from the longer response (from both where they are equal).

    A response at its floor gives none.
    """
    a, b = texts[1:]
    prompt = texts[0]
    cap = max(int(room * round(share * 1_000_000) // 1_000_000), floor[0])
    while prompt > cap and prompt + a + b > room:
        prompt -= 1
    while prompt > room - floor[1] - floor[2]:
        prompt -= 1
    while prompt + a + b > room:
        longer = max(n for n, least in ((a, floor[1]), (b, floor[2])) if n > least)
        a, b = a - (a == longer and a > floor[1]), b - (b == longer and b > floor[2])
    return [prompt, a, b]


@settings(max_examples=250)
@given(
    st.tuples(*[st.integers(0, 90)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(0, 250),
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1)),
)
def test_room_is_divided_as_by_brute_force(
    texts: tuple[int, int, int], markers: tuple[int, int, int], extra: int, share: float
) -> None:
    floor = [min(n, marker + LEAST) for n, marker in zip(texts, markers, strict=True)]
    room = sum(floor) + extra
    arrays = (np.array([texts]), np.array([room]), np.array([floor]))
    assert share_room(*arrays, share)[0].tolist() == shorten_longest(list(texts), room, floor, share)


@pytest.mark.parametrize(
    ("texts", "room", "expected"),
    [
        ((50, 30, 200), 400, (50, 30, 200)),  # fits
        ((20, 30, 200), 100, (20, 30, 50)),  # the short response stays whole
        ((20, 150, 200), 100, (20, 40, 40)),  # both are shortened
        ((300, 150, 200), 100, (25, 37, 37)),  # the prompt is capped at a quarter
        ((300, 10, 20), 100, (70, 10, 20)),  # unless the responses leave room
    ],
)
def test_worked_examples(texts: tuple[int, ...], room: int, expected: tuple[int, ...]) -> None:
    floor = np.minimum([texts], 6)
    assert tuple(share_room(np.array([texts]), np.array([room]), floor, 0.25)[0]) == expected


def test_a_response_whose_marker_is_longer_keeps_as_many_tokens_of_its_text() -> None:
    """Its marker counts more tokens, in more digits; half of the room would leave it one token fewer."""
    texts, floor = np.array([[5, 6, 7]]), np.array([[5, 5, 6]])  # markers of 1, 1 and 2 tokens
    assert share_room(texts, np.array([16]), floor, 0.0).tolist() == [[5, 5, 6]]
    assert share_room(texts[:, [0, 2, 1]], np.array([16]), floor[:, [0, 2, 1]], 0.0).tolist() == [[5, 6, 5]]


def test_one_more_token_of_room_never_shrinks_a_text_at_a_share_just_below_one() -> None:
    share, texts = 1 - 2**-53, np.array([[1000, 1000, 1000]])
    floor = np.full((1, 3), 5)
    kept = np.concatenate([share_room(texts, np.array([room]), floor, share) for room in range(15, 800)])
    assert (np.diff(kept, axis=0) >= 0).all()


def test_early_rounds_are_dropped_before_the_newest_is_trimmed() -> None:
    lengths = np.full((3, 3), 40)
    costs = TemplateCosts(np.full(3, 10), np.full(3, 10), np.ones((3, 3), dtype=np.int64))
    plan = plan_rounds(lengths, np.array([0, 3]), costs, 2 * 130 + 61, 0.25)
    assert plan.dropped.tolist() == [False, False, False]  # 61 = template and three stubs
    plan = plan_rounds(lengths, np.array([0, 3]), costs, 2 * 130 + 60, 0.25)
    assert plan.dropped.tolist() == [True, False, False]
    assert (plan.kept[1:] == 40).all()


def test_trimmed_text_keeps_head_and_tail() -> None:
    """Nothing is left of the last one, which is of a dropped round."""
    lengths, kept = np.array([100, 100, 7, 0, 9]), np.array([31, 30, 7, 0, 0])
    head, tail = head_and_tail(lengths, kept, np.ones(5, dtype=np.int64))
    assert head.tolist() == [15, 15, 7, 0, 0]
    assert tail.tolist() == [15, 14, 0, 0, 0]


def test_a_battle_of_exactly_the_budget_is_whole_and_one_token_less_cuts_it() -> None:
    """The first battle and the second, which have one round each."""
    costs = TemplateCosts(np.full(2, 10), np.full(2, 12), np.ones((2, 3), dtype=np.int64))
    case = Case(np.full((2, 3), 40), np.array([0, 1, 2]), costs, 0.25)
    whole = case.plan(130)
    assert whole.fits.all()
    assert (whole.kept == 40).all()
    cut = case.plan(129)
    assert not cut.fits.any()
    assert cut.kept.sum(axis=1).tolist() == [117, 117]  # the template of a round that is cut has 12 tokens


def test_a_response_whose_marker_is_longer_takes_from_the_other() -> None:
    texts, room = np.array([[0, 50, 90], [0, 90, 50]]), np.array([21, 21])
    floor = np.array([[0, 6, 14], [0, 14, 6]])
    assert share_room(texts, room, floor, 0.25).tolist() == [[0, 7, 14], [0, 14, 7]]


def test_budget_without_room_for_the_newest_round_is_refused() -> None:
    costs = TemplateCosts(np.full(2, 10), np.full(2, 10), np.ones((2, 3), dtype=np.int64))
    case = Case(np.full((2, 3), 40), np.array([0, 2]), costs, 0.25)
    case.plan(case.least)
    with pytest.raises(ValueError, match="too few"):
        case.plan(case.least - 1)


def test_no_battles_need_no_budget() -> None:
    empty = np.zeros(0, dtype=np.int64)
    rounds = np.zeros((0, 3), dtype=np.int64)
    plan = plan_rounds(rounds, np.zeros(1, dtype=np.int64), TemplateCosts(empty, empty, rounds), 0, 0.25)
    assert len(plan.kept) == len(plan.fits) == 0
    assert least_budget(TemplateCosts(empty, empty, rounds), empty) == 0
