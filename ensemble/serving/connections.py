"""HTTP connections with limits that uvicorn does not have: time for the headers, and a number of open connections.

Where too many connections are open, the one that has been waiting longest for a complete request makes room: a client
that sends its request at once is served, however many others only hold their connections open. Only where every
connection has a request in work is a new one refused.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

REFUSAL = b"too many connections; try again in a second"
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL)
)


OTHER_FILES = 400  # that a process with a model has open, and connections accepted before the limit is looked at


def connections_that_fit(wanted: int) -> int:
    """Return how many connections the process may have open, at most ``wanted``; raise its own limit of files first.

    Beyond the limit of the system no client could connect at all, neither a hostile one nor another.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + OTHER_FILES if hard == resource.RLIM_INFINITY else min(wanted + OTHER_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, most - OTHER_FILES)


def limited_protocol(most: int, read_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol of a connection with limits, for one server.

    Args:
        most: connections that may be open.
        read_seconds: for the headers of a request, and for a client to take its answer.
    """
    idle: dict[H11Protocol, None] = {}  # connections without a complete request, the longest-waiting first

    class LimitedProtocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None  # runs while headers are awaited

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            idle[self] = None
            self.note_progress()
            if len(self.connections) <= most:
                return
            oldest = next(iter(idle))
            if oldest is self:
                transport.write(REFUSED)
                transport.close()
            else:
                oldest.transport.abort()
                oldest.connections.discard(oldest)
                idle.pop(oldest)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            idle.pop(self, None)
            self.stop_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.note_progress()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.note_progress()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # Closing waits until the client has taken its answer, which it may never do.
            self.loop.call_later(read_seconds, self.transport.abort)

        def note_progress(self) -> None:
            """Arm the timer while headers are awaited, and keep the list of connections without a request."""
            serving = self.cycle is not None and not self.cycle.response_complete
            if serving and not self.cycle.more_body:
                idle.pop(self, None)
            elif self in self.connections:
                idle.setdefault(self)
            if serving:
                self.stop_timer()
            elif self.timer is None:
                self.timer = self.loop.call_later(read_seconds, self.transport.abort)

        def stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return LimitedProtocol
