"""Shared encoder: one call for all that wait, each request's own result, errors and cancelled requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble import Judge
from ensemble.serving.judge import Battle, battles_table
from ensemble.serving.shared_encoding import TOGETHER, Read, SharedEncoder
from oof.common.errors import UserError
from tests.fixtures.served_students import untrained_student

REFUSED = "a text that fails"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge.from_pretrained(untrained_student(tmp_path_factory.mktemp("student") / "tiny"))


class Calls:
    """Records the numbers of battles of an encoder's calls, which begin with ``go``."""

    def __init__(self, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        encode = judge.encode

        def recorded(table: pl.DataFrame, *more: Any) -> Any:
            assert self.go.wait(20)
            self.sizes.append(table.height)
            if table["prompt"].explode().eq(REFUSED).any():
                raise UserError("refused")
            return encode(table, *more)

        monkeypatch.setattr(type(judge), "encode", lambda _, *arguments: recorded(*arguments))


@pytest.fixture
def calls(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(judge, monkeypatch)


@pytest.fixture
def encoder(judge: Judge) -> Iterator[SharedEncoder]:
    encoder = SharedEncoder(judge)
    yield encoder
    encoder.close()


def battles(seed: int, n: int) -> list[Battle]:
    """Return n battles of one to three turns, some of them longer than the student's tokens."""
    rng = np.random.default_rng(seed)

    def side(turns: int, words: int) -> list[str | None]:
        return [" ".join(map(str, rng.integers(100, 999, words))) for _ in range(turns)]

    sizes = [(int(rng.integers(1, 4)), int(rng.integers(1, 200))) for _ in range(n)]
    return [(side(*size), side(*size), side(*size)) for size in sizes]


def at_once(calls: Calls, *reads: Coroutine[Any, Any, Read]) -> list[Any]:
    """Return the results of reads that have all come before the first call begins."""

    async def gather() -> list[Any]:
        tasks = [asyncio.ensure_future(read) for read in reads]
        await asyncio.sleep(0.05)
        calls.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(gather())


def assert_is_own(judge: Judge, read: Read, own: Sequence[Battle]) -> None:
    alone = judge.encode(battles_table(own))
    for name in ("ids", "offsets", "n_tokens", "n_kept"):
        np.testing.assert_array_equal(getattr(read.encoded, name), getattr(alone, name))


def test_requests_that_wait_share_a_call_and_each_gets_what_it_gets_alone(
    judge: Judge, encoder: SharedEncoder, calls: Calls
) -> None:
    requests = [battles(seed, n) for seed, n in enumerate([1, 3, 1, 7, 2])]
    reads = at_once(calls, *(encoder.read(request, asked=False) for request in requests))
    assert calls.sizes == [14]
    for read, own in zip(reads, requests, strict=True):
        assert_is_own(judge, read, own)
        assert read.unlike == []


def test_a_call_has_a_bounded_number_of_battles_and_a_larger_request_one_of_its_own(
    judge: Judge, encoder: SharedEncoder, calls: Calls
) -> None:
    requests = [battles(seed, n) for seed, n in enumerate([1, TOGETHER - 1, 2, TOGETHER + 5, 1])]
    reads = at_once(calls, *(encoder.read(request, asked=False) for request in requests))
    assert calls.sizes == [TOGETHER, 2, TOGETHER + 5, 1]
    for read, own in zip(reads, requests, strict=True):
        assert_is_own(judge, read, own)


def test_an_error_is_told_to_its_own_request_alone(judge: Judge, encoder: SharedEncoder, calls: Calls) -> None:
    good = [battles(seed, 2) for seed in range(3)]
    bad: list[Battle] = [([REFUSED], ["a"], ["b"])]
    requests = [good[0], good[1], bad, good[2]]
    reads = at_once(calls, *(encoder.read(request, asked=False) for request in requests))
    assert str(reads[2]) == "refused"
    for read, own in zip([*reads[:2], reads[3]], good, strict=True):
        assert_is_own(judge, read, own)


def test_cancelled_requests_are_not_encoded(judge: Judge, encoder: SharedEncoder, calls: Calls) -> None:
    requests = [battles(seed, n) for seed, n in enumerate([1, 2, 4])]

    async def cancel_one() -> list[Any]:
        tasks = []
        for request in requests:  # the first is in work when the others come
            tasks.append(asyncio.ensure_future(encoder.read(request, asked=False)))
            await asyncio.sleep(0.05)
        tasks[1].cancel()
        await asyncio.sleep(0)
        calls.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    reads = asyncio.run(cancel_one())
    assert calls.sizes == [1, 4]
    assert isinstance(reads[1], asyncio.CancelledError)
    assert_is_own(judge, reads[2], requests[2])
