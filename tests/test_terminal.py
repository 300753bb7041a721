"""What each stage prints, with and without a terminal, at 80 and 120 columns: progress, duration, next command.

The texts are in tests/snapshots, without times, paths, fractions and warnings. They are the same at both widths, which
both hold the table. To write them again after a change that is meant:

    ARENA_WRITE_SNAPSHOTS=1 python -m pytest tests/test_terminal.py -m slow
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.fixtures.all_stages import STAGES
from tests.fixtures.demo_run import ROOT, only_llama
from tests.fixtures.terminal import in_files, on_terminal, python, screen, steady

SNAPSHOTS = ROOT / "tests" / "snapshots"
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("ARENA_DISTILL", "COLUMNS", "NO_COLOR"))
} | {"OMP_NUM_THREADS": "1"}


def without_best(text: str) -> str:
    """Return a text without the mark of the best row, which is chosen by digits that differ between machines."""
    marked, n = re.subn(r"(│ \S+) \*", r"\1  ", text)
    assert n == text.count("$ arena-distill table")
    return marked


def compare(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("ARENA_WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("columns", [80, 120])
def test_stages_on_a_terminal(columns: int, tmp_path: Path) -> None:
    only_llama(tmp_path)
    command = python("-m", "tests.fixtures.all_stages", str(tmp_path))
    status, written = on_terminal(command, columns, ENVIRONMENT)
    assert status == 0, written
    text = "\n".join(screen(written, columns))
    compare("terminal.txt", without_best(steady(text, tmp_path)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("columns", [80, 120])
def test_stages_without_a_terminal(columns: int, tmp_path: Path) -> None:
    only_llama(tmp_path)
    command = python("-m", "tests.fixtures.all_stages", str(tmp_path))
    status, out, err = in_files(command, columns, ENVIRONMENT)
    assert status == 0, err
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert out.count("$ arena-distill") == len(STAGES)
    compare("output.txt", without_best(steady(out, tmp_path)))
    compare("log.txt", steady(err, tmp_path))
