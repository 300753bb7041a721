"""First weights of students by the settings: those of a member that fits, or of the base. Imports no torch.

With ``distill.start: auto`` students go on from a member with the same base and LoRA settings, if there is one: it has
learned the task from labels, and they go on with the ensemble's probabilities. Of several members that fit, the first
is taken: a choice by their losses would look at the labels of held-out folds.
"""

from __future__ import annotations

from collections.abc import Iterator

from oof.common.digests import checkpoint_digest
from oof.common.errors import UserError
from oof.config import Config, Member, without_speed_settings

SAME_FUNCTION = ("revision", "quantise", "attn_softcap")  # settings of a member that an adapter was trained for


def first_weights(config: Config) -> str:
    """Return ``distill.start``, and for ``auto`` what it means here: "member" or "base"."""
    start = config.distill.start
    if start != "auto":
        return start
    # The final student would need the average of the member's adapters, which DoRA does not have.
    return "member" if _fitting(config) and not config.distill.student.lora.dora else "base"


def start_member(config: Config) -> str:
    """Return the first member whose weights the student can go on training.

    Raises:
        UserError: no member has the student's base and LoRA settings.
    """
    fitting, student = _fitting(config), config.distill.student
    if fitting:
        return fitting[0]
    reasons = (f"members.{name} has {next(_misfits(member, student))}" for name, member in config.members.items())
    raise UserError(
        f"distill.start={config.distill.start}: no member has the base and the LoRA settings of distill.student: "
        f"{'; '.join(reasons)}. Give distill.student the settings of one member, or set distill.start=base"
    )


def _fitting(config: Config) -> list[str]:
    """Return the members whose weights the student can go on training."""
    student = config.distill.student
    return [name for name, member in config.members.items() if not next(_misfits(member, student), "")]


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
