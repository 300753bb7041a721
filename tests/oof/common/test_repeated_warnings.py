"""Warnings said once in a call: by several fold jobs, by several processes, and their number at the end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oof.common.repeated_warnings import FOLDER, is_repeated, warnings_once

SAYS = """
import logging, sys
from oof.common.logging_setup import quiet_libraries
quiet_libraries()
logging.getLogger("oof.model").warning("sdpa attention is not usable here (%s)", "no kernel")
logging.getLogger("oof.model").warning("gemma2 fold %s: out of memory", sys.argv[1])
logging.getLogger("oof.model").info("gemma2: trained")
"""


def record(text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("oof", level, "", 0, text, None, None)


def say(fold: int) -> str:
    """Return what a process of its own writes to standard error."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", SAYS, str(fold)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr


def test_processes_of_one_call_say_a_warning_once_and_the_call_tells_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    both = "warning: sdpa attention is not usable here (no kernel)\nwarning: gemma2 fold 0: out of memory\n"
    with warnings_once():
        folder = Path(os.environ[FOLDER])
        assert say(0) == both + "gemma2: trained\n"
        assert say(1) == "gemma2: trained\n"
        assert say(2) == "gemma2: trained\n"
    assert caplog.messages == [
        "this warning came 3 times: gemma2 fold 0: out of memory",
        "this warning came 3 times: sdpa attention is not usable here (no kernel)",
    ]
    assert FOLDER not in os.environ
    assert not folder.exists()
    assert say(0) == both + "gemma2: trained\n", "the next call says it again"


def test_other_warnings_and_repeated_information_are_said() -> None:
    with warnings_once():
        assert [is_repeated(record(text)) for text in ("step 1 skipped", "step 2 skipped", "step 1 skipped")] == [
            False, False, True,
        ]  # fmt: skip
        assert not any(is_repeated(record("gemma2: trained", logging.INFO)) for _ in range(2))


def test_a_part_of_a_call_leaves_the_number_to_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with warnings_once():
        with warnings_once():
            assert not is_repeated(record("slow"))
        assert is_repeated(record("slow"))
        assert caplog.messages == []
    assert caplog.messages == ["this warning came 2 times: slow"]


def test_a_warning_is_said_where_the_folder_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "folder"))
    assert not any(is_repeated(record("slow")) for _ in range(2))
