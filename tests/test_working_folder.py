"""Runs that are continued from another working folder than the one where they were made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.command_line import call, digests
from tests.fixtures.working_folder import FILES, write_working_folder


def test_a_run_is_continued_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Paths that the run remembers start where it was made, those of the call where it is made."""
    folder = write_working_folder(tmp_path / "Läufe von mir")
    monkeypatch.chdir(folder)
    assert call(f"oof prepare mine.yaml run=runs/mine {FILES}", capfd).status == 0
    files = digests(folder)
    elsewhere = tmp_path / "Büro 2"
    elsewhere.mkdir()
    shutil.copy(folder / "other.csv", elsewhere / "only-here.csv")
    monkeypatch.chdir(elsewhere)
    run = folder / "runs/mine"
    assert "60 battles" in call(f"oof prepare 'run={run}'", capfd).text
    assert digests(folder) == files
    refused = call(f"oof prepare 'run={run}' data.train=[only-here.csv]", capfd)
    assert refused.status == 2
    assert f"not from {elsewhere / 'only-here.csv'}" in refused.text
    assert digests(folder) == files
    assert Path.cwd() == elsewhere
