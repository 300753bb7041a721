"""Token-budget batches of sequences of similar length, for training and scoring.

Training. One optimizer step is always ``batch_battles`` battles (with both orders of each battle when ``swap=paired``),
so that the optimization does not depend on how the memory is cut. Steps use length bucketing: a bucket of steps is
sorted by length and cut into runs of similar lengths, and each step draws its runs at random from its bucket. Inside a
step, the sequences are cut into micro-batches under ``tokens_per_batch`` padded tokens, and earlier where padding would
cost more than another pass. The whole plan is a function of lengths and seed, so resuming means starting at a step
number.

Scoring. Sequences are sorted by length and cut under the same kind of budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from oof.classes import CLASSES, classes_of_data, swap_classes
from oof.config import Member, Train
from oof.encoding.encode import Encoded

RUNS = 4  # runs of similar lengths in one step; independent of the memory, so that a step holds the same battles
BUCKET_STEPS = 16  # steps per length-sorted bucket: enough for similar lengths, few enough to keep steps mixed
SCORE_TOKENS = {"cpu": 4096, "cuda": 16384}  # more does not fit into a CPU's cache
SPARE = {"cpu": 256, "cuda": 1024}  # fixed cost of one pass, in tokens, estimated
MULTIPLE = 8  # sequences are padded to multiples of this many tokens, for which kernels are faster


def score_tokens(member: Member) -> int:
    """Return the padded tokens of one scoring pass: the member's setting, or the device's default."""
    return member.score_tokens_per_batch or SCORE_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]


def cut(lengths: NDArray[np.integer], budget: int, spare: int | None = None) -> list[NDArray[np.int64]]:
    """Cut sequences into batches whose padded size (count x longest) stays within ``budget`` tokens.

    Args:
        lengths: (n,) tokens of each sequence.
        budget: padded tokens of one batch; a sequence longer than this gets a batch of its own.
        spare: tokens of padding that a batch may have, not counting padding to multiples of 8; more padding would
            cost more than another pass. By default ``SPARE`` of this machine.

    Returns:
        Index arrays into ``lengths``, longest first, so that running out of memory happens at once, not after hours.
    """
    if spare is None:
        spare = SPARE["cuda" if torch.cuda.is_available() else "cpu"]
    order = np.argsort(-lengths, kind="stable")
    rounded = padded(lengths[order])
    batches, start = [], 0
    while start < len(order):
        ahead = rounded[start : start + max(1, budget // int(rounded[start]))]
        waste = np.cumsum(rounded[start] - ahead)
        size = int(np.searchsorted(waste, spare, side="right"))  # at least 1: one sequence alone has no padding
        batches.append(order[start : start + size])
        start += size
    return batches


def padded(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return lengths rounded up to what sequences are padded to."""
    return -(-lengths.astype(np.int64) // MULTIPLE) * MULTIPLE


@dataclass(frozen=True)
class OptimizerStep:
    """The sequences of one optimizer step: battle positions and their order (0 = ab, 1 = ba)."""

    battles: NDArray[np.int64]
    orders: NDArray[np.int64]


def plan_steps(lengths: NDArray[np.integer], recipe: Train, seed: int) -> list[OptimizerStep]:
    """Return every optimizer step of a training run.

    Args:
        lengths: (n,) tokens of each battle's longest order.
        recipe: epochs, batch_battles and swap are read; ``tokens_per_batch`` changes no step.
        seed: the plan depends on it and on the lengths only.

    Returns:
        ``ceil(n / batch_battles)`` steps an epoch; each whole epoch visits each battle once (``swap=paired``:
        each order of it once); a fractional last epoch stops early.
    """
    rng = np.random.default_rng([seed, 7])
    steps: list[OptimizerStep] = []
    per_epoch = math.ceil(len(lengths) / recipe.batch_battles)
    total = max(1, math.ceil(recipe.epochs * per_epoch))
    while len(steps) < total:
        flips = rng.permutation(len(lengths)) % 2  # half of the battles swapped, exactly
        for battles in _epoch(lengths, recipe, rng):
            steps.append(_with_orders(battles, flips, recipe.swap))
    return steps[:total]


def _with_orders(battles: NDArray[np.int64], flips: NDArray[np.int64], swap: str) -> OptimizerStep:
    if swap == "paired":
        return OptimizerStep(np.repeat(battles, 2), np.tile(np.array([0, 1]), len(battles)))
    return OptimizerStep(battles, flips[battles] if swap == "random" else np.zeros_like(battles))


def _epoch(lengths: NDArray[np.integer], recipe: Train, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the battles of each step of one epoch: buckets sorted by length, dealt out in runs."""
    size = recipe.batch_battles
    run = max(1, size // RUNS)
    shuffled = rng.permutation(len(lengths))
    steps: list[NDArray[np.int64]] = []
    for start in range(0, len(shuffled), size * BUCKET_STEPS):
        bucket = shuffled[start : start + size * BUCKET_STEPS]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        runs = [bucket[i : i + run] for i in range(0, len(bucket), run)]
        bucket = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
        steps += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def collate(sequences: list[NDArray[np.int32]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad sequences to one tensor: ``input_ids``, (b, t) int64.

    There is no attention mask: attention is causal, so no real token sees the padding to its right, and without a
    mask the fast causal kernels run.

    Raises:
        ValueError: a sequence ends in the pad token, so that pooling by pad id would read the wrong position.
    """
    longest = int(padded(np.array([max(len(s) for s in sequences)]))[0])
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        if sequence[-1] == pad_id:
            raise ValueError("a sequence ends in the pad token; the tokenizer was not prepared")
        ids[row, : len(sequence)] = sequence
    return {"input_ids": torch.from_numpy(ids)}


def targets_in_both_orders(targets: NDArray[np.floating], ties: bool = True) -> NDArray[np.float32]:
    """Return (n, 2, 3m) targets as presented in the orders ab and ba from (n, 3m) canonical ones (m blocks).

    Without ``ties`` they are (n, 2, 2m): what classifiers of two classes are trained on.
    """
    blocks = targets.reshape(len(targets), -1, len(CLASSES))[..., : len(classes_of_data(ties))]
    orders = [values.reshape(len(targets), -1) for values in (blocks, swap_classes(blocks))]
    return np.stack(orders, axis=1).astype(np.float32)


class TrainingSteps(Dataset[list[dict[str, torch.Tensor]]]):
    """Item i = the micro-batches of optimizer step i: ``input_ids``, soft ``targets`` (b, 3m) and ``weights`` (b,).

    The weights of a step sum to 1 over all micro-batches and ranks, so the sum of their losses is the mean over the
    step's sequences, however they are cut and distributed. Every rank has the same number of micro-batches of about the
    same shapes, so that no rank waits long for another.

    Attributes:
        budget: padded tokens of one micro-batch; may be lowered at any time, which changes no step.
        rank, ranks: this process gets every ``ranks``-th sequence in order of length; all cut at the same places.
    """

    def __init__(
        self,
        encoded: Encoded,
        targets: NDArray[np.floating],
        weights: NDArray[np.floating],
        recipe: Train,
        pad_id: int,
        seed: int,
    ) -> None:
        """``targets`` (n, 2, 3m): probabilities per battle and order, as presented. ``weights`` (n,), above 0.

        Raises:
            ValueError: a weight is not above 0: its battle would cost time, and an optimizer step of such battles alone
                would still apply Adam's momentum.
        """
        if not np.all(np.asarray(weights) > 0):
            raise ValueError("a battle of weight 0 cannot be trained on: leave it out")
        self.encoded, self.pad_id, self.budget = encoded, pad_id, recipe.tokens_per_batch
        self.rank, self.ranks = 0, 1
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32))
        self.weights = np.asarray(weights, dtype=np.float64)
        self.steps = plan_steps(encoded.lengths.max(axis=1), recipe, seed)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        step = self.steps[index]
        lengths = self.encoded.lengths[step.battles, step.orders]
        weights = self.weights[step.battles]
        weights = weights / weights.sum()
        order = np.argsort(-lengths, kind="stable")
        # The longest of every ``ranks`` sequences decides where to cut, so each rank's share of a stretch fits, too.
        stretches = cut(lengths[order[:: self.ranks]], self.budget)
        bounds = np.cumsum([0, *map(len, stretches)]) * self.ranks
        own = [order[a:b][self.rank :: self.ranks] for a, b in pairwise(bounds.tolist())]
        # Only the last stretch can have fewer sequences than ranks: a rank without one gets a row of weight 0.
        return [
            self._micro_batch(step, rows, weights) if len(rows) else self._micro_batch(step, order[-1:], weights * 0)
            for rows in own
        ]

    def longest(self, index: int) -> int:
        """Return the padded tokens of a step's longest sequence, the smallest useful budget."""
        step = self.steps[index]
        return int(padded(self.encoded.lengths[step.battles, step.orders]).max())

    def tokens(self) -> NDArray[np.int64]:
        """Return the (n,) tokens of each step's sequences, of all ranks, padding not counted."""
        lengths = self.encoded.lengths
        return np.array([lengths[step.battles, step.orders].sum() for step in self.steps], dtype=np.int64)

    def _micro_batch(
        self, step: OptimizerStep, rows: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> dict[str, torch.Tensor]:
        battles, orders = step.battles[rows], step.orders[rows]
        batch = collate([self.encoded.sequence(b, o) for b, o in zip(battles, orders, strict=True)], self.pad_id)
        batch["targets"] = self.targets[torch.from_numpy(battles), torch.from_numpy(orders)]
        batch["weights"] = torch.from_numpy(weights[rows].astype(np.float32))
        return batch
