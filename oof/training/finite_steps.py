"""Guard against non-finite losses and gradients: the step is skipped, and too many of them end the training.

One NaN in a gradient would make every weight NaN, and every later checkpoint useless. So loss and gradient norm are
checked before the optimizer reads the gradients, and before any checkpoint is written. A step that is skipped leaves
weights and optimizer state as they were; only the learning-rate schedule goes on.
"""

from __future__ import annotations

import logging
from collections import deque
from statistics import median
from typing import Any

import torch
from torch import nn

from oof.common.errors import UserError
from oof.distributed.process_group import any_of

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 3  # a single bad batch passes; a diverged model gives non-finite losses from then on
MAX_SHARE = 0.01  # of all steps, beside MAX_IN_A_ROW
SPIKE = 3.0  # times the median of the recent losses
RECENT = 50  # steps


class FiniteSteps:
    """Decides for each optimizer step whether its gradients may be used.

    Args:
        trained: parameters with gradients.
        label: name of the training in messages.
    """

    def __init__(self, trained: list[nn.Parameter], label: str) -> None:
        self.trained, self.label = trained, label
        self.recent: deque[float] = deque(maxlen=RECENT)

    def check(self, loss: torch.Tensor, state: Any) -> None:
        """Drop the gradients of a step that is not finite, and record it in the trainer's log history.

        The history is part of a checkpoint, so skipped steps are known after a resume, too.

        Raises:
            UserError: too many steps were not finite, in a row or in all.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        value, size = torch.stack([loss.detach().float(), norm.to(loss.device).float()]).tolist()  # one synchronisation
        finite = bool(torch.isfinite(torch.tensor([value, size])).all())
        if not any_of(not finite, loss.device):
            self._log_spike(value, state.global_step)
            return
        for parameter in self.trained:
            parameter.grad = None  # the optimizer passes over it: weights and moments stay
        entry = {"skipped_step": state.global_step, "skipped_loss": f"{value:g}", "gradient_norm": f"{size:g}"}
        state.log_history.append(entry)
        self._refuse_too_many(state, value, size)
        logger.warning("%s: step %d skipped: loss %g, gradient norm %g", self.label, state.global_step, value, size)

    def _refuse_too_many(self, state: Any, value: float, size: float) -> None:
        steps = skipped_steps(state)
        in_a_row = 0
        while state.global_step - in_a_row in steps:
            in_a_row += 1
        if in_a_row <= MAX_IN_A_ROW and len(steps) <= MAX_IN_A_ROW + MAX_SHARE * state.max_steps:
            return
        raise UserError(
            f"{self.label}: loss {value:g} and gradient norm {size:g} in step {state.global_step} of "
            f"{state.max_steps}; {len(steps)} steps were not finite, {in_a_row} of them in a row. Lower train.lr and "
            "train.head_lr, or set dtype=float32. The same command resumes from the last checkpoint, if there is one"
        )

    def _log_spike(self, value: float, step: int) -> None:
        if len(self.recent) >= RECENT // 5 and value > SPIKE * median(self.recent):
            usual = median(self.recent)
            logger.warning("%s: step %d: loss %.3f, the recent median is %.3f", self.label, step, value, usual)
        self.recent.append(value)


def skipped_steps(state: Any) -> list[int]:
    """Return the numbers of the steps that were skipped, from 0, of a trainer's state."""
    return [entry["skipped_step"] for entry in state.log_history if "skipped_step" in entry]
