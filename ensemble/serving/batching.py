"""Batches of concurrent requests: one thread around the student, which scores the sequences of all requests together.

Each pass of the model takes the sequence that is next in turn, and with it those of similar length that are waiting,
within the token budget of a scoring pass (:func:`oof.encoding.batches.cut`). Turns are fair by tokens: a sequence's
turn comes when the model has scored as many tokens since its request arrived as the same request has before it. So a
large request lets small ones pass, and none waits forever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.student import Student
from oof.encoding.batches import cut, score_tokens
from oof.encoding.encode import Encoded
from oof.encoding.tokenization import offsets_of
from oof.training.inference import predict_logits

Sequence32 = NDArray[np.int32]


class QueueFullError(Exception):
    """More sequences are waiting than the queue takes."""


@dataclass
class _Request:
    """Sequences of one request, and their logits so far."""

    future: asyncio.Future[NDArray[np.float64]]
    logits: NDArray[np.float64]
    left: int  # sequences without logits


@dataclass(frozen=True)
class _Waiting:
    """One sequence that waits for its turn; a request's logits have its row ``index``."""

    turn: int
    request: _Request
    index: int
    ids: Sequence32


class Batcher:
    """Scores sequences of concurrent requests in shared batches.

    Args:
        student: its model is used by one thread only, that of the batcher.
        capacity: sequences of all requests that may be waiting or in work.
    """

    def __init__(self, student: Student, capacity: int) -> None:
        self.student, self.capacity = student, capacity
        self.taken = 0  # sequences of admitted requests
        self.scored_tokens = 0
        self.passes = 0
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="student", daemon=True)
        self._thread.start()

    @contextmanager
    def place(self, n: int) -> Iterator[None]:
        """Hold places for ``n`` sequences in the queue.

        Raises:
            QueueFullError: there are not so many.
        """
        if self.taken + n > self.capacity:
            raise QueueFullError(f"{self.taken} sequences of other requests are waiting")
        self.taken += n
        try:
            yield
        finally:
            self.taken -= n

    async def logits(self, sequences: Sequence[Sequence32]) -> NDArray[np.float64]:
        """Return what :func:`sequence_logits` returns; cancelling the call takes its sequences out of the queue."""
        future: asyncio.Future[NDArray[np.float64]] = asyncio.get_running_loop().create_future()
        request = _Request(future, np.empty((len(sequences), 3)), len(sequences))
        before = offsets_of([len(ids) for ids in sequences])
        with self._changed:
            begin = self.scored_tokens
            self._waiting += [_Waiting(begin + int(before[i]), request, i, ids) for i, ids in enumerate(sequences)]
            self._changed.notify()
        return await future

    def close(self) -> None:
        """End the thread once nothing is waiting."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                logits = self._score([waiting.ids for waiting in batch])
            except Exception as error:  # told to each request of the batch, which answers for it
                for request in {id(waiting.request): waiting.request for waiting in batch}.values():
                    _finish(request, error)
                continue
            for waiting, row in zip(batch, logits, strict=True):
                waiting.request.logits[waiting.index] = row
                waiting.request.left -= 1
                if not waiting.request.left:
                    _finish(waiting.request)

    def _next_batch(self) -> list[_Waiting]:
        """Wait for sequences and take those of the next pass; empty when the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                # Of requests that were cancelled, because the client is gone or the time is over, nothing is scored.
                self._waiting = [waiting for waiting in self._waiting if not waiting.request.future.done()]
                if self._waiting or self._closing:
                    break
                self._changed.wait()
            if not self._waiting:
                return []
            lengths = np.array([len(waiting.ids) for waiting in self._waiting])
            first = min(range(len(lengths)), key=lambda i: self._waiting[i].turn)
            rows = next(rows for rows in cut(lengths, score_tokens(self.student.member)) if first in rows)
            batch = [self._waiting[row] for row in rows]
            taken = set(rows.tolist())
            self._waiting = [waiting for i, waiting in enumerate(self._waiting) if i not in taken]
            self.scored_tokens += int(lengths[rows].sum())
            self.passes += 1
            return batch

    def _score(self, sequences: list[Sequence32]) -> NDArray[np.float64]:
        return sequence_logits(self.student, sequences)


def sequence_logits(student: Student, sequences: Sequence[Sequence32]) -> NDArray[np.float64]:
    """Return (n, 3) logits of n sequences of token ids, in the class order as presented; a missing tie is pinned.

    Raises:
        UserError: a logit is not finite, or one sequence does not fit into memory.
    """
    offsets = offsets_of([len(ids) for ids in sequences])
    counts = np.zeros((len(sequences), 3), dtype=np.int32)  # of texts, which scoring does not read
    encoded = Encoded(np.concatenate(sequences), offsets, 1, counts, counts)
    logits = predict_logits(student.model, student.member, encoded, student.tokenizer.pad_token_id, "student")
    return logits[:, 0].astype(np.float64)


def _finish(request: _Request, error: Exception | None = None) -> None:
    """Hand a request its logits, or an error, in the thread of its event loop."""

    def tell() -> None:
        if request.future.done():  # cancelled, or told of the error of another batch
            return
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(request.logits)

    request.future.get_loop().call_soon_threadsafe(tell)
