"""AutoGluon and probmetrics on the battles of ``benchmarks/quality/choice.py``, in an environment of their own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import costed
from benchmarks.peer_environment import last_words, with_our_path
from benchmarks.quality.choice_settings import Battles
from oof.metrics import row_log_loss

Losses = dict[str, NDArray[np.float64]]


def autogluon_losses(battles: Battles, seconds: float, python: str) -> tuple[Losses, dict[str, float]]:
    """Return AutoGluon's (n,) losses by its name, and its cost.

    Args:
        battles: on whose columns and folds it is trained.
        seconds: limit for all folds together, in CPU seconds.
        python: interpreter of the peers' environment.

    Raises:
        RuntimeError: it failed, with the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "battles.npz", Path(folder) / "probabilities.npz"
        _write(battles, given)
        command = [python, "-m", "benchmarks.speed.other_stackers", "autogluon", str(given), str(out)]
        command += ["--limit", f"{seconds:g}", "--cores", "1", "--cpu-seconds"]
        _, cost = costed(lambda: _run(command, Path(folder) / "log.txt"))
        return {"autogluon": _losses(np.load(out)["probs"], battles)}, cost


def probmetrics_losses(several: Sequence[Battles], python: str) -> tuple[list[Losses], dict[str, float]]:
    """Return the (n,) losses of SVS and SMS on each of several battles, and the average cost of one.

    Raises:
        RuntimeError: it failed, with the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder) / f"battles-{i}.npz", Path(folder) / f"out-{i}.npz") for i in range(len(several))]
        for battles, (given, _) in zip(several, files, strict=True):
            _write(battles, given)
        # One process for all: it spends ten seconds on imports.
        command = [
            python,
            "-m",
            "benchmarks.quality.other_calibrators",
            *(str(path) for pair in files for path in pair),
        ]
        _, cost = costed(lambda: _run(command, Path(folder) / "log.txt"))
        losses = [
            {name: _losses(probs, battles) for name, probs in np.load(out).items()}
            for battles, (_, out) in zip(several, files, strict=True)
        ]
        return losses, {name: value / len(several) for name, value in cost.items()}


def _write(battles: Battles, path: Path) -> None:
    design = battles.design
    columns = {"x": design.x, "x_swapped": design.x_swapped, "pool": design.pool}
    np.savez(path, **columns, labels=battles.labels, folds=battles.folds)


def _losses(probs: NDArray[np.float64], battles: Battles) -> NDArray[np.float64]:
    return row_log_loss(probs / probs.sum(axis=1, keepdims=True), battles.labels)


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=with_our_path(), check=False)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {last_words(log)}")
