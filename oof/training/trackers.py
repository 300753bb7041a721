"""One Weights & Biases run per training, grouped by the run folder.

transformers' callback logs into the process's open W&B run and never closes it: with one worker, the second fold job
would log into the first one's. Its callbacks for trackio and MLflow close their runs themselves.
Source: ``WandbCallback.setup`` of transformers 5.23.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GROUP = "WANDB_RUN_GROUP"


@contextmanager
def tracked_run(report_to: str, group: str) -> Iterator[None]:
    """Group the tracker's run of the training inside by ``group``, unless the user has set one; finish it after."""
    if report_to != "wandb":
        yield
        return
    users = os.environ.get(GROUP)
    os.environ[GROUP] = users or group
    try:
        yield
    finally:
        if users is None:
            del os.environ[GROUP]
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()
