"""A frozen base that is shared out over the processes of one job (``jobs.parallel: fsdp``).

Transformers shards the base while it reads it (torch's ``fully_shard``, one unit per decoder layer): a process holds
1/n of it and gathers one layer at a time. Adapters, head and optimizer are small, so every process has them whole,
and gradients are added up as without sharding (:mod:`oof.training.trainer`).

Gathering is collective, which costs two things. All processes must go through the model equally often. And a process
that runs out of memory inside a pass leaves the others waiting in theirs: it cannot ask them to repeat the step, so it
notes the shortage beside the job and ends, and :mod:`oof.jobs.launch` starts the job's processes again from the last
checkpoint, with half of the tokens per batch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.config import Jobs, Member
from oof.distributed.process_group import ranks
from oof.encoding.batches import score_tokens

HALVED = "halved.json"  # beside an unfinished job: how often its processes were started again with half the tokens


class ShardedOutOfMemoryError(UserError):
    """A process of a sharded model ran out of memory; half of the tokens per batch may fit."""


def shards(jobs: Jobs) -> int:
    """Return over how many processes this process's job shares out its base; 1 = it has the whole."""
    return ranks() if jobs.parallel == "fsdp" else 1


def refuse_unshardable(name: str, member: Member) -> None:
    """Refuse what cannot be had together with a sharded base.

    Raises:
        UserError: the base is quantised, scored in float16, trained itself, or read by DoRA.
    """
    reasons = {
        f"quantise={member.quantise}": member.quantise != "none",  # bitsandbytes packs weights in shapes of its own
        f"score_dtype={member.score_dtype}": member.score_dtype != "same",  # divides weights in place
        "lora.rank=0": member.lora.rank == 0,  # its checkpoints would hold shards
        "lora.dora=true": member.lora.dora,  # needs the norms of whole base weights
    }
    for setting in (setting for setting, there in reasons.items() if there):
        raise UserError(f"{name}: jobs.parallel=fsdp does not go with {setting}; set jobs.parallel=ddp, or change it")


def loading(n: int) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that share the weights out over ``n`` processes."""
    return {"distributed_config": DistributedConfig(fsdp_size=n)} if n > 1 else {}


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def what_to_save(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of ``save_pretrained`` with which it saves no more than a sharded model's adapter.

    By itself peft gathers the whole base in every process's memory first, and waits for processes that do not save.
    """
    if not is_sharded(model):
        return {}
    return {"state_dict": {n: v for n, v in model.state_dict().items() if not isinstance(v, DTensor)}}


def whole(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight with every process's part in it (collective)."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def place(model: Any, device: torch.device) -> Any:
    """Move a model to a device; of a sharded one what is not sharded, the rest being there since it was read."""
    if not is_sharded(model):
        return model.to(device)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor) and parameter.device != device:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model


def halvings(folder: Path) -> int:
    """Return how often this job was started again with half the tokens."""
    path = folder / HALVED
    return int(read_json(path)["halvings"]) if path.is_file() else 0


def halve(folder: Path, before: int) -> None:
    """Note one halving more than ``before`` (every process that runs short writes the same)."""
    write_json(folder / HALVED, {"halvings": before + 1})


def with_smaller_batches(member: Member, times: int) -> Member:
    """Return the member with its tokens per batch halved ``times`` times, which changes no optimizer step."""
    train = replace(member.train, tokens_per_batch=max(1, member.train.tokens_per_batch >> times))
    return replace(member, train=train, score_tokens_per_batch=max(1, score_tokens(member) >> times))
