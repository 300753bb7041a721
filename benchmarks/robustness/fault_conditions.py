"""Faults for a whole run: a full or read-only disk, two starts at once, a jumping clock, kill -9."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT
from benchmarks.robustness import fault_runs as runs

# A sitecustomize.py on PYTHONPATH: every few seconds the time of day jumps by up to a day, back or forward.
JUMPING_CLOCK = """
import random, time
real, real_ns, steady = time.time, time.time_ns, time.monotonic
def offset():
    return random.Random({seed} * 1000003 + int(steady() / 3)).uniform(-86400, 86400)
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + int(offset() * 1e9)
"""


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a small file system."""
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("mount") or _call("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)):
        return False
    _call("umount", str(folder))
    return True


def _call(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


@contextmanager
def small_disk(run: Path, size: int) -> Iterator[None]:
    """Mount a file system of ``size`` bytes on the run folder."""
    runs.clear(run)
    run.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(run)], check=True)


def comparison(run: Path, outcome: runs.Outcome, reference: dict, lost: float) -> dict:
    """Return the fields that every case reports: whether the results are identical, differences, lost seconds."""
    differing = runs.differences(run, reference["files"]) if outcome.status == 0 else [outcome.last_line]
    return {
        "identical": outcome.status == 0 and not differing,
        "differing": differing[:5],
        "lost_seconds": round(max(0.0, lost), 2),
    }


def clear_sentence(outcome: runs.Outcome) -> bool:
    """Return whether a refused call ended as a user's error: status 2, one sentence, no traceback, no bug report."""
    message = outcome.last_line
    one_sentence = message.startswith("error: ") and "Traceback" not in outcome.stderr and "bug" not in message
    return outcome.status == 2 and one_sentence


def full_disk(run: Path, calls: list[list[str]], reference: dict, share: float, mounted: bool) -> dict:
    """Run on a disk that holds ``share`` of the bytes of a run, then make room and rerun.

    Without the right to mount, the size of any one file is limited instead, to that share of the largest.
    """
    if not mounted:
        runs.clear(run)
        limit = int(share * reference["largest"])
        first = runs.run_chain(calls, limits=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        return _after_full(run, calls, reference, first, share, "limit on the size of a file")
    with small_disk(run, int(share * reference["bytes"]) // 4096 * 4096):
        first = runs.run_chain(calls)
        subprocess.run(["mount", "-o", f"remount,size={100 * reference['bytes']}", str(run)], check=True)
        return _after_full(run, calls, reference, first, share, "small tmpfs")


def _after_full(
    run: Path, calls: list[list[str]], reference: dict, first: runs.Outcome, share: float, how: str
) -> dict:
    broken = runs.half_written(run)
    second = runs.run_chain(calls) if first.status else first
    lost = (first.busy + second.busy if first.status else first.busy) - reference["busy"]
    return {
        "at": round(share, 3),
        "how": how,
        "subcommand": first.subcommand,
        "message": first.last_line if first.status else "",
        "refused_clearly": first.status == 0 or clear_sentence(first),
        "half_written": broken,
        **comparison(run, second, reference, lost),
    }


def read_only(run: Path, calls: list[list[str]], reference: dict, finished: Path, at: float) -> dict:
    """Start on a read-only folder (empty; of a run killed at ``at`` seconds; finished), then make it writable."""
    messages, clear, changed = [], [], []
    with small_disk(run, 100 * reference["bytes"]):
        for state in ("empty", "killed", "finished"):
            if state == "killed":
                runs.run_chain(calls, due=after(at))
            if state == "finished":
                for path in run.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                shutil.copytree(finished, run, dirs_exist_ok=True)
            before = _every_byte(run)
            subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
            refused = [runs.run_chain([call]) for call in (calls if state == "finished" else calls[:1])]
            subprocess.run(["mount", "-o", "remount,rw", str(run)], check=True)
            clear += [clear_sentence(outcome) for outcome in refused]
            messages += [outcome.last_line for outcome in refused]
            changed += [state] if _every_byte(run) != before else []
        last = runs.run_chain(calls)
        return {
            "message": messages[0],
            "refused_clearly": all(clear) and not changed,
            "half_written": runs.half_written(run),
            "how": "tmpfs mounted read-only",
            **comparison(run, last, reference, 0.0),
        }


def _every_byte(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def two_starts(run: Path, calls: list[list[str]], reference: dict, later: float) -> dict:
    """Start a run twice, the second ``later`` seconds after the first; a refusal must name the running process."""
    runs.clear(run)
    ended: list[runs.Outcome] = []

    def start() -> None:
        ended.append(runs.run_chain(calls))

    threads = [threading.Thread(target=start) for _ in range(2)]
    threads[0].start()
    time.sleep(later)
    threads[1].start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in ended if outcome.status]
    clear = all(clear_sentence(outcome) and "in use by" in outcome.last_line for outcome in refused)
    best = min(ended, key=lambda outcome: outcome.status)
    return {
        "at": round(later, 1),
        "refused": len(refused),
        "message": refused[0].last_line if refused else "",
        "refused_clearly": clear and len(refused) < 2,
        "half_written": runs.half_written(run),
        **comparison(run, best, reference, 0.0),
    }


def jumping_clock(run: Path, calls: list[list[str]], reference: dict, seed: int) -> dict:
    """Run while the time of day jumps."""
    runs.clear(run)
    folder = run.parent / "clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(JUMPING_CLOCK.format(seed=seed))
    path = os.pathsep.join([str(folder), str(ROOT)])
    outcome = runs.run_chain(calls, environment={"PYTHONPATH": path})
    broken = runs.half_written(run)
    return {"half_written": broken, **comparison(run, outcome, reference, outcome.busy - reference["busy"])}


def kill(run: Path, calls: list[list[str]], reference: dict, due: Callable[[], bool], whole_group: bool) -> dict:
    """Kill a run with -9 once ``due`` returns true, rerun it to its end, and compare."""
    runs.clear(run)
    first = runs.run_chain(calls, due, whole_group)
    broken = runs.half_written(run) if run.is_dir() else []
    second = runs.run_chain(calls) if first.status else first
    lost = (first.busy + second.busy if first.status else first.busy) - reference["busy"]
    case = {"subcommand": first.subcommand, "killed": first.status < 0, "half_written": broken}
    return {**case, **comparison(run, second, reference, lost)}


def interrupted_export(run: Path, calls: list[list[str]], reference: dict, delay: float) -> dict:
    """Kill a run ``delay`` seconds after the writing of the student's folder began."""
    began: list[float] = []

    def due() -> bool:
        if not began and (run / "distill" / ".student.building").is_dir():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] >= delay

    return {"at": round(delay, 2), **kill(run, calls, reference, due, whole_group=True)}


def shares(seed: int, n: int, low: float, high: float) -> list[float]:
    """Return n reproducible numbers, spread evenly over the range."""
    rng = np.random.default_rng(seed)
    return [float(x) for x in low + (high - low) * (np.arange(n) + rng.uniform(size=n)) / max(n, 1)]


def after(seconds: float) -> Callable[[], bool]:
    """Return a function that returns true from ``seconds`` after its first call on."""
    first: list[float] = []

    def due() -> bool:
        first.append(time.monotonic()) if not first else None
        return time.monotonic() - first[0] >= seconds

    return due
