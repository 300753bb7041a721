"""Weights that students start from: those of a member with the same base. Imports no torch.

From a member, fold student k starts from fold job k, which has never seen fold k. The final student starts from the
average of the member's fold jobs (:func:`ensemble.distillation.merge.save_average`). With ``distill.start: pretrain``
all students start from the member's pretraining on ``pretrain.data``, which stage one has done and which saw no scored
battle.
"""

from __future__ import annotations

from collections.abc import Sequence

from oof.common.errors import UserError
from oof.config import Config
from oof.jobs.first_weights import first_weights, start_member
from oof.jobs.fold_job import FoldJob
from oof.jobs.pretrain import PretrainJob, pretrain_job


def start_jobs(config: Config, finished: Sequence[FoldJob]) -> list[FoldJob]:
    """Return the fold jobs that the students start from, in the order of folds; none where they start from their base.

    Args:
        config: of the run.
        finished: its fold jobs.

    Raises:
        UserError: as :func:`start_member`.
    """
    if first_weights(config) != "member":
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
