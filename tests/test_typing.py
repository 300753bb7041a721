"""Types of the Python API for its users: what mypy --strict infers, and that it finds misspelt names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT

CODE = """
import numpy as np
from ensemble import Judge, Stack, Temperature, Verdict, open_run
from oof import group_folds, read_battles

frame = read_battles("train.csv", {"prompt": "question"}, {1: "a"}, on_bad_row="drop")
reveal_type(frame)
reveal_type(group_folds(frame, 3, seed=1))
stack = Stack(k=3, final="mean").fit(np.zeros((9, 3)), frame["label"], groups=frame["group"], features=frame)
reveal_type(stack.predict_proba({"m": np.zeros((9, 3))}))
reveal_type(Temperature().fit([[0.0, 0.0, 0.0]], [1]).apply(np.zeros((9, 3))))
verdict: Verdict = Judge.from_pretrained("student").compare([{"role": "user", "content": "x"}], "a", "b")
a, b, tie = verdict
reveal_type(verdict.winner)
reveal_type(open_run("runs/demo").table())
group_folds(frame, on_bad_rows="drop")
from ensemble import Jugde
"""
EXPECTED = [
    "polars.dataframe.frame.DataFrame", "numpy.ndarray", "numpy.ndarray", "numpy.ndarray", "Literal['a']",
    "polars.dataframe.frame.DataFrame", '"on_bad_rows" for "group_folds"', 'no attribute "Jugde"; maybe "Judge"',
    "Found 2 errors",
]  # fmt: skip


@pytest.mark.slow
def test_users_get_types_and_errors(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "use.py"]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)  # noqa: S603
    lines = [line for line in done.stdout.splitlines() if "defined in" not in line]
    assert len(lines) == len(EXPECTED), done.stdout + done.stderr
    for line, expected in zip(lines, EXPECTED, strict=True):
        assert expected in line
