"""Shared parts of the benchmarks: command line, page header, table cells, measurement, resumable rows.

Every script runs as ``python -m benchmarks.KIND.NAME`` from the repository's root, so that scripts can import each
other and the packages that they measure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.interval_words import in_words
from oof.common.atomic_files import read_json, replacing, write_json
from oof.common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


# Command line


def argument_parser(doc: str | None, whole_text: bool = False) -> argparse.ArgumentParser:
    """Return a parser described by the first line of a module's docstring, or by the whole of it."""
    text = doc or ""
    if whole_text:
        return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    return argparse.ArgumentParser(description=text.splitlines()[0])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and --run of a finished run, by default the demo's."""
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--run", default="runs/demo")


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of ``main``; a UserError is printed as one sentence and exits with status 2."""
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def require(paths: Iterable[Path], options: str) -> None:
    """Raise UserError for the first path that does not exist, naming the options that choose it."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: not found; give {options}")


def chosen(names: Sequence[str], available: Iterable[str]) -> list[str]:
    """Return the given names, or all that are available where none is given; raise UserError for an unknown one."""
    recipes = list(available)
    for name in names:
        if name not in recipes:
            raise UserError(f"no recipe {name!r}; there are: {'; '.join(recipes)}")
    return list(names) or recipes


def command_line() -> str:
    """Return the command that started this process; of paths outside the repository only the last part is shown."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", spec.name] if spec else ["python", Path(sys.argv[0]).name]
    outside = (os.sep, f"..{os.sep}")
    words += [Path(word).name if word.startswith(outside) else word for word in sys.argv[1:]]
    return shlex.join(words)


# Pages


def cell(values: NDArray[np.float64], groups: NDArray[np.integer], sign: str = "") -> str:
    """Return the mean of (n,) values with its 95 % interval over groups; ``sign="+"`` for a difference."""
    return in_words(group_interval(values, groups, seed=0), f"{sign}.4f")


def commit() -> str:
    """Return the commit of the checkout, marked "-dirty" where tracked files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return the processor, the cores that this process may use and the GPU in words."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    all_cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
    cores = f"{all_cores} cores" if usable == all_cores else f"{usable} of {all_cores} cores"
    return f"{platform.machine()}, {cores}, {gpu}, Python {platform.python_version()}"


def origin(command: str = "", made_from: str = "") -> str:
    """Return the command, date, commit and machine of a result as one sentence.

    Args:
        command: by default the one that started this process.
        made_from: the commit; by default the checkout's.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return f"Written by `{command or command_line()}` on {date} from commit {made_from or commit()} ({machine()})."


def write_page(path: Path, title: str, body: Iterable[str], command: str = "", made_from: str = "") -> str:
    """Write a Markdown page that opens with its title and :func:`origin`; return its text."""
    text = "\n".join([f"# {title}", "", origin(command, made_from), "", *body]) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def paragraphs(doc: str | None, first: int, last: int | None = None) -> str:
    """Return some paragraphs of a docstring for a page; paragraph 0 is the title and paragraph 1 the commands."""
    return "\n\n".join((doc or "").strip().split("\n\n")[first:last])


# Measurement


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and its seconds."""
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


def costed(call: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Return what a call returns, and its seconds and CPU seconds, those of processes that it waited for included."""

    def cpu_seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    begun = cpu_seconds()
    result, seconds = timed(call)
    return result, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds() - begun, 1)}


def median_seconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median seconds of each call; calls take turns, after one warm-up of each.

    Taking turns means that a machine whose speed drifts slows all of them.
    """
    for call in calls:
        call()
    seconds = [[timed(call)[1] for call in calls] for _ in range(rounds)]
    return [float(median) for median in np.median(seconds, axis=0)]


def peak_gb() -> float:
    """Return this process's peak resident memory in gigabytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@dataclass(frozen=True)
class Usage:
    """Exit status and cost of a finished process; the memory is that of the largest process among its descendants."""

    status: int
    seconds: float
    cpu_seconds: float
    peak_gb: float


def measured(command: Sequence[str], watch: Callable[[int], None] = lambda pid: None, **options: Any) -> Usage:
    """Run a command and return its cost.

    Args:
        command: program and arguments.
        watch: called about five times a second with the process id.
        options: of :class:`subprocess.Popen`.
    """
    begun, ended = time.monotonic(), 0
    process = subprocess.Popen(command, **options)
    try:
        while not ended:
            time.sleep(0.2)
            watch(process.pid)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    except BaseException:  # a signal to this process: no process is left that still writes
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, cpu_seconds = time.monotonic() - begun, usage.ru_utime + usage.ru_stime
    return Usage(process.returncode, seconds, cpu_seconds, usage.ru_maxrss * 1024 / 1e9)


class ResumableRows:
    """Rows of a table, each saved as soon as it is measured, so that a second call measures only what is missing.

    A row counts only for the key it was saved with: the settings that its figures depend on, as JSON.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._saved: dict[str, Any] = read_json(path) if path and path.is_file() else {}

    def get(self, name: str, key: object) -> dict[str, Any] | None:
        """Return the row of a name, or None if there is none with this key."""
        saved = self._saved.get(name, {})
        return dict(saved["row"]) if saved.get("key") == json.loads(json.dumps(key)) else None

    def put(self, name: str, key: object, row: Mapping[str, Any]) -> None:
        self._saved[name] = {"key": key, "row": dict(row)}
        if self.path:
            write_json(self.path, self._saved)
