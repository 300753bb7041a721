"""A reduced demo as a chain of commands, and byte-for-byte comparison of the run folders that it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.robustness.fault_processes import run_command

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
# Fields of manifests that hold times, or checksums of files that hold times; all others must be equal.
RECORDS = ("seconds", "history", "files", "checksum")
MANIFESTS = ("battles.json", "job.json", "manifest.json", "member.json", "submission.json")


@dataclass(frozen=True)
class Outcome:
    """The end of a chain: status and subcommand of its last command, and totals of all.

    Attributes:
        status: exit status of the last command; negative if it was killed.
        stderr: standard error of all commands.
        seconds: by the clock.
        busy: processor seconds.
        subcommand: of the last command.
    """

    status: int
    stderr: str
    seconds: float
    busy: float
    subcommand: str

    @property
    def last_line(self) -> str:
        return (self.stderr.strip().splitlines() or [""])[-1]


def commands(run: Path, stage: str, overrides: Sequence[str] = ()) -> list[list[str]]:
    """Return the commands of the make targets: stage one, or all stages and the report."""
    python = [sys.executable, "-m"]
    settings = [CONFIG, f"run={run}", *(OOF if stage == "oof" else ALL), *overrides]
    first = [[*python, "oof", "oof", *settings]]
    if stage == "oof":
        return first
    return [
        *first,
        *([*python, "ensemble", subcommand, *settings] for subcommand in STAGES),
        [*python, "ensemble", "report", str(run)],
    ]


def run_chain(
    calls: Sequence[Sequence[str]],
    due: Callable[[], bool] = lambda: False,
    whole_group: bool = True,
    environment: Mapping[str, str] | None = None,
    limits: Callable[[], None] | None = None,
) -> Outcome:
    """Run one command after the other until one fails; the arguments are those of ``run_command``."""
    started, busy, stderr, status, subcommand = time.monotonic(), 0.0, "", 0, ""
    for call in calls:
        subcommand = call[3]
        with tempfile.NamedTemporaryFile("r+", suffix=".txt") as file:  # not in the run's folder
            status, used = run_command(call, Path(file.name), due, whole_group, environment, limits)
            stderr += file.read()
        busy += used
        if status:
            break
    return Outcome(status, stderr, time.monotonic() - started, busy, subcommand)


def clear(run: Path) -> None:
    """Remove a run's folder, with the small file system that a killed benchmark left mounted on it."""
    if run.is_mount():
        subprocess.run(["umount", "-l", str(run)], check=True)  # lazily, because a killed command may hold it
    shutil.rmtree(run, ignore_errors=True)


def fingerprint(run: Path) -> dict[str, str]:
    """Return the checksum of every result of a finished run, by path.

    Manifests count without their times. Studies' journals, logs and the report name times, so only their presence
    counts. The token cache does not count.
    """
    checksums = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".lock")):
        name = str(path.relative_to(run))
        if name.startswith("report") or path.suffix in (".log", ".jsonl"):
            checksums[name] = ""
        elif path.name in MANIFESTS:
            fields = {k: v for k, v in json.loads(path.read_text()).items() if k not in RECORDS}
            checksums[name] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        elif name.startswith("tokens"):
            continue
        else:
            checksums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return checksums


def half_written(run: Path) -> list[str]:
    """Return the files that differ from their manifest's checksum, and manifests that cannot be read."""
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
    """Return the paths whose checksum differs from the reference's, or that only one of the two has."""
    checksums = fingerprint(run)
    return sorted(name for name in {*checksums, *expected} if checksums.get(name) != expected.get(name))
