"""A reduced demo as a chain of commands: run it, kill it at an instant, and compare what it leaves byte for byte."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/demo.yaml"
MEMBERS = ("gemma2", "llama3_1")
STAGES = ("stack", "distill", "predict", "table")
OOF = [
    "data.synth.battles=240",
    "data.synth.test_battles=30",
    "folds.k=2",
    "jobs.workers=2",
    *(f"members.{name}.train.checkpoint_steps=2" for name in MEMBERS),
]
ALL = [
    "data.synth.battles=120",
    "data.synth.test_battles=12",
    "folds.k=2",
    "jobs.workers=2",
    *(f"members.{name}.train.{setting}" for name in MEMBERS for setting in ("checkpoint_steps=2", "epochs=0.5")),
    "distill.student.train.checkpoint_steps=2",
    "distill.student.train.epochs=0.5",
    "stack.trials=2",
    "stack.rounds=20",
]
# What tells when and how long rather than what; everything else must be equal byte for byte.
RECORDS = ("seconds", "history", "files", "checksum")
MANIFESTS = ("battles.json", "job.json", "manifest.json", "member.json", "submission.json")


@dataclass(frozen=True)
class Outcome:
    """A chain that ended: its last status, what it said, seconds by the clock and by the processor, where it ended."""

    status: int
    said: str
    seconds: float
    busy: float
    verb: str

    @property
    def last(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


def commands(run: Path, stage: str, more: Sequence[str] = ()) -> list[list[str]]:
    """Return the calls of the make targets: stage one, or all stages and the report."""
    python = [sys.executable, "-m"]
    settings = [CONFIG, f"run={run}", *(OOF if stage == "oof" else ALL), *more]
    first = [[*python, "oof", "oof", *settings]]
    if stage == "oof":
        return first
    return [
        *first,
        *([*python, "ensemble", verb, *settings] for verb in STAGES),
        [*python, "ensemble", "report", str(run)],
    ]


def adopt_orphans() -> None:
    """Become the parent of workers whose parent was killed, so that their processor time is counted (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def busy_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Server:
    """A ``verb_server.py``, started when first asked; ``call`` runs one command, and kills it once ``due`` says so."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def _ask(self, order: dict) -> dict:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self.process is not None
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def call(self, argv: Sequence[str], said: Path, due: Callable[[], bool], everybody: bool) -> tuple[int, float]:
        """Return the status and the processor seconds of one command."""
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.robustness.verb_server"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **pipes)
            self._answer()
        child = self._ask({"argv": list(argv), "said": str(said)})["pid"]
        answered = threading.Event()
        watch = threading.Thread(target=_kill_when, args=(due, child, everybody, answered))
        watch.start()
        found = self._answer()
        answered.set()
        watch.join()
        return found["status"], found["busy"]


_preloaded: list[threading.local] = []  # the servers by thread, once ``preload`` was called


def preload() -> None:
    """Start commands from ``verb_server.py`` from now on."""
    _preloaded.append(threading.local())


def _server() -> Server:
    mine = _preloaded[0]
    if not hasattr(mine, "server"):
        mine.server = Server()
    server: Server = mine.server
    return server


def _kill_when(due: Callable[[], bool], child: int, everybody: bool, answered: threading.Event) -> None:
    while not answered.wait(0.005):
        if due():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if everybody else os.kill)(child, signal.SIGKILL)
            return


def run_chain(
    calls: Sequence[Sequence[str]],
    due: Callable[[], bool] = lambda: False,
    everybody: bool = True,
    environment: Mapping[str, str] | None = None,
    limits: Callable[[], None] | None = None,
) -> Outcome:
    """Run one command after the other until one fails; kill -9 what runs once ``due`` says so.

    Each starts from nothing, or after ``preload`` from this thread's server where nothing special is asked of it.

    Args:
        calls: the commands.
        due: asked all the time.
        everybody: kill the whole process group, or the verb's own process alone.
        environment: laid over ours.
        limits: called in the child before it becomes the command.
    """
    started, busy, said, status, verb = time.monotonic(), 0.0, "", 0, ""
    for call in calls:
        verb = call[3]
        with tempfile.NamedTemporaryFile("r+", suffix=".txt") as file:  # not in the run's folder
            if _preloaded and not environment and limits is None:
                status, used = _server().call(call, Path(file.name), due, everybody)
            else:
                status, used = _start(call, file.name, due, everybody, environment, limits)
            said += file.read()
        busy += used
        if status:
            break
    return Outcome(status, said, time.monotonic() - started, busy, verb)


def _start(
    call: Sequence[str],
    said: str,
    due: Callable[[], bool],
    everybody: bool,
    environment: Mapping[str, str] | None,
    limits: Callable[[], None] | None,
) -> tuple[int, float]:
    before = busy_seconds()
    with open(said, "a") as errors:
        process = subprocess.Popen(
            call,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(environment or {})},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=limits,
        )
    while process.poll() is None:
        if due():
            os.killpg(process.pid, signal.SIGKILL) if everybody else process.kill()
            process.wait()
        time.sleep(0.005)
    reap(process.pid)
    return process.returncode, busy_seconds() - before


def reap(group: int) -> None:
    """Wait for what is left of a process group (see ``adopt_orphans``)."""
    try:
        while True:
            os.waitpid(-group, 0)
    except ChildProcessError:
        pass


def clear(run: Path) -> None:
    """Remove a run's folder, with the small file system that a benchmark which was killed left there."""
    if run.is_mount():
        subprocess.run(["umount", "-l", str(run)], check=True)  # lazily: a killed verb may hold it
    shutil.rmtree(run, ignore_errors=True)


def fingerprint(run: Path) -> dict[str, str]:
    """Return the checksum of every result of a finished run, by path; of manifests that of all but the times.

    Of studies' journals, logs and the report, which name times, the presence counts; the token cache does not.
    """
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".lock")):
        name = str(path.relative_to(run))
        if name.startswith("report") or path.suffix in (".log", ".jsonl"):
            found[name] = ""
        elif path.name in MANIFESTS:
            facts = {k: v for k, v in json.loads(path.read_text()).items() if k not in RECORDS}
            found[name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        elif name.startswith("tokens"):
            continue
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def half_written(run: Path) -> list[str]:
    """Return what a manifest vouches for and is not what it says, and manifests that cannot be read."""
    broken = []
    for manifest in sorted(path for path in run.rglob("*.json") if path.name in MANIFESTS):
        try:
            files = json.loads(manifest.read_text())["files"]
        except (ValueError, KeyError):
            broken.append(str(manifest.relative_to(run)))
            continue
        for name, expected in files.items():
            path = manifest.parent / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                broken.append(str(path.relative_to(run)))
    return broken


def differences(run: Path, expected: Mapping[str, str]) -> list[str]:
    """Return the results of a finished run that are not the reference's."""
    found = fingerprint(run)
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
