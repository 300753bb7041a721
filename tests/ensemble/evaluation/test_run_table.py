"""The final table: its best row, the meaning of its names, its width, and colours on a terminal alone."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest

from ensemble.evaluation.run_table import MEANINGS, ROWS, print_table, table_rows
from ensemble.statistics.bootstrap import group_interval


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def metrics(members: tuple[str, ...] = ("gemma2", "llama3_1"), bayes: bool = True) -> dict[str, Any]:
    losses: dict[str, Any] = {name: interval(1.0) for name in (*ROWS, "student")} | {"calibrated": interval(0.9)}
    losses |= {"bayes": interval(0.7)} if bayes else {}
    losses["members"] = {name: interval(0.95) for name in members}
    paired = {"calibrated_minus_best_member": interval(-0.05)}
    return {"n": 2000, "best": "calibrated", "best_member": members[0], "log_loss": losses, "paired": paired}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["80", "100", "120"])
def test_the_table_fits_marks_the_best_row_and_explains_each_name(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table(metrics())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0] for row in rows if row[0].endswith("*")] == ["calibrated *"]
    assert [row[0].removesuffix(" *") for row in rows] == list(table_rows(metrics()["log_loss"]))
    assert all(row[4] for row in rows)
    assert lines[-2] == "* best row; bayes knows the true probabilities"
    assert lines[-1] == "calibrated - best member (gemma2): -0.0500 [-0.0600, -0.0400]"


def test_every_row_has_a_meaning() -> None:
    assert set(MEANINGS) == {*ROWS, "student", "bayes"}


def test_a_run_of_real_battles_has_no_line_on_bayes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(metrics(bayes=False))
    assert "bayes" not in capsys.readouterr().out


def test_long_names_of_members_fit_100_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_table(metrics(("qwen2_5-7b-instruct-long-texts", "gemma2")))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "qwen2_5-7b-instruct-long-texts" in out


@pytest.mark.parametrize(("no_color", "terminal", "styled"), [("", True, True), ("1", True, False), ("", False, False)])
def test_colours_and_styles_are_for_terminals(
    no_color: str, terminal: bool, styled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    print_table(metrics())
    colour = re.search(r"\x1b\[[\d;]*3\d", file.getvalue())
    assert (colour is not None) == styled
    assert ("\x1b" in file.getvalue()) == terminal


@pytest.mark.parametrize("n_groups", [5, 6])
def test_too_few_groups_have_a_difference_and_no_bounds(n_groups: int, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=30)
    row = group_interval(values, np.arange(30) % n_groups, 0)
    losses = {"members": {"one": row}, "calibrated": row}
    content = {"n": 30, "best": "calibrated", "best_member": "one", "log_loss": losses}
    print_table(content | {"paired": {"calibrated_minus_best_member": row}})
    line = capsys.readouterr().out.splitlines()[-1]
    start = f"calibrated - best member (one): {values.mean():+.4f}"
    assert line.startswith(start)
    assert (line == f"{start}, too few groups for a verdict (5)") == (n_groups == 5)
    assert ("[" in line) == (n_groups == 6)
