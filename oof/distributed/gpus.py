"""One GPU per process: the card is chosen before anything initialises CUDA.

CUDA reads CUDA_VISIBLE_DEVICES once, at its first use, and importing peft is such a use (it imports bitsandbytes). So
every process of ours chooses its card before it imports a module that trains or scores.
"""

from __future__ import annotations

import os
from typing import Any

from oof.config import Jobs

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
ALLOCATOR_NAMES = (ALLOCATOR, "PYTORCH_ALLOC_CONF")  # torch reads either


def prepare_gpu(jobs: Jobs) -> None:
    """Prepare a process that runs jobs itself; one that only starts others keeps every card visible to them.

    With ``jobs.device: cpu`` no card is visible, to this process and to those that it starts.
    """
    if jobs.device == "cpu":
        hide_gpus()
    elif jobs.workers == jobs.nproc == 1 and jobs.backend == "local":
        see_one_gpu(0)


def hide_gpus() -> None:
    """Hide all GPUs from this process and from those that it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def see_one_gpu(index: int) -> None:
    """Hide all GPUs but one from this process, because Trainer would spread every batch over all visible GPUs.

    Batches of many lengths fragment the memory, so the allocator's segments may grow, unless the user has configured
    the allocator.

    Args:
        index: of the process among those of the machine; it takes card ``index`` modulo the number of cards.
    """
    if not any(name in os.environ for name in ALLOCATOR_NAMES):
        os.environ[ALLOCATOR] = "expandable_segments:True"
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    # device_count asks NVML and does not initialise CUDA.
    visible = visible or [str(i) for i in range(torch.cuda.device_count())]
    if len(visible) > 1 and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[index % len(visible)]


def train_on_one_gpu(arguments: Any) -> Any:
    """Return the TrainingArguments such that Trainer never wraps the model in DataParallel, however many cards it sees.

    Source: ``Trainer._wrap_model`` of transformers 5.23 wraps where ``args.n_gpu > 1``.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
