"""A sound run for the tests of the audit, and a copy of it to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.audit_runs import write_sound_run


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_sound_run(folder)
    return folder


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound_run, tmp_path / "run")
