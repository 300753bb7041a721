"""Connections of slow, silent, malformed and half-closed clients, and many of them: others are served."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ensemble import Judge
from ensemble.serving.request_limits import Limits
from tests.fixtures.demo_run import ROOT
from tests.fixtures.served_students import BATTLE, connect, everything, post, serving, untrained_student


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    judge = Judge.from_pretrained(untrained_student(tmp_path_factory.mktemp("student") / "tiny"))
    with serving(judge, limits=Limits(read_seconds=1.0, connections=20)) as address:
        yield address


def test_silent_and_slow_clients_are_disconnected(url: str) -> None:
    with connect(url) as silent, connect(url) as slow:
        slow.sendall(b"POST /v1/compare HTTP/1.1\r\nHo")
        assert everything(silent) == everything(slow) == b""


def test_a_second_request_that_never_ends_is_disconnected(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HT")
        assert everything(connection).count(b"HTTP/1.1 200") == 1


def test_pipelined_requests_are_answered_in_turn(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        assert everything(connection).count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS",
        b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000,
        b"\x00" * 100_000,
    ],
)
def test_what_is_not_http_is_refused(url: str, data: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(data)
        answer = everything(connection)
    assert answer[:12] in (b"HTTP/1.1 400", b"")  # nothing, where the system reset the connection
    assert post(f"{url}/v1/compare", BATTLE).status_code == 200


def test_half_closed_connections_end_and_others_are_served(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""
    assert post(f"{url}/v1/compare", BATTLE).status_code == 200


def test_connections_beyond_the_limit_make_room_for_those_that_send_requests(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            idle = [stack.enter_context(connect(url)) for _ in range(20)]
            assert post(f"{url}/v1/compare", BATTLE).status_code == 200
        assert all(everything(connection) == b"" for connection in idle)


@pytest.mark.parametrize(
    ("limits", "fit", "after"), [((300, 900), 500, 900), ((300, 5000), 1000, 1400), ((4000, 5000), 1000, 4000)]
)
def test_connections_fit_into_the_limit_of_open_files(limits: tuple[int, int], fit: int, after: int) -> None:
    """On many systems it is 1,024 files, which a process may raise by itself."""
    code = (
        "import resource; from ensemble.serving.connections import connections_that_fit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits})\n"
        "print(connections_that_fit(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
    assert done.stdout.split() == [str(fit), str(after)]
