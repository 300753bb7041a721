"""The processes of one fold job under torchrun: who am I, and adding up what each has."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed


def rank() -> int:
    """Return this process's number among those of its job; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Return how many processes share this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Join the other processes of the job: NCCL between GPUs, gloo between CPUs."""
    if ranks() > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def wait() -> None:
    """Wait until every process of the job is here."""
    if distributed.is_initialized():
        distributed.barrier()


def add_up(values: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Return the sum of every process's array of this shape."""
    if not distributed.is_initialized():
        return values
    tensor = torch.from_numpy(values).to(device)
    distributed.all_reduce(tensor)
    return np.asarray(tensor.cpu().numpy())


def any_of(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is set in any process: all must stop at the same step."""
    if not distributed.is_initialized():
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return bool(tensor.item())
