"""Limits of one request, around the application: its key, the size of its body, its time, and what an error tells.

Guarantee: every request has one answer, an error is one sentence and never a traceback, and the memory that bodies take
is bounded whatever clients send. No text of a request reaches the log.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemble.serving.service_metrics import ServiceMetrics, path_label

logger = logging.getLogger(__name__)

SMALL_BODY = 64 << 10  # bytes; bodies up to this never wait for the memory of others
READ_ON = 8  # times the largest body that is read and thrown away, so that a client reads its 413 and not a reset
OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})  # without a key: they hold no data
INTERNAL_ERROR = "internal error; the service's log says where"
FRAMES = 4  # innermost calls that the log names for an error
TYPES = {
    401: "authentication_error",
    500: "internal_error",
    413: "request_too_large",
    429: "queue_full",
    503: "unavailable",
}


@dataclass(frozen=True)
class Limits:
    """Limits of the service: what one client may ask for, and what all of them together."""

    seconds: float = 60.0  # until a request is answered
    read_seconds: float = 10.0  # until its headers, and then its body, have arrived
    body_bytes: int = 4 << 20  # of one request
    all_bodies_bytes: int = 64 << 20  # of all requests in work
    waiting: int = 2048  # battles of all requests in work
    connections: int = 1000


class RequestError(Exception):
    """An answer other than 200: a status and one sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def error_document(status: int, message: str) -> dict[str, object]:
    """Return the JSON answer of an error, in the form that OpenAI's and vLLM's clients read."""
    return {"error": {"message": message, "type": TYPES.get(status, "invalid_request_error"), "code": status}}


class RequestLimits:
    """ASGI middleware that reads a request's body within the limits and answers for every failure.

    Args:
        app: the application, which gets each body as one piece.
        limits: of the service.
        metrics: count each answer by its path and status.
        key: of the clients, in the header ``Authorization: Bearer KEY``; "" = none is asked for.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: ServiceMetrics, key: str = "") -> None:
        self.app, self.limits, self.metrics, self.key = app, limits, metrics, key
        self.held_bytes = 0  # of large bodies in work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, answer = time.perf_counter(), _Answer(send)
        held = _Held()
        try:
            self._check_key(scope)
            body = await self._body(scope, receive, held)
            if body is not None:
                await self._run(scope, body, receive, answer)
        except RequestError as error:
            await answer.error(error.status, error.message)
        except Exception as error:
            _log(scope, error)
            await answer.error(500, INTERNAL_ERROR)
        finally:
            self.held_bytes -= held.large
            self.metrics.answered(scope["path"], answer.status, time.perf_counter() - begun)

    def _check_key(self, scope: Scope) -> None:
        if not self.key or scope["path"] in OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
            raise RequestError(401, "this service needs its key: send the header 'Authorization: Bearer KEY'")

    async def _body(self, scope: Scope, receive: Receive, held: _Held) -> bytes | None:
        """Return the whole body; None if the client is gone.

        Raises:
            RequestError: it is too large or too slow, or the bodies of others take all the memory for bodies.
        """
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                return await self._read(scope, receive, held)
        except TimeoutError:
            raise RequestError(
                408, f"the body did not arrive within {self.limits.read_seconds:g} seconds; send it at once"
            ) from None

    async def _read(self, scope: Scope, receive: Receive, held: _Held) -> bytes | None:
        most, headers = self.limits.body_bytes, dict(scope["headers"])
        too_large = RequestError(413, f"the body is larger than {most:,} bytes; send the battles in several requests")
        announced = int(headers.get(b"content-length", b"0"))  # h11 has checked that it is a number
        refusal = too_large if announced > most else None
        # A client that waits for leave to send its body is refused at once; of another the body is read and dropped.
        more = refusal is None or (b"expect" not in headers and announced <= READ_ON * most)
        body, arrived = bytearray(), 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            arrived += len(piece)
            if refusal is None:
                body += piece
                if len(body) > most:
                    refusal = too_large
                elif not self._hold(len(body), held):
                    refusal = RequestError(503, "the bodies of other requests take all the memory; try again soon")
            if refusal is not None:
                body.clear()
                self._hold(0, held)
            more = message.get("more_body", False) and arrived <= READ_ON * most
        if refusal is not None:
            raise refusal
        return bytes(body)

    def _hold(self, size: int, held: _Held) -> bool:
        """Count a body of ``size`` bytes so far as held; return whether there is room."""
        large = size if size > SMALL_BODY else 0
        if self.held_bytes + large - held.large > self.limits.all_bodies_bytes:
            return False
        self.held_bytes += large - held.large
        held.large = large
        return True

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the application until it has answered, the client is gone, or the time is over."""
        pieces = [body]

        async def replay() -> Message:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(), "more_body": False}
            await asyncio.Event().wait()  # the application need not know that the client is gone: it is cancelled
            raise AssertionError

        call = asyncio.ensure_future(self.app(scope, replay, answer.send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({call, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
            elif not gone.done():
                raise RequestError(503, f"not answered within {self.limits.seconds:g} seconds; send fewer battles")
        finally:
            for task in (call, gone):
                task.cancel()
            await asyncio.gather(call, gone, return_exceptions=True)


@dataclass
class _Held:
    """Bytes of one request's body that count as large."""

    large: int = 0


class _Answer:
    """The answer to one request: its status, and an error in its place while nothing is sent."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0  # 0 = the client was gone before

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def error(self, status: int, message: str) -> None:
        if self.status:
            return
        content = json.dumps(error_document(status, message)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if status in (429, 503):
            headers.append((b"retry-after", b"1"))
        if status in (401, 408, 413, 503):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})


async def _gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _log(scope: Scope, error: Exception) -> None:
    """Log where an error was raised, without its message, which may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    place = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("%s: %s at %s", path_label(scope["path"]), type(error).__name__, place)
