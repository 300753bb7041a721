"""Process group of one fold job under torchrun: rank and sums over processes; one process needs no group."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from oof.common import interrupts

LAUNCHER = "ARENA_DISTILL_LAUNCHER"  # environment variable: id of the process that started torchrun


def rank() -> int:
    """Return this process's number in its job, from 0."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Return the number of processes that share this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Join the job's process group (NCCL between GPUs, gloo between CPUs); end this process when its launcher ends."""
    if LAUNCHER in os.environ:
        interrupts.end_after(int(os.environ[LAUNCHER]))
    if ranks() > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def wait() -> None:
    """Wait until every process of the job has called this."""
    if distributed.is_initialized():
        distributed.barrier()


def add_up(values: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Return the sum of every process's array of this shape."""
    if not distributed.is_initialized():
        return values
    tensor = torch.from_numpy(values).to(device)
    distributed.all_reduce(tensor)
    return np.asarray(tensor.cpu().numpy())


def add_up_gradients(parameters: list[nn.Parameter], flat: torch.Tensor) -> None:
    """Set each parameter's gradient to the sum over processes, from each one's ``flat`` (:func:`flat_gradients`)."""
    if not distributed.is_initialized():
        return
    distributed.all_reduce(flat)
    start = 0
    for parameter in parameters:
        part = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(part)


def flat_gradients(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return all gradients concatenated in float32, so that one collective call adds them up.

    A parameter without a gradient counts as 0, because another process may have a gradient for it.
    """
    grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
    return torch.cat([grad.float().flatten() for grad in grads])


def same_everywhere(parameters: list[nn.Parameter]) -> None:
    """Copy the first process's values of these parameters to every process."""
    if distributed.is_initialized():
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def any_of(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is set in any process, so that all decide alike."""
    if not distributed.is_initialized():
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return bool(tensor.item())
