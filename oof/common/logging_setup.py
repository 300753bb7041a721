"""Logging setup: log lines of this project on standard error, libraries silenced below errors."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from oof.common.progress import note_line
from oof.common.repeated_warnings import is_repeated

CLEAR_LINE = "\r\x1b[K"


class LineHandler(logging.StreamHandler[TextIO]):
    """Log lines; a warning begins with its level and is said once in a call. On a terminal a line replaces a bar."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.addFilter(lambda record: not is_repeated(record))

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        clear = CLEAR_LINE if self.stream.isatty() else ""
        return f"{clear}{level}{super().format(record)}"

    def emit(self, record: logging.LogRecord) -> None:
        note_line()
        super().emit(record)


def quiet_libraries() -> None:
    """Send our log lines and Python's warnings to standard error, and silence the libraries' information."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(LineHandler(sys.stderr))
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        warnings.formatwarning = _sentence
    for noisy in ("httpx", "httpx2", "transformers", "peft", "accelerate", "optuna", "bitsandbytes", "ray"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # peft 0.21 uses the name that transformers 5.23 deprecates.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _sentence(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """Return a Python warning as one line, without the line of source code that gave it."""
    return f"{message}" if category is UserWarning else f"{category.__name__}: {message}"
