"""Batcher: shared passes within the token budget, fair turns, cancelled requests, an orderly end."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from ensemble import Judge
from ensemble.serving.batching import Batcher, QueueFullError
from oof.encoding.batches import padded
from tests.fixtures.served_students import untrained_student

BUDGET = 256  # padded tokens of a pass


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge.from_pretrained(
        untrained_student(tmp_path_factory.mktemp("student") / "tiny"), tokens_per_batch=BUDGET
    )


class Passes:
    """Records the lengths of each pass of a batcher, which begins with :meth:`go`."""

    def __init__(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[list[int]] = []
        self.started = threading.Event()
        score = batcher._score

        def recorded(sequences: list[Any]) -> Any:
            self.started.wait(20)
            self.lengths.append(sorted(map(len, sequences)))
            return score(sequences)

        monkeypatch.setattr(batcher, "_score", recorded)


def sequences(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(5, 500, n).astype(np.int32) for n in lengths]


def test_requests_share_passes_within_the_budget_and_get_their_own_logits(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(judge, 1000)
    passes = Passes(batcher, monkeypatch)
    requests = [sequences(*(10 + 3 * i + j for j in range(4))) for i in range(12)]

    async def all_requests() -> list[Any]:
        calls = [asyncio.ensure_future(batcher.logits(request)) for request in requests]
        await asyncio.sleep(0)
        passes.started.set()
        return await asyncio.gather(*calls)

    together = asyncio.run(all_requests())
    assert sum(map(len, passes.lengths)) == 48
    assert len(passes.lengths) < 15
    for lengths in passes.lengths:
        assert len(lengths) * padded(np.array(lengths)).max() <= BUDGET
    for request, logits in zip(requests, together, strict=True):
        alone = np.concatenate([asyncio.run(batcher.logits([ids])) for ids in request])
        np.testing.assert_allclose(logits, alone, atol=1e-5)
    batcher.close()


def test_a_small_request_passes_a_large_one(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(judge, 1000)
    passes = Passes(batcher, monkeypatch)
    done: list[str] = []

    async def ask(name: str, request: list[np.ndarray]) -> None:
        await batcher.logits(request)
        done.append(name)

    async def both() -> None:
        large = asyncio.ensure_future(ask("large", sequences(*[100] * 40)))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(ask("small", sequences(10)))
        await asyncio.sleep(0)
        passes.started.set()
        await asyncio.gather(large, small)

    asyncio.run(both())
    assert done == ["small", "large"]
    batcher.close()


def test_a_cancelled_request_is_not_scored(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(judge, 1000)
    passes = Passes(batcher, monkeypatch)

    async def cancel_one() -> None:
        running = asyncio.ensure_future(batcher.logits(sequences(100)))
        await asyncio.sleep(0.05)  # its pass waits for the event
        gone = asyncio.ensure_future(batcher.logits(sequences(20, 21)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        passes.started.set()
        assert (await running).shape == (1, 3)
        assert (await batcher.logits(sequences(30))).shape == (1, 3)

    asyncio.run(cancel_one())
    assert passes.lengths == [[100], [30]]
    batcher.close()


def test_a_failing_pass_is_told_to_its_requests_and_the_next_is_served(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(judge, 1000)
    score = batcher._score

    def failing(batch: list[Any]) -> Any:
        if len(batch[0]) == 13:
            raise RuntimeError("broken")
        return score(batch)

    monkeypatch.setattr(batcher, "_score", failing)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(batcher.logits(sequences(13)))
    assert asyncio.run(batcher.logits(sequences(14))).shape == (1, 3)
    batcher.close()


def test_places_are_bounded_and_given_back(judge: Judge) -> None:
    batcher = Batcher(judge, 4)
    with batcher.place(3), pytest.raises(QueueFullError, match="3 sequences"), batcher.place(2):
        pass
    with batcher.place(4):
        assert batcher.taken == 4
    assert batcher.taken == 0
    batcher.close()


def test_closing_ends_the_thread(judge: Judge) -> None:
    before = threading.active_count()
    batcher = Batcher(judge, 4)
    assert threading.active_count() == before + 1
    batcher.close()
    assert threading.active_count() == before
