"""Logging setup: log lines of this project on standard error, libraries silenced below errors."""

from __future__ import annotations

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """Send our log lines to standard error, and silence the libraries' information and warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "peft", "accelerate", "optuna", "bitsandbytes", "ray"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # peft 0.21 uses the name that transformers 5.23 deprecates.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
