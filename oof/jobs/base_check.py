"""Check of base checkpoints before a command writes its first file: configuration, tokenizer, size for a CPU.

A mistake in a checkpoint would otherwise show in the first job, after battles and settings were written. The weights
are read by the jobs alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from oof.config import Jobs, Member
from oof.distributed.gpus import prepare_gpu


def check_bases(members: Mapping[str, Member], jobs: Jobs) -> None:
    """Open the tokenizer and the configuration of each base that a command is about to train.

    Args:
        members: label in messages -> settings, with the recorded commit of a hub checkpoint.
        jobs: where they run. The machines of a Ray cluster may have GPUs that this one lacks.

    Raises:
        UserError: a checkpoint cannot be opened, or is too large for the CPU (:mod:`oof.model.cpu_limit`).
    """
    if not members:
        return
    prepare_gpu(jobs)  # before the imports below, which may initialise CUDA
    from oof.model.checkpoint_shapes import base_config
    from oof.model.classifier import load_tokenizer
    from oof.model.cpu_limit import refuse_too_large_for_cpu

    for label, member in members.items():
        load_tokenizer(member.checkpoint, revision=member.revision)
        base_config(member.checkpoint, member.revision)
        if jobs.backend == "local":
            refuse_too_large_for_cpu(member, jobs, label)
