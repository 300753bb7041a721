"""Weights that students start from: those of a member with the same base. Imports no torch.

With ``distill.start: member``, fold student k starts from fold job k, which has never seen fold k. The final student
starts from the average of the member's fold jobs (:func:`ensemble.distillation.merge.save_average`). The member has
learned the task from labels; the student goes on with the ensemble's probabilities. With ``pretrain`` all students
start from the member's pretraining on ``pretrain.data``, which stage one has done and which saw no scored battle. Of
several members that fit, the first is taken: a choice by their losses would look at the labels of held-out folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oof.common.digests import checkpoint_digest
from oof.common.errors import UserError
from oof.config import Config, Member, without_speed_settings
from oof.jobs.fold_job import FoldJob
from oof.jobs.pretrain import PretrainJob, pretrain_job

SAME_FUNCTION = ("revision", "quantise", "attn_softcap")  # settings of a member that an adapter was trained for


def start_jobs(config: Config, finished: Sequence[FoldJob]) -> list[FoldJob]:
    """Return the fold jobs that the students start from, in the order of folds; none without ``start: member``.

    Args:
        config: of the run.
        finished: its fold jobs.

    Raises:
        UserError: as :func:`start_member`.
    """
    if config.distill.start != "member":
        return []
    name = start_member(config)
    return [job for job in finished if job.name == name]


def start_pretraining(config: Config) -> PretrainJob | None:
    """Return the pretraining that the students start from: the member's with ``distill.start: pretrain``, or their own.

    Raises:
        UserError: as :func:`start_member`, or ``distill.start: pretrain`` without ``pretrain.data``.
    """
    if config.distill.start != "pretrain":
        return pretrain_job(config, None)
    if not config.pretrain.data:
        raise UserError(
            "distill.start=pretrain: pretrain.data is empty, so that no member has been pretrained; set it for a new "
            "RUN, or set distill.start=base"
        )
    return pretrain_job(config, start_member(config))


def start_member(config: Config) -> str:
    """Return the first member whose weights the student can go on training.

    Raises:
        UserError: no member has the student's base and LoRA settings.
    """
    student = config.distill.student
    for name, member in config.members.items():
        if not next(_misfits(member, student), ""):
            return name
    reasons = (f"members.{name} has {next(_misfits(member, student))}" for name, member in config.members.items())
    raise UserError(
        f"distill.start={config.distill.start}: no member has the base and the LoRA settings of distill.student: "
        f"{'; '.join(reasons)}. Give distill.student the settings of one member, or set distill.start=base"
    )


def _misfits(member: Member, student: Member) -> Iterator[str]:
    """Yield each reason why the student cannot go on training the member's weights."""
    if checkpoint_digest(member.checkpoint) != checkpoint_digest(student.checkpoint):
        yield f"another checkpoint ({member.checkpoint}, not {student.checkpoint})"
    theirs, ours = without_speed_settings(member), without_speed_settings(student)
    pairs = {name: (getattr(member, name), getattr(student, name)) for name in SAME_FUNCTION}
    # Without adapters (rank 0), the other LoRA settings mean nothing.
    names = ["rank"] if member.lora.rank == student.lora.rank == 0 else list(theirs["lora"])
    pairs |= {f"lora.{name}": (theirs["lora"][name], ours["lora"][name]) for name in names}
    yield from (f"{name}={was}, not {now}" for name, (was, now) in pairs.items() if was != now)
