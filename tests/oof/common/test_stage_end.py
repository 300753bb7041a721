"""Last lines of a stage: the next command in the words of the call, and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from oof.common import stage_end
from oof.common.stage_end import GOALS, Call
from oof.common.wording import CALLER


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what `make test` sets for the commands that it calls itself, and give every stage the same duration."""
    monkeypatch.setattr(stage_end, "duration", lambda _: "46 s")
    monkeypatch.delenv(GOALS, raising=False)
    monkeypatch.delenv(CALLER, raising=False)


@pytest.mark.parametrize(
    ("program", "caller", "command"),
    [
        ("/usr/bin/arena-distill", "", "arena-distill stack --run 'runs/my demo'"),
        ("/x/ensemble/command.py", "", "arena-distill stack --run 'runs/my demo'"),
        ("/x/oof/__main__.py", "", "python -m ensemble stack --run 'runs/my demo'"),
        ("/x/oof/__main__.py", "make", "make stack RUN='runs/my demo'"),
    ],
)
def test_the_next_command_is_called_as_this_one(
    program: str, caller: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_end.sys, "argv", [program])
    monkeypatch.setenv(CALLER, caller)
    call = Call()
    call.end("oof", "6 fold jobs run", "stack", "runs/my demo")
    call.print_next()
    assert capsys.readouterr().out.splitlines() == ["oof: 6 fold jobs run, 46 s", f"next: {command}"]


@pytest.mark.parametrize(
    ("goals", "lines"),
    [("oof stack distill", 1), ("distill oof", 2), ("oof", 2), ("", 2), ("test", 2)],
)
def test_a_call_that_goes_on_names_no_next_command(
    goals: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(GOALS, goals)
    call = Call()
    call.end("oof", "done", "stack", "runs/demo")
    call.print_next()
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_the_path_starts_in_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's remembered paths start where it was made, so the process has gone there."""
    (tmp_path / "project").mkdir()
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path / "notes")
    monkeypatch.setattr(stage_end.sys, "argv", ["arena-distill"])
    call = Call()
    monkeypatch.chdir(tmp_path / "project")
    call.remember_next("oof", "stack", "runs/demo")
    assert call.next_command == "arena-distill stack --run ../project/runs/demo"
    call.remember_next("synth", "check", "arena/train.csv", "DATA")
    assert call.next_command == "arena-distill check ../project/arena/train.csv"


def test_a_stage_that_nothing_follows_names_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    call = Call()
    call.end("report", "runs/demo/report/index.html")
    call.print_next()
    assert capsys.readouterr().out == "report: runs/demo/report/index.html, 46 s\n"
