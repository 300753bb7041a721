"""Dockerfile of the service: its rules; and its steps without Docker: install what it copies, serve, check, stop."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ensemble.command import SUBCOMMANDS
from tests.fixtures.demo_run import ROOT
from tests.fixtures.served_students import untrained_student

TEXT = (ROOT / "Dockerfile").read_text("utf-8")
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line and not line.startswith("#")]
PORT = "8000"


def arguments(instruction: str) -> list[str]:
    return [value for name, value in STEPS if name == instruction]


def command(instruction: str) -> list[str]:
    """Return the words of a command in exec form: without a shell, signals reach the service."""
    return [str(word) for word in json.loads(re.sub(r"^.*?(?=\[)", "", arguments(instruction)[-1]))]


def copied() -> list[str]:
    return [source for line in arguments("COPY") for source in line.split()[:-1]]


def test_the_service_runs_as_an_ordinary_user_and_gets_signals() -> None:
    names = [name for name, _ in STEPS]
    assert arguments("USER") == ["judge"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert command("ENTRYPOINT")[:2] == ["arena-distill", "serve"]
    assert PORT in command("ENTRYPOINT")
    assert arguments("EXPOSE") == [PORT]
    assert command("HEALTHCHECK")[0] == "python"
    assert "serve" in [subcommand.name for subcommand in SUBCOMMANDS]


def test_the_build_is_pinned_and_takes_cuda_by_an_argument() -> None:
    pip = next(line for line in arguments("RUN") if line.startswith("pip install"))
    assert "-c constraints.txt" in pip
    assert "--extra-index-url ${TORCH_INDEX}" in pip
    assert pip.endswith(".[serve]")
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in arguments("ARG")
    assert not re.search(r"(?i)(key|token|password|secret)\s*=", "\n".join(value for _, value in STEPS))


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == set(copied())
    assert all((ROOT / name).exists() for name in allowed)
    assert not any(fnmatch(".git", rule) or fnmatch("runs", rule) for rule in allowed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_serve_a_student_that_is_healthy_and_stops_in_order(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    app, site = tmp_path / "app", tmp_path / "site"
    app.mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, app / name)
    # The packages that it needs are those of this environment: the step of the Dockerfile would load gigabytes.
    words = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), ".[serve]"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *words], cwd=app, check=True)  # noqa: S603
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    student = untrained_student(tmp_path / "student")
    entry = [str(site / "bin" / "arena-distill"), *command("ENTRYPOINT")[1:], *command("CMD")]
    entry = [word.replace(PORT, port).replace("/student", str(student)) for word in entry]
    health = [sys.executable, *(word.replace(PORT, port) for word in command("HEALTHCHECK")[1:])]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    with subprocess.Popen(entry, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as service:  # noqa: S603
        for _ in range(600):
            if subprocess.run(health, stderr=subprocess.DEVNULL, check=False).returncode == 0:  # noqa: S603
                break
            assert service.poll() is None, shlex.join(entry)
            time.sleep(0.5)
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=60)
    assert service.returncode == 75
    assert "without a key" in errors  # it is open to other machines
