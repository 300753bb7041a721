"""Environment of the libraries that ours is compared with: AutoGluon with torch, and probmetrics.

They pin other versions than ours, so they have an environment of their own below ``runs/``, made when it is first
needed. Where torch should be the build for CPUs, set ``PIP_INDEX_URL`` or ``PIP_CONSTRAINT`` as for ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import ROOT

# "fastai" brings torch, and with it both of AutoGluon's kinds of networks; probmetrics imports numba without naming it.
PACKAGES = ("autogluon.tabular[lightgbm,catboost,xgboost,fastai]==1.6.3", "probmetrics==1.3.0", "numba")
FOLDER = ROOT / "runs" / "peers-env"


def peer_python(given: str = "") -> tuple[str, str]:
    """Return the environment's interpreter and, if it could not be made, the reason.

    Args:
        given: an interpreter that has the packages already.
    """
    if given:
        return given, ""
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "ready").is_file():
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
            [str(python), "-m", "pip", "install", "-q", *PACKAGES],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                last_line = (done.stderr or done.stdout).strip().splitlines()[-1:]
                return "", f"{' and '.join(PACKAGES)} could not be installed: {' '.join(last_line)}"
        (FOLDER / "ready").touch()
    return str(python), ""


def with_our_path() -> dict[str, str]:
    """Return this process's environment, in which another interpreter finds ``benchmarks`` and ``oof``, too."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def last_words(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    return " ".join([line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:])
