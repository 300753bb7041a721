"""Stopping in good order: SIGTERM (pre-emption) and ``jobs.time_limit`` (a notebook's or queue's limit).

Both raise :class:`Stopped` at once, except inside :func:`deferred`, where the code looks at :func:`due` between two
steps, saves what it has and then raises. The deadline is kept as the system-wide monotonic clock in an environment
variable: child processes see the same one, and a clock that is set anew changes nothing.
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
EXIT_STATUS = 75  # EX_TEMPFAIL: run the same command again to go on
MARGIN = 10.0  # seconds kept for writing a checkpoint, beside the time of one step

_requested = ""
_depth = 0


class Stopped(BaseException):
    """The work was stopped from outside; what is on disk can be continued. Not an Exception: nobody handles it."""


def install() -> None:
    """Let SIGTERM raise :class:`Stopped` in this process (main thread only)."""
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = signal.Signals(number).name
    if _depth == 0:
        raise Stopped(_requested)


def end_after(pid: int) -> None:
    """Let this process end soon after the process ``pid`` did, however that ended: its lock of the run went with it.

    The number must come from that process itself: asking for one's parent says too little, as a process that starts
    slowly may have lost it by then.
    """

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            watched = psutil.Process(pid)
            while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def set_time_limit(seconds: float) -> None:
    """Start the clock of ``jobs.time_limit`` for this process and its children; 0 = none."""
    if seconds > 0:
        os.environ[DEADLINE] = repr(time.monotonic() + seconds)
    else:
        os.environ.pop(DEADLINE, None)


def due(step_seconds: float = 0.0) -> str:
    """Return why the work must stop now ("" if it need not): a signal, or too little time for one more step."""
    if _requested:
        return _requested
    deadline = os.environ.get(DEADLINE)
    late = deadline is not None and time.monotonic() + step_seconds + min(MARGIN, 2 * step_seconds) >= float(deadline)
    return "the time limit" if late else ""


def check(step_seconds: float = 0.0) -> None:
    """Raise :class:`Stopped` if the work must stop now."""
    reason = due(step_seconds)
    if reason:
        raise Stopped(reason)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal only sets what :func:`due` returns."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
