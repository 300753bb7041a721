"""Refusal to train a base on a CPU that is too large for one, before any of its weights are read.

A torch without CUDA, or a driver that is too old for it, would otherwise show as a job that fills the memory or takes
weeks. Opened students (the judge, a submission) are not concerned: one may well score on a CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import AutoModelForSequenceClassification

from oof.common.errors import UserError
from oof.config import Jobs, Member
from oof.model.checkpoint_shapes import base_config
from oof.model.planned_operators import BYTES_PER_WEIGHT
from oof.model.precision import device, resolve_dtype

MAX_PARAMETERS = 1_300_000_000  # the models that are sold as "1B" are below


def refuse_too_large_for_cpu(member: Member, jobs: Jobs, label: str) -> None:
    """Refuse a member with a large base where this process has no GPU, unless ``jobs.device`` is "cpu".

    Args:
        member: checkpoint, precision and quantisation are read.
        jobs: ``device`` is read.
        label: name of the job in the error.

    Raises:
        UserError: the base has more than ``MAX_PARAMETERS`` parameters; or its configuration cannot be read.
    """
    if jobs.device == "cpu" or device().type != "cpu":
        return
    n = count_parameters(member.checkpoint, member.revision)
    if n <= MAX_PARAMETERS:
        return
    gigabytes = n * BYTES_PER_WEIGHT.get(member.quantise, float(resolve_dtype(member.dtype).itemsize)) / 1e9
    raise UserError(
        f"{label}: {member.checkpoint} has {n / 1e9:.1f} billion parameters ({gigabytes:.0f} GB of memory for the "
        "weights alone), and torch finds no GPU here; run it where one is, choose a base of at most "
        f"{MAX_PARAMETERS / 1e9:g} billion, or set jobs.device=cpu to use this CPU all the same"
    )


@cache
def count_parameters(checkpoint: str, revision: str = "") -> int:
    """Return the number of parameters of a checkpoint as a classifier, from its configuration alone.

    Raises:
        UserError: the configuration cannot be read.
    """
    config = base_config(checkpoint, revision)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters())
