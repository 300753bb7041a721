"""Commands that may be killed: each starts from nothing or, after ``preload``, from a process with loaded libraries."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import ROOT


def adopt_orphans() -> None:
    """Become the parent of workers whose parent was killed, so that their processor time is counted (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def busy_seconds() -> float:
    """Return the processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reap(group: int) -> None:
    """Wait for the remaining processes of a process group (see ``adopt_orphans``)."""
    try:
        while True:
            os.waitpid(-group, 0)
    except ChildProcessError:
        pass


class Server:
    """A ``subcommand_server.py``, started at its first call."""

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

    def call(self, argv: Sequence[str], stderr: Path, due: Callable[[], bool], whole_group: bool) -> tuple[int, float]:
        """Run one command, killing it once ``due`` returns true; return its status and processor seconds."""
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.robustness.subcommand_server"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **pipes)
            self._answer()
        child = self._ask({"argv": list(argv), "stderr": str(stderr)})["pid"]
        ended = threading.Event()
        watch = threading.Thread(target=_kill_when, args=(due, child, whole_group, ended))
        watch.start()
        answer = self._answer()
        ended.set()
        watch.join()
        return answer["status"], answer["busy"]


_preloaded: list[threading.local] = []  # holds the servers by thread after ``preload``


def preload() -> None:
    """Start commands from ``subcommand_server.py`` from now on."""
    _preloaded.append(threading.local())


def server() -> Server:
    """Return this thread's server."""
    local = _preloaded[0]
    if not hasattr(local, "server"):
        local.server = Server()
    own: Server = local.server
    return own


def _kill_when(due: Callable[[], bool], child: int, whole_group: bool, ended: threading.Event) -> None:
    while not ended.wait(0.005):
        if due():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(child, signal.SIGKILL)
            return


def run_command(
    command: Sequence[str],
    stderr: Path,
    due: Callable[[], bool],
    whole_group: bool,
    environment: Mapping[str, str] | None,
    limits: Callable[[], None] | None,
) -> tuple[int, float]:
    """Run one command, killing it (-9) once ``due`` returns true; return its status and processor seconds.

    A command with an environment or limits of its own never comes from the server.

    Args:
        command: ``python -m package subcommand …``.
        stderr: file to which standard error is appended.
        due: called continually.
        whole_group: kill the whole process group, or the command's own process alone.
        environment: variables that replace or extend ours.
        limits: called in the child before it becomes the command.
    """
    if _preloaded and not environment and limits is None:
        return server().call(command, stderr, due, whole_group)
    before = busy_seconds()
    with stderr.open("a") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(environment or {})},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=limits,
        )
    while process.poll() is None:
        if due():
            os.killpg(process.pid, signal.SIGKILL) if whole_group else process.kill()
            process.wait()
        time.sleep(0.005)
    reap(process.pid)
    return process.returncode, busy_seconds() - before
