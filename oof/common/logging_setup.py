"""What a user sees of a run: our own lines, and no chatter of the libraries below."""

from __future__ import annotations

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """Send our log lines to standard error and hold back what the libraries say to themselves."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "peft", "accelerate", "optuna", "bitsandbytes", "ray"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # peft 0.21 asks transformers 5.23 by the old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
