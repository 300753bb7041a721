"""Progress of long work: which work a line tells, when there is a line, and what it says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from oof.common import progress as module
from oof.common.progress import Progress, beat, duration, heartbeat, progress


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=module.__name__)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    return caplog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Return a clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_tells_the_innermost_work(heard: pytest.LogCaptureFixture) -> None:
    with progress("outer"), progress("inner", 10, "texts") as inner:
        inner.update(3)
        beat()
    assert heard.messages[0].startswith("inner: 3 of 10 texts, ")
    with progress("outer"):
        beat()
    assert heard.messages[1].startswith("outer: at work, ")


def test_work_that_failed_is_not_told_any_more(heard: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="broken"), progress("broken work"):
        raise ValueError("broken")
    beat()
    assert heard.messages == []


def test_time_left_does_not_count_what_an_earlier_process_made(clock: list[float]) -> None:
    work = Progress("scoring", 100, "rows")
    work.resume_at(60)
    clock[0] += 40
    work.update(20)
    assert work.describe() == "80 of 100 rows, 40 s so far, 40 s left"


def test_a_process_that_waits_for_others_writes_no_line(heard: pytest.LogCaptureFixture) -> None:
    with progress("oof"), progress("jobs", silent=True):
        beat()
    assert heard.messages == []


def test_only_the_first_process_of_a_job_shows_progress(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_muted", False)
    module.mute()
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with progress("fold 0", 5, "steps") as work:
        beat()
    assert (work.bar, heard.messages) == (None, [])


def test_a_call_that_blocks_the_process_is_heard(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines come from a thread, so they need no step of the work itself."""
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)
    spoken = threading.Event()
    monkeypatch.setattr(module.logger, "info", lambda *_: spoken.set())
    with heartbeat("grouping"):
        assert spoken.wait(timeout=60)


def test_a_line_of_another_kind_puts_the_heartbeat_off(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 1e9)
    with heartbeat("oof"):
        module.note_line()
    assert heard.messages == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (106, "1 min 46 s"), (71_520, "19 h 52 min")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
