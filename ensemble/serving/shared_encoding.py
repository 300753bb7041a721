"""Encoding of concurrent requests: one thread, which encodes the battles of all requests that wait in one call.

Much of a call's time does not depend on the number of battles: twenty take about twice as long as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from ensemble.serving.judge import Battle, Judge, battles_table
from oof.encoding.encode import Encoded

TOGETHER = 64  # battles of one call; a larger request has a call of its own
T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """Battles as the student reads them.

    Attributes:
        encoded: token ids of n battles in both orders.
        unlike: n times how the battle is unlike the training battles; empty where that was not asked.
    """

    encoded: Encoded
    unlike: list[tuple[str, ...]]


@dataclass(frozen=True)
class _Request:
    """Battles of one request, and whether it asks how they are unlike the training battles."""

    battles: Sequence[Battle]
    asked: bool
    read: asyncio.Future[Read]


class SharedEncoder:
    """Encodes the battles of concurrent requests; each gets what a call for it alone gives.

    Args:
        judge: its tokenizer is used by one thread only, that of the encoder.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._thread = ThreadPoolExecutor(1, "encode")  # a fast tokenizer is not for several threads at once
        self._waiting: list[_Request] = []
        self._working: asyncio.Task[None] | None = None

    async def read(self, battles: Sequence[Battle], asked: bool) -> Read:
        """Return the token ids of battles and, where asked, how they are unlike the training battles."""
        loop = asyncio.get_running_loop()
        request = _Request(battles, asked, loop.create_future())
        self._waiting.append(request)
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await request.read

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call with the tokenizer gives, made in the encoder's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """End the thread, once it has done what was given to it."""
        self._thread.shutdown()

    async def _work(self) -> None:
        while requests := self._next():
            try:
                results: Sequence[Read | Exception] = await self.run(partial(self._read, requests))
            except Exception as error:  # told to each request
                results = [error] * len(requests)
            for request, result in zip(requests, results, strict=True):
                if request.read.done():  # cancelled: the client is gone or the time is over
                    continue
                if isinstance(result, Exception):
                    request.read.set_exception(result)
                else:
                    request.read.set_result(result)

    def _next(self) -> list[_Request]:
        """Return the requests of the next call, in the order in which they came."""
        waiting = [request for request in self._waiting if not request.read.done()]
        before = np.cumsum([0, *(len(request.battles) for request in waiting)])
        taken = max(1, int((before[1:] <= TOGETHER).sum()))
        self._waiting = waiting[taken:]
        return waiting[:taken]

    def _read(self, requests: Sequence[_Request]) -> list[Read | Exception]:
        try:
            return [*self._read_together(requests)]
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [result for request in requests for result in self._read([request])]  # one cannot fail the others

    def _read_together(self, requests: Sequence[_Request]) -> list[Read]:
        table = battles_table([battle for request in requests for battle in request.battles])
        encoded = self.judge.encode(table)
        reads, begin = [], 0
        for request in requests:
            end = begin + len(request.battles)
            own = encoded.take(np.arange(begin, end))
            unlike = self.judge.unlike_training(table[begin:end], own) if request.asked else []
            reads.append(Read(own, unlike))
            begin = end
        return reads
