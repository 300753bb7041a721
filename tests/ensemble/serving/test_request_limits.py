"""Limits of a request, through a running service: key, body, time, clients that leave; no text in the log."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from ensemble import Judge
from ensemble.serving.batching import Batcher
from ensemble.serving.request_limits import SMALL_BODY, Limits
from tests.fixtures.served_students import BATTLE, connect, everything, post, serving, untrained_student

KEY = "s3cret-key"
SECRET = "a sentence that no log may hold"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge.from_pretrained(untrained_student(tmp_path_factory.mktemp("student") / "tiny"))


@contextmanager
def held_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold every pass of the model; yield the events "a pass has begun" and "go on"."""
    begun, go_on = threading.Event(), threading.Event()
    score = Batcher._score

    def held(self: Batcher, sequences: list[Any]) -> Any:
        begun.set()
        assert go_on.wait(30)
        return score(self, sequences)

    monkeypatch.setattr(Batcher, "_score", held)
    try:
        yield begun, go_on
    finally:
        go_on.set()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 20 seconds")


def in_work(url: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("arena_distill_sequences_in_work "))


def test_a_key_is_asked_for_where_one_is_set(judge: Judge) -> None:
    with serving(judge, key=KEY) as url:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": KEY}):
            answer = post(f"{url}/v1/compare", BATTLE, headers=headers)
            assert answer.status_code == 401
            assert "Authorization: Bearer KEY" in answer.json()["error"]["message"]
        assert post(f"{url}/v1/compare", BATTLE, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert httpx2.get(f"{url}/metrics").status_code == 401
        assert httpx2.get(f"{url}/health").status_code == httpx2.get(f"{url}/").status_code == 200


def test_a_large_body_is_refused_whatever_its_length_header_says(judge: Judge) -> None:
    with serving(judge, limits=Limits(body_bytes=100_000)) as url:
        large = BATTLE | {"prompt": "x" * 150_000}
        assert post(f"{url}/v1/compare", large).status_code == 413
        chunks = (b"x" * 10_000 for _ in range(40))
        answer = httpx2.post(f"{url}/v1/compare", content=chunks, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "larger than 100,000 bytes" in answer.json()["error"]["message"]
        with connect(url) as connection:  # announced, never sent
            connection.sendall(b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 413")
        assert post(f"{url}/v1/compare", BATTLE | {"prompt": "x" * 90_000}).status_code == 200


def test_bodies_of_all_requests_share_a_bounded_memory_and_small_ones_pass(judge: Judge) -> None:
    limits = Limits(all_bodies_bytes=3 * SMALL_BODY, body_bytes=4 * SMALL_BODY)
    head = b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    large = BATTLE | {"prompt": "x" * (2 * SMALL_BODY)}
    with serving(judge, limits=limits) as url, connect(url) as slow:
        slow.sendall(head % (4 * SMALL_BODY) + b"x" * (2 * SMALL_BODY))
        wait_for(lambda: post(f"{url}/v1/compare", large).status_code == 503)
        assert post(f"{url}/v1/compare", BATTLE).status_code == 200
        slow.close()
        wait_for(lambda: post(f"{url}/v1/compare", large).status_code == 200)


def test_a_slow_body_is_ended_with_a_sentence(judge: Judge) -> None:
    with serving(judge, limits=Limits(read_seconds=0.3)) as url, connect(url) as connection:
        connection.sendall(b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.3 seconds" in answer


def test_a_request_that_takes_too_long_is_answered_and_leaves_the_queue(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_model(monkeypatch) as (_, go_on), serving(judge, limits=Limits(seconds=0.3)) as url:
        answer = post(f"{url}/v1/compare", BATTLE)
        assert answer.status_code == 503
        assert "not answered within 0.3 seconds" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1"
        assert in_work(url) == 0
        go_on.set()


def test_a_full_queue_answers_429_and_a_client_that_leaves_gives_its_places_back(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_model(monkeypatch) as (begun, go_on), serving(judge, limits=Limits(waiting=2)) as url:
        body = json.dumps({"battles": [BATTLE] * 2}).encode()
        head = b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with connect(url) as leaving:
            leaving.sendall(head % len(body) + body)
            assert begun.wait(20)
            answer = post(f"{url}/v1/compare", BATTLE)
            assert answer.status_code == 429
            assert "the queue is full" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"] == "1"
        wait_for(lambda: in_work(url) == 0)
        go_on.set()
        assert post(f"{url}/v1/compare", BATTLE).status_code == 200


def test_an_internal_error_is_one_sentence_and_its_log_holds_no_text(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Batcher, sequences: list[Any]) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Batcher, "_score", broken)
    with caplog.at_level(logging.DEBUG), serving(judge) as url:
        answer = post(f"{url}/v1/compare?q={SECRET}", BATTLE | {"prompt": SECRET})
        httpx2.get(f"{url}/{SECRET}")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error; the service's log says where"
    ours = [record for record in caplog.records if not record.name.startswith(("httpx2", "httpcore2"))]
    assert any("RuntimeError at" in record.getMessage() for record in ours)
    assert not any(SECRET in record.getMessage() or record.exc_info for record in ours)
