"""Warnings that a call says once, however many of its processes and fold jobs give them.

A call of a subcommand names a folder in an environment variable, which its processes inherit. The process that creates
a warning's file there says the warning; later ones only add a line to the file, and the call tells their number at its
end. Warnings that differ in the number of their fold alone are the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = "ARENA_DISTILL_WARNINGS"  # environment variable: folder of this call's warnings
FOLD = re.compile(r"\bfold \d+\b")


@contextmanager
def warnings_once() -> Iterator[None]:
    """Let the call inside say each warning once, and tell at its end which came several times."""
    if FOLDER in os.environ:  # a part of another call, which tells
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"arena-distill-{os.getpid()}-{secrets.token_hex(8)}"
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]
        for text in sorted(path.read_text(encoding="utf-8") for path in folder.glob("*")):
            if text.endswith("\n\n"):
                logger.info("this warning came %d times: %s", len(text) - len(text.rstrip("\n")), text.rstrip("\n"))
        shutil.rmtree(folder, ignore_errors=True)


def is_repeated(record: logging.LogRecord) -> bool:
    """Return whether the record is a warning that this call has said, and count it."""
    name = os.environ.get(FOLDER)
    if name is None or record.levelno < logging.WARNING:
        return False
    text = record.getMessage()
    path = Path(name) / hashlib.sha256(FOLD.sub("fold", text).encode("utf-8", "backslashreplace")).hexdigest()
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{text}\n")
            return False
        except FileExistsError:
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
            return True
    except OSError:  # no temporary folder, or a full one: say it
        return False
