"""Environments of the libraries that ours is compared with: AutoGluon with torch and probmetrics; pairjudge and TRL.

They pin other versions than ours, so they have environments of their own below ``runs/``, made when they are first
needed. Where torch should be the build for CPUs, set ``PIP_INDEX_URL`` or ``PIP_CONSTRAINT`` as for ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT


@dataclass(frozen=True)
class Environment:
    """Folder of an environment, and the packages in it."""

    folder: Path
    packages: tuple[str, ...]


def our_versions(*names: str) -> tuple[str, ...]:
    """Return packages at the versions that ``constraints.txt`` gives ours."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return tuple(pin for pin in pins if pin.split("==")[0] in names)


TABLES = Environment(
    ROOT / "runs" / "peers-env",
    # "fastai" brings torch, and with it both of AutoGluon's kinds of networks; probmetrics imports numba without
    # naming it.
    ("autogluon.tabular[lightgbm,catboost,xgboost,fastai]==1.6.3", "probmetrics==1.3.0", "numba"),
)
JUDGES = Environment(
    ROOT / "runs" / "judges-env",
    # Not all of ours: pairjudge takes huggingface_hub below 2 only.
    ("pairjudge[train]==0.3.0", "trl==1.16.0", *our_versions("torch", "transformers", "peft", "accelerate")),
)


def peer_python(given: str = "", environment: Environment = TABLES) -> tuple[str, str]:
    """Return the interpreter of an environment and, if it could not be made, the reason.

    Args:
        given: an interpreter that has the packages already.
        environment: to make, unless it is there.
    """
    if given:
        return given, ""
    python = environment.folder / "bin" / "python"
    if not (environment.folder / "ready").is_file():
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(environment.folder)],
            [str(python), "-m", "pip", "install", "-q", *environment.packages],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                last_line = (done.stderr or done.stdout).strip().splitlines()[-1:]
                return "", f"{' and '.join(environment.packages)} could not be installed: {' '.join(last_line)}"
        (environment.folder / "ready").touch()
    return str(python), ""


def with_our_path() -> dict[str, str]:
    """Return this process's environment, in which another interpreter finds ``benchmarks`` and ``oof``, too."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def last_words(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    return " ".join([line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:])
