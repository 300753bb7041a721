"""Token-budget batches: every sequence once and within the budget, whatever the cut and the number of processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.config import Member, Train
from oof.encoding.batches import (
    OptimizerStep,
    TrainingSteps,
    collate,
    cut,
    plan_steps,
    score_tokens,
    targets_in_both_orders,
)
from oof.encoding.encode import Encoded

SWAPS = ["none", "random", "paired"]
LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=120).map(np.array)


def encoded(lengths: np.ndarray) -> Encoded:
    """Two equal orders per battle; the ids of battle i are all i + 1."""
    each = np.repeat(lengths, 2)
    ids = np.repeat(np.repeat(np.arange(len(lengths)) + 1, 2), each).astype(np.int32)
    counts = np.zeros((len(lengths), 3), dtype=np.int32)
    return Encoded(ids, np.concatenate([[0], np.cumsum(each)]), 2, counts, counts)


@given(LENGTHS, st.integers(8, 2000))
def test_cut_holds_every_sequence_once_within_the_budget(lengths: np.ndarray, budget: int) -> None:
    batches = cut(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        padded = -(-lengths[rows].max() // 8) * 8
        assert len(rows) == 1 or len(rows) * padded <= budget


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 20), st.sampled_from(SWAPS), st.integers(0, 9))
def test_an_epoch_visits_each_battle_once(lengths: np.ndarray, size: int, swap: str, seed: int) -> None:
    recipe = Train(epochs=2, batch_battles=size, swap=swap)
    steps = plan_steps(lengths, recipe, seed)
    per_epoch = -(-len(lengths) // size)
    assert len(steps) == 2 * per_epoch
    for epoch in (steps[:per_epoch], steps[per_epoch:]):
        visited = [(int(b), int(o)) for step in epoch for b, o in zip(step.battles, step.orders, strict=True)]
        if swap == "paired":
            assert sorted(visited) == [(b, o) for b in range(len(lengths)) for o in (0, 1)]
        else:
            assert sorted(b for b, _ in visited) == list(range(len(lengths)))
        assert all(len(np.unique(step.battles)) <= size for step in epoch)
    again = plan_steps(lengths, replace(recipe, tokens_per_batch=9), seed)
    for one, other in zip(steps, again, strict=True):
        assert (one.battles == other.battles).all()
        assert (one.orders == other.orders).all()


def test_the_plan_of_a_training_is_the_same_in_every_version() -> None:
    """A training goes on at a step number, maybe with a newer version."""
    lengths = np.arange(70) * 37 % 64 + 1
    random, paired = (plan_steps(lengths, Train(epochs=1.1, batch_battles=4, swap=swap), 3) for swap in SWAPS[1:])
    assert [step.battles.tolist() for step in random[:3]] == [[25, 18, 5, 51], [61, 27, 32, 17], [35, 16, 49, 44]]
    assert [step.orders.tolist() for step in random[:3]] == [[0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 0]]
    assert [step.battles.tolist() for step in random[18:]] == [[56, 44], [17, 25, 1, 16]]  # of the second epoch
    assert [step.battles.tolist() for step in paired] == [np.repeat(step.battles, 2).tolist() for step in random]
    assert paired[0].orders.tolist() == [0, 1] * 4
    none = plan_steps(lengths, Train(epochs=1.1, batch_battles=4, swap="none"), 3)
    assert not any(step.orders.any() for step in none)
    few_lengths = plan_steps(np.arange(300) % 3 + 1, Train(batch_battles=8, swap="none"), 3)
    first = [[71, 122, 117, 42, 50, 68, 186, 198], [290, 92, 158, 131], [208, 226, 108, 78, 293, 200, 260, 47]]
    assert [step.battles.tolist() for step in few_lengths[:3]] == first


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 9), (1.0, 18), (1.01, 19), (1.5, 27)])
def test_a_fractional_epoch_stops_early_and_the_shortest_training_has_one_step(epochs: float, steps: int) -> None:
    assert len(plan_steps(np.full(70, 9), Train(epochs=epochs, batch_battles=4), 0)) == steps


def test_random_swap_swaps_another_half_of_the_battles_in_each_epoch() -> None:
    steps = plan_steps(np.full(200, 10), Train(epochs=2, batch_battles=200, swap="random"), 0)
    first, second = (dict(zip(s.battles.tolist(), s.orders.tolist(), strict=True)) for s in steps)
    assert sum(first.values()) == sum(second.values()) == 100
    assert first != second


@settings(max_examples=40)
@given(LENGTHS, st.integers(1, 8), st.integers(8, 3000))
def test_a_steps_weights_add_up_to_one_however_it_is_cut(lengths: np.ndarray, size: int, budget: int) -> None:
    n = len(lengths)
    targets = np.random.default_rng(0).dirichlet(np.ones(3), size=(n, 2))
    weights = np.arange(1, n + 1, dtype=float)
    recipe = Train(batch_battles=size, tokens_per_batch=budget)
    data = TrainingSteps(encoded(lengths), targets, weights, recipe, pad_id=0, seed=1)
    for i in range(len(data)):
        micro = data[i]
        assert sum(float(m["weights"].sum()) for m in micro) == pytest.approx(1, abs=1e-5)
        for batch in micro:
            battles = batch["input_ids"].max(dim=1).values.numpy() - 1
            share = weights[battles] / (2 * weights[np.unique(data.steps[i].battles)].sum())
            np.testing.assert_allclose(batch["weights"].numpy(), share, rtol=1e-5)
            assert ((batch["input_ids"] != 0).sum(dim=1).numpy() == lengths[battles]).all()


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_battle_without_weight_is_refused_because_its_steps_would_still_move_the_weights(weight: float) -> None:
    targets = np.full((2, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="weight 0 cannot be trained on"):
        TrainingSteps(encoded(np.array([9, 9])), targets, np.array([1.0, weight]), Train(), 0, 0)


def test_sequences_of_equal_length_keep_the_order_of_their_step() -> None:
    """Else the order of the sums, and with it their last bits, would be that of numpy's fastest sort on a processor."""
    lengths = np.arange(100) % 3 + 9
    recipe, targets = Train(batch_battles=100, tokens_per_batch=1600, swap="none"), np.full((100, 2, 3), 1 / 3)
    data = TrainingSteps(encoded(lengths), targets, np.ones(100), recipe, 0, 0)
    (batch,) = data[0]
    longest_first = sorted(data.steps[0].battles.tolist(), key=lambda battle: -lengths[battle])
    assert (batch["input_ids"][:, 0].numpy() - 1).tolist() == longest_first
    assert batch["targets"].dtype == batch["weights"].dtype == torch.float32


def test_swapping_every_battle_and_its_label_gives_the_same_training_set() -> None:
    targets = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    orders = targets_in_both_orders(targets)
    np.testing.assert_array_equal(orders[:, 0], targets.astype(np.float32))
    np.testing.assert_allclose(orders[:, ::-1], targets_in_both_orders(targets[:, [1, 0, 2]]))
    blocks = targets_in_both_orders(np.concatenate([targets, targets], axis=1))
    np.testing.assert_allclose(blocks, np.concatenate([orders, orders], axis=2))


def test_without_ties_targets_have_two_classes_in_both_orders() -> None:
    blocks = np.array([[0.2, 0.8, 0.0, 1.0, 0.0, 0.0]])
    orders = targets_in_both_orders(blocks, ties=False)
    np.testing.assert_array_equal(orders, np.float32([[[0.2, 0.8, 1, 0], [0.8, 0.2, 0, 1]]]))
    assert orders.dtype == np.float32


def test_tokens_and_the_longest_sequence_of_a_step_are_those_of_its_orders() -> None:
    lengths, targets = np.array([3, 17, 9, 30, 8]), np.full((5, 2, 3), 1 / 3)
    data = TrainingSteps(encoded(lengths), targets, np.ones(5), Train(batch_battles=2, swap="paired"), 0, 0)
    assert data.tokens().tolist() == [2 * lengths[np.unique(step.battles)].sum() for step in data.steps]
    longest = [data.longest(i) for i in range(len(data))]
    assert longest == [-(-int(lengths[step.battles].max()) // 8) * 8 for step in data.steps]
    assert max(longest) == 32


@pytest.mark.parametrize(("gpu", "default"), [(False, 4096), (True, 16384)])
def test_a_scoring_pass_has_the_member_s_tokens_or_the_device_s(
    gpu: bool, default: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert score_tokens(Member(checkpoint="x")) == default
    assert score_tokens(Member(checkpoint="x", score_tokens_per_batch=77)) == 77


def test_length_bucketing_saves_padding_and_passes_on_arena_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6.3, 0.8, 2000), 60, 3000).astype(int)
    recipe = Train(batch_battles=16, tokens_per_batch=8192)

    def cost(steps: list[OptimizerStep], spare: int) -> tuple[float, int]:
        """Return padded divided by real tokens, and the number of passes."""
        batches = [lengths[s.battles][rows] for s in steps for rows in cut(lengths[s.battles], 8192, spare)]
        return sum(len(batch) * int(batch.max()) for batch in batches) / (2 * lengths.sum()), len(batches)

    bucketed = plan_steps(lengths, recipe, 0)
    random = [OptimizerStep(np.repeat(rows, 2), rows * 0) for rows in rng.permutation(len(lengths)).reshape(-1, 16)]
    assert cost(bucketed, 10**9)[0] < 1.16 < cost(random, 10**9)[0]
    padding, passes = cost(bucketed, 256)
    assert padding < 1.03
    assert passes < 0.7 * cost(random, 256)[1]


@given(LENGTHS, st.integers(8, 2000), st.integers(0, 500))
def test_a_batch_ends_where_its_padding_would_cost_more_than_another_pass(
    lengths: np.ndarray, budget: int, spare: int
) -> None:
    """The oracle is a loop that adds one sequence after the other."""
    expected: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        size = -(-int(lengths[row]) // 8) * 8
        last = expected[-1] if expected else []
        longest = -(-int(lengths[last[0]]) // 8) * 8 if last else 0
        waste = sum(longest - -(-int(lengths[r]) // 8) * 8 for r in last) + longest - size
        if last and longest * (len(last) + 1) <= budget and waste <= spare:
            last.append(row)
        else:
            expected.append([row])
    assert [rows.tolist() for rows in cut(lengths, budget, spare)] == expected


@pytest.mark.parametrize(("gpu", "spare"), [(False, 256), (True, 1024)])
def test_a_pass_costs_what_it_costs_on_the_device(gpu: bool, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    lengths = np.arange(1, 400)
    by_default, given = ([rows.tolist() for rows in cut(lengths, 10_000, s)] for s in (None, spare))
    assert by_default == given != [rows.tolist() for rows in cut(lengths, 10_000, 512)]


def test_collate_refuses_a_sequence_that_ends_in_the_pad_token() -> None:
    with pytest.raises(ValueError, match="pad"):
        collate([np.array([5, 0], dtype=np.int32)], pad_id=0)
    batch = collate([np.array([5, 0, 7], dtype=np.int32), np.array([4], dtype=np.int32)], pad_id=0)
    assert batch["input_ids"].shape == (2, 8)
    assert set(batch) == {"input_ids"}


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 9), st.integers(8, 1500), st.integers(1, 5), st.sampled_from(["none", "paired"]))
def test_processes_have_equally_many_micro_batches_and_each_sequence_once(
    lengths: np.ndarray, size: int, budget: int, ranks: int, swap: str
) -> None:
    recipe = Train(batch_battles=size, tokens_per_batch=budget, swap=swap)
    n = len(lengths)
    for index in range(-(-n // size)):
        by_rank = []
        for rank in range(ranks):
            steps = TrainingSteps(encoded(lengths), np.full((n, 2, 3), 1 / 3), np.ones(n), recipe, 0, 0)
            steps.rank, steps.ranks = rank, ranks
            by_rank.append(steps[index])
        assert len({len(micros) for micros in by_rank}) == 1
        micros = [micro for own in by_rank for micro in own]
        assert all(len(m["input_ids"]) == 1 or m["input_ids"].numel() <= budget for m in micros)
        weighed = [(m["input_ids"][m["weights"] > 0][:, 0], m["weights"]) for m in micros]
        visited = sorted(int(i) - 1 for ids, _ in weighed for i in ids)
        assert visited == sorted(steps.steps[index].battles.tolist())
        assert sum(float(w.sum()) for _, w in weighed) == pytest.approx(1)
