"""Process group of one fold job under torchrun: rank and sums over processes; one process needs no group.

Rank and size come from ``torch.distributed``, never from the environment alone: a stray WORLD_SIZE without a group
would make a job train and score a part of its rows.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import distributed, nn

from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.progress import mute

logger = logging.getLogger(__name__)

LAUNCHER = "ARENA_DISTILL_LAUNCHER"  # environment variable: id of the process that started torchrun
RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them beside WORLD_SIZE


def rank() -> int:
    """Return this process's number in its job, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """Return the number of processes that share this job."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def start() -> None:
    """Join the job's process group (NCCL between GPUs, gloo between CPUs); end this process when its launcher ends.

    Raises:
        UserError: WORLD_SIZE or RANK disagree with the group, or are set without torchrun's other variables.
    """
    if LAUNCHER in os.environ:
        interrupts.end_after(int(os.environ[LAUNCHER]))
    if _number("WORLD_SIZE", 1) > 1 and not distributed.is_initialized():
        absent = [name for name in RENDEZVOUS if name not in os.environ]
        if absent:
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set without {', '.join(absent)}: unset WORLD_SIZE to run "
                "in one process, or start the job with torchrun"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    for name, value in (("WORLD_SIZE", ranks()), ("RANK", rank())):
        if _number(name, value) != value:
            raise UserError(
                f"{name}={os.environ[name]} in the environment, but it is {value} in this process group: unset {name} "
                "or start the job with torchrun"
            )
    if rank() > 0:
        mute()


def ignore_stray_environment() -> None:
    """Remove a launcher's variables from the environment of a process that no process group was asked for.

    accelerate reads them, and would wait for processes that nobody started.

    Raises:
        UserError: torchrun started this process, whose subcommand starts its own processes.
    """
    if distributed.is_initialized():
        return
    if _number("WORLD_SIZE", 1) > 1:
        if all(name in os.environ for name in RENDEZVOUS):
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}: torchrun started this command, which starts its own "
                "processes; run it without torchrun and set jobs.nproc"
            )
        logger.warning("WORLD_SIZE=%s ignored: no process group was asked for", os.environ["WORLD_SIZE"])
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)


def _number(variable: str, default: int) -> int:
    """Return an environment variable as a whole number.

    Raises:
        UserError: it is not one.
    """
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"{variable}={text!r} is not a whole number; unset {variable} or start the job with torchrun")
    return int(text)


def wait() -> None:
    """Wait until every process of the job has called this."""
    if distributed.is_initialized():
        distributed.barrier()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of every process's tensor of this shape, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: list[nn.Parameter], flat: torch.Tensor) -> None:
    """Set each parameter's gradient to the sum over processes, from each one's ``flat`` (:func:`flat_gradients`)."""
    if not distributed.is_initialized():
        return
    distributed.all_reduce(flat)
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(part.view_as(parameter))


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
