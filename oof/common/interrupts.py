"""Orderly stops: SIGTERM (pre-emption) and ``jobs.time_limit`` (the limit of a notebook or a queue).

Guarantee: after :class:`Stopped`, the same command continues from the files on disk. Both causes raise it at once,
except inside :func:`deferred`: there the code asks :func:`stop_reason` between two steps, saves its state and then
raises. The deadline is a time of the system-wide monotonic clock in an environment variable, so that child processes
share it and setting the wall clock has no effect on it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

DEADLINE = "ARENA_DISTILL_DEADLINE"
EXIT_STATUS = 75  # EX_TEMPFAIL: run the same command again to continue
BY_HAND = 130  # of Ctrl-C
MARGIN = 10.0  # seconds reserved for writing a checkpoint, in addition to the time of one step

_requested = ""
_depth = 0


class Stopped(BaseException):
    """The work was stopped from outside and can be continued. Not an Exception, so that no handler swallows it."""


def install() -> None:
    """Let SIGTERM raise :class:`Stopped` in this process (main thread only)."""
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = signal.Signals(number).name
    if _depth == 0:
        raise Stopped(_requested)


def end_after(pid: int) -> None:
    """End this process soon after the process ``pid`` has ended in any way, because its lock of the run is then gone.

    The caller must have got ``pid`` from that process itself: when a slow process asks for its parent, the parent may
    have ended already.
    """

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            watched = psutil.Process(pid)
            while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def set_time_limit(seconds: float) -> None:
    """Start ``jobs.time_limit`` for this process and its children; 0 seconds = no limit."""
    if seconds > 0:
        os.environ[DEADLINE] = repr(time.monotonic() + seconds)
    else:
        os.environ.pop(DEADLINE, None)


def stop_reason(step_seconds: float = 0.0) -> str:
    """Return why the work must stop now: a signal, or too little time for another step; "" if it can go on."""
    if _requested:
        return _requested
    deadline = os.environ.get(DEADLINE)
    late = deadline is not None and time.monotonic() + step_seconds + min(MARGIN, 2 * step_seconds) >= float(deadline)
    return "the time limit" if late else ""


def check(step_seconds: float = 0.0) -> None:
    """Raise :class:`Stopped` if the work must stop now."""
    reason = stop_reason(step_seconds)
    if reason:
        raise Stopped(reason)


@contextmanager
def deferred() -> Iterator[None]:
    """Defer signals: inside, they only change what :func:`stop_reason` returns."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
