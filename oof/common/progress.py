"""Progress of long work: a bar on a terminal, a log line every half minute where no bar shows.

Work that can take longer than half a minute runs inside :func:`progress`. The innermost work of a process is the one
that is told: by a bar where it is counted and standard error is a terminal, else by the lines of the process's
heartbeat, a thread that :func:`heartbeat` starts. So no log is silent for long, whatever library call is at work.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0  # between two lines of a process

_running: list[Progress] = []  # of this process, the innermost last
_muted = False
_last_line = 0.0  # time of this process's last log line, see note_line()


class Progress:
    """One piece of long work.

    Args:
        label: its name.
        total: its size in units; None = not known.
        unit: of the size, in the plural; "" = steps, or work that is not counted.
        bar: whether a terminal shows a bar of work that is counted.
        silent: no line is written while this is the innermost work, because other processes write theirs.
    """

    def __init__(
        self, label: str, total: int | None = None, unit: str = "", bar: bool = True, silent: bool = False
    ) -> None:
        self.label, self.total, self.unit, self.silent = label, total, unit, silent
        self.done = self.first = 0
        self.began = time.monotonic()
        self.describe: Callable[[], str] = self._amount
        counted = total is not None or unit != ""
        shown = bar and counted and not silent and not _muted and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=label, unit=f" {unit}" if unit else "it", leave=False) if shown else None

    def update(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        self.done += n
        if self.bar is not None:
            self.bar.update(n)

    def resume_at(self, done: int) -> None:
        """Count ``done`` units as made by an earlier process, which the time left does not count."""
        self.done = self.first = done
        if self.bar is not None:
            self.bar.initial = self.bar.n = done
            self.bar.refresh()

    def _amount(self) -> str:
        """Return units done, time so far and time left; of work without a size only the time."""
        seconds = time.monotonic() - self.began
        unit, so_far = f" {self.unit}" if self.unit else "", f"{duration(seconds)} so far"
        if self.total is None:
            return f"{self.done:,}{unit}, {so_far}" if self.done else f"at work, {so_far}"
        made = self.done - self.first
        left = f", {duration((self.total - self.done) * seconds / made)} left" if made else ""
        return f"{self.done:,} of {self.total:,}{unit}, {so_far}{left}"


@contextmanager
def progress(
    label: str, total: int | None = None, unit: str = "", bar: bool = True, silent: bool = False
) -> Iterator[Progress]:
    """Tell the progress of the work inside; arguments are those of :class:`Progress`."""
    work = Progress(label, total, unit, bar, silent)
    _running.append(work)
    try:
        yield work
    finally:
        _running.remove(work)
        if work.bar is not None:
            work.bar.close()


@contextmanager
def heartbeat(label: str) -> Iterator[None]:
    """Write a line every half minute while the process is inside, of its innermost work or else of ``label``."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(max(LINE_SECONDS - (time.monotonic() - _last_line), 0.05)):
            if time.monotonic() - _last_line >= LINE_SECONDS:
                beat()

    note_line()
    thread = threading.Thread(target=watch, daemon=True, name="heartbeat")
    with progress(label, bar=False):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def beat() -> None:
    """Write the line of the innermost work, unless a bar shows it or other processes write theirs."""
    note_line()
    work = _running[-1] if _running else None
    if work is not None and work.bar is None and not work.silent and not _muted:
        logger.info("%s: %s", work.label, work.describe())


def note_line() -> None:
    """Remember that this process wrote a line now: the next one of its heartbeat is due half a minute later."""
    global _last_line
    _last_line = time.monotonic()


def mute() -> None:
    """Show no progress of this process: it is not the first of its job, whose processes work at the same pace."""
    global _muted
    _muted = True


def duration(seconds: float) -> str:
    """Return a time in words, such as "46 s", "1 min 46 s" or "19 h 52 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
