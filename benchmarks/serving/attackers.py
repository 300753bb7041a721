"""Hostile clients of an HTTP service, in a process of their own.

    python -m benchmarks.serving.attackers NAME URL SECONDS CONNECTIONS

Prints how many connections it opened.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

HEAD = b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def silent(connection: Connection, until: float) -> None:
    await connection[0].read()


async def slow_headers(connection: Connection, until: float) -> None:
    for byte in HEAD * 100:
        connection[1].write(bytes([byte]))
        await connection[1].drain()
        await asyncio.sleep(0.5)


async def slow_bodies(connection: Connection, until: float) -> None:
    connection[1].write(HEAD + b"Content-Length: 4000000\r\n\r\n")
    while time.monotonic() < until:
        connection[1].write(b"x" * 1000)
        await connection[1].drain()
        await asyncio.sleep(0.5)


async def huge_bodies(connection: Connection, until: float) -> None:
    connection[1].write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    while time.monotonic() < until and not connection[0].at_eof():
        connection[1].write(piece)
        await connection[1].drain()


async def malformed(connection: Connection, until: float) -> None:
    connection[1].write(random.choice([os.urandom(500), b"GET\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n"]))
    await connection[0].read()


async def half_closed(connection: Connection, until: float) -> None:
    connection[1].write(HEAD + b"Content-Length: 100\r\n\r\n{")
    connection[1].write_eof()
    await connection[0].read()


async def abandoned(connection: Connection, until: float) -> None:
    body = json.dumps({"battles": [{"prompt": "why " * 400, "response_a": "a", "response_b": "b"}] * 64}).encode()
    connection[1].write(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    await connection[1].drain()
    await asyncio.sleep(0.05)  # the request is in work, and its client leaves


async def nested_json(connection: Connection, until: float) -> None:
    body = b"[" * 1_000_000
    connection[1].write(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    await connection[1].drain()
    await connection[0].read()


ATTACKS: dict[str, tuple[str, int, Callable[[Connection, float], Awaitable[None]]]] = {
    "silent": ("connections that send nothing", 10_000, silent),
    "slow headers": ("headers, one byte every half second", 500, slow_headers),
    "slow bodies": ("bodies of 4 MB, 2 kB a second", 500, slow_bodies),
    "huge bodies": ("bodies without an end", 16, huge_bodies),
    "malformed": ("bytes that are no HTTP", 50, malformed),
    "half-closed": ("connections closed for sending in the middle of a body", 50, half_closed),
    "abandoned": ("requests of 64 battles whose client leaves at once", 8, abandoned),
    "nested": ("1 MB of opening brackets as JSON", 8, nested_json),
}


async def attack(name: str, url: str, seconds: float, connections: int) -> int:
    """Hold ``connections`` hostile connections, each replaced when it ends; return how many were opened."""
    host, port = url.removeprefix("http://").split(":")
    until, opened = time.monotonic() + seconds, 0
    behave = ATTACKS[name][2]

    async def one() -> None:
        nonlocal opened
        while time.monotonic() < until:
            with suppress(OSError):
                connection = await asyncio.open_connection(host, int(port))
                opened += 1
                with suppress(OSError, TimeoutError):
                    await asyncio.wait_for(behave(connection, until), until - time.monotonic())
                connection[1].transport.abort()
            await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(connections)))
    return opened


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(asyncio.run(attack(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
