"""Verification of an endpoint: are its numbers those of the student, and if not, what differs.

Fifty synthetic battles, some of them longer than the student reads, are scored by :class:`ensemble.Judge` and by the
endpoint. Where the numbers differ, they are compared with those of common mistakes: labels in another order, no
softmax, BOS twice, one order of the responses only, a lower precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, permutations

import numpy as np
from scipy.special import expit

from ensemble.serving.batching import Sequence32, sequence_logits
from ensemble.serving.endpoints import CLASSIFY, COMPARE, Endpoint, Floats
from ensemble.serving.judge import Battle, Judge, battles_table, read_battle
from oof.classes import CLASSES, ORDERS, swap_classes, with_tie
from oof.data.synth import make_battles
from oof.metrics import softmax

BATTLES = 50
LONG_EVERY = 10  # one battle in so many is longer than the student reads
AT_ONCE = 5  # battles of one request
SEED = 11
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05, "int8": 0.01}  # of a probability
NOISE = 0.15  # largest difference of a probability that a lower precision may cause


@dataclass(frozen=True)
class Comparison:
    """Numbers of one path of an endpoint beside those of the student."""

    path: str
    largest: float  # difference of a probability, or of a logit where the endpoint gives logits
    differs: str  # what differs, in words; "" = nothing beyond the tolerance

    def __str__(self) -> str:
        return f"{self.path}: {self.differs or 'the numbers of the student'} (largest difference {self.largest:.1e})"


@dataclass(frozen=True)
class Expected:
    """The student's own numbers: battles, their sequences, and (n, 2, classes) logits as presented."""

    battles: list[Battle]
    sequences: list[Sequence32]
    logits: Floats


def synthetic_battles(max_tokens: int) -> list[Battle]:
    """Return fifty battles of the synthetic arena, every tenth of them longer than ``max_tokens``."""
    prompts, a, b, _ = make_battles(BATTLES, SEED)
    battles = []
    for i, sides in enumerate(zip(prompts, a, b, strict=True)):
        turns = [list(side.turns) for side in sides]
        if i % LONG_EVERY == 0:
            turns[1][0] = f"{turns[1][0]} " * max_tokens
        battles.append(read_battle(f"battle {i}", *turns))
    return [(a, b, c) for a, b, c in battles_table(battles).iter_rows()]  # cleaned: JSON holds no lone surrogates


def verify(judge: Judge, endpoint: Endpoint, tolerance: float | None = None) -> list[Comparison]:
    """Compare an endpoint with the student, path by path.

    Args:
        judge: the student, in the precision in which the endpoint computes.
        endpoint: to be verified.
        tolerance: largest difference of a probability; None = a default for the judge's precision.

    Raises:
        UserError: the endpoint does not answer.
    """
    expected = _expect(judge)
    limit = TOLERANCES[judge.precision] if tolerance is None else tolerance
    compare = {COMPARE: _compare_verdicts, CLASSIFY: _compare_classes}
    return [compare[path](judge, endpoint, expected, limit) for path in endpoint.paths]


def _expect(judge: Judge) -> Expected:
    battles = synthetic_battles(judge.prompts.max_tokens)
    encoded = judge.encode(battles_table(battles))
    sequences = [encoded.sequence(i, order) for i in range(len(battles)) for order in range(len(ORDERS))]
    classes = judge.model.config.num_labels
    logits = sequence_logits(judge, sequences)[:, :classes]
    return Expected(battles, sequences, logits.reshape(-1, len(ORDERS), classes))


def _compare_verdicts(judge: Judge, endpoint: Endpoint, expected: Expected, limit: float) -> Comparison:
    answers = [endpoint.compare(expected.battles[i : i + AT_ONCE]) for i in range(0, len(expected.battles), AT_ONCE)]
    verdicts, orders = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    logits = _in_class_order(expected.logits)
    right = softmax(logits.mean(axis=1))
    largest = max(_distance(verdicts, right), _distance(orders, softmax(logits)))
    if largest <= limit:
        return Comparison(COMPARE, largest, "")
    mistakes = _mistakes_of_orders(expected.logits, logits)
    return Comparison(COMPARE, largest, _explain(judge, endpoint, verdicts, logits.mean(axis=1), limit, mistakes))


def _compare_classes(judge: Judge, endpoint: Endpoint, expected: Expected, limit: float) -> Comparison:
    step = AT_ONCE * len(ORDERS)
    answers = [endpoint.classify(expected.sequences[i : i + step]) for i in range(0, len(expected.sequences), step)]
    values, are_logits = np.concatenate([rows for rows, _ in answers]), answers[0][1]
    logits = expected.logits.reshape(-1, expected.logits.shape[-1])
    if values.shape != logits.shape:
        return Comparison(CLASSIFY, np.inf, f"it has {values.shape[1]} classes, the student {logits.shape[1]}")
    if are_logits:  # of SGLang, which applies no softmax
        values = softmax(values)
    largest = _distance(values, softmax(logits))
    if largest <= limit:
        return Comparison(CLASSIFY, largest, "")
    mistakes = _mistakes_of_ids(judge, expected.sequences)
    return Comparison(CLASSIFY, largest, _explain(judge, endpoint, values, logits, limit, mistakes))


def _explain(
    judge: Judge,
    endpoint: Endpoint,
    values: Floats,
    logits: Floats,
    limit: float,
    mistakes: Iterator[tuple[str, Floats]],
) -> str:
    """Return what explains the values of an endpoint that differ from the softmax of (n, classes) logits."""
    right = softmax(logits)
    for words, wrong in chain(_mistakes_of_values(logits), mistakes):
        if _distance(values, wrong) <= limit:
            return words
    nearest = np.abs(values[:, None] - right[None]).max(axis=2).argmin(axis=1)
    if _distance(values, right[nearest]) <= limit:
        return "the answers of one request are in another order than its inputs, or mixed up between requests"
    dtype = judge.precision
    if endpoint.dtype not in ("", dtype):
        return f"it computes in {endpoint.dtype}, not in {dtype}: give --dtype {endpoint.dtype}, or serve it in {dtype}"
    if _distance(values, right) <= NOISE:
        return (
            f"differences of the size of a lower precision: serve the student in {dtype}, unquantised, or compare with "
            "the --dtype that the endpoint computes in"
        )
    return "no known mistake explains it: does it serve this student?"


def _mistakes_of_values(logits: Floats) -> Iterator[tuple[str, Floats]]:
    """Yield what goes wrong after the logits."""
    right = softmax(logits)
    yield "it gives logits: the softmax is missing", logits
    yield "it applies a sigmoid to each class instead of the softmax (problem_type in config.json)", expit(logits)
    yield "it applies the softmax twice", softmax(right)
    for order in permutations(range(right.shape[1])):
        if order != tuple(range(right.shape[1])):
            names = ", ".join(CLASSES[i] for i in order)
            yield f"its labels are in the order {names} instead of {', '.join(CLASSES[: len(order)])}", right[:, order]


def _mistakes_of_orders(presented: Floats, logits: Floats) -> Iterator[tuple[str, Floats]]:
    """Yield what goes wrong between both orders of (n, 2, classes) logits, as presented and in class order."""
    by_order = softmax(logits)
    yield "it scores the order ab only: average the logits of both orders", by_order[:, 0]
    yield "it scores the order ba only: average the logits of both orders", by_order[:, 1]
    yield "it does not swap the first two logits of the order ba back", softmax(with_tie(presented).mean(axis=1))
    yield "it averages probabilities of both orders instead of logits", by_order.mean(axis=1)


def _mistakes_of_ids(judge: Judge, sequences: Sequence[Sequence32]) -> Iterator[tuple[str, Floats]]:
    """Yield what goes wrong before the model: other token ids than those sent."""
    changed = {
        "it adds a second BOS: switch add_special_tokens off": [np.concatenate([ids[:1], ids]) for ids in sequences],
        "it drops the first token, BOS": [ids[1:] for ids in sequences],
        "it drops the last token": [ids[:-1] for ids in sequences],
    }
    for words, wrong in changed.items():
        yield words, softmax(sequence_logits(judge, wrong)[:, : judge.model.config.num_labels])


def _in_class_order(presented: Floats) -> Floats:
    """Return (n, 2, 3) logits in class order of (n, 2, classes) logits as presented."""
    logits = with_tie(presented)
    return np.stack([logits[:, 0], swap_classes(logits[:, 1])], axis=1)


def _distance(values: Floats, others: Floats) -> float:
    """Return the largest difference; infinite where a value is not a number."""
    return float(np.nan_to_num(np.abs(values - others), nan=np.inf).max())
