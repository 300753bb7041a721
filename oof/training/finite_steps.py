"""Guard against non-finite losses and gradients: the step is skipped, and too many of them end the training.

One NaN in a gradient would make every weight NaN, and every later checkpoint useless. So loss and gradient norm are
checked before the optimizer reads the gradients, and before any checkpoint is written. A step that is skipped leaves
weights and optimizer state as they were; only the learning-rate schedule goes on.

In float16 the loss is multiplied by a scale, so that small gradients do not vanish. A scale that is too large makes
gradients infinite; the scaler then lowers it and skips the step, and the schedule waits. Such an overflow is part of
the method: it is recorded, but it is a bad step only if the loss itself is not finite, or the scale is at most 1.
"""

from __future__ import annotations

import logging
import math
from statistics import median
from typing import Any

import torch
from torch import nn

from oof.common.errors import UserError
from oof.distributed.process_group import ranks, sum_over_processes

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 3  # a single bad batch passes; a diverged model gives non-finite losses from then on
MAX_SHARE = 0.01  # of all steps, beside MAX_IN_A_ROW
SPIKE = 8.0  # median absolute deviations above the median of the recent losses: 5.4 standard deviations of a normal
RECENT = 50  # steps; spikes are looked for from a fifth of them on
RECENT_LOSSES = "recent_losses"  # name in the trainer's state
LOWEST_SCALE = 1.0  # of the loss: an overflow at this scale is one of the unscaled gradient


class FiniteSteps:
    """Decides for each optimizer step whether its gradients may be used.

    Args:
        trained: parameters with gradients.
        label: name of the training in messages.
        scaler: of a training in float16.
    """

    def __init__(
        self, trained: list[nn.Parameter], label: str, scaler: torch.amp.grad_scaler.GradScaler | None = None
    ) -> None:
        self.trained, self.label, self.scaler = trained, label, scaler

    def check(self, loss: torch.Tensor, state: Any) -> None:
        """Drop the gradients of a step that is not finite, and record it in the trainer's log history.

        The history is part of a checkpoint, so skipped steps are known after a resume, too. All processes of a job
        decide alike, from the sum of their losses and from the gradients that they share.

        Args:
            loss: this process's share of the step's loss.
            state: the trainer's.

        Raises:
            UserError: too many steps were not finite, in a row or in all.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        both = torch.stack([loss.detach().float(), norm.to(loss.device).float() / ranks()])
        value, size = sum_over_processes(both).tolist()  # one synchronisation
        if math.isfinite(value) and math.isfinite(size):
            self._record_spike(value, state)
            return
        for parameter in self.trained:
            parameter.grad = None  # the optimizer passes over it: weights and moments stay
        scale = 0.0 if self.scaler is None else self.scaler.get_scale()
        if math.isfinite(value) and scale > LOWEST_SCALE:
            state.log_history.append({"overflow_step": state.global_step, "loss_scale": scale})
            logger.info("%s: step %d skipped: gradients overflow at scale %g", self.label, state.global_step, scale)
            return
        entry = {"skipped_step": state.global_step, "skipped_loss": f"{value:g}", "gradient_norm": f"{size:g}"}
        state.log_history.append(entry)
        self._refuse_too_many(state, value, size)
        logger.warning("%s: step %d skipped: loss %g, gradient norm %g", self.label, state.global_step, value, size)

    def _refuse_too_many(self, state: Any, value: float, size: float) -> None:
        steps = recorded(state, "skipped_step")
        in_a_row = 0
        while state.global_step - in_a_row in steps:
            in_a_row += 1
        if in_a_row <= MAX_IN_A_ROW and len(steps) <= MAX_IN_A_ROW + MAX_SHARE * state.max_steps:
            return
        remedy = "Lower train.lr and train.head_lr, or set dtype=float32"
        if self.scaler is not None:
            remedy = "The model exceeds float16's range: set dtype=bfloat16 or dtype=float32"
        raise UserError(
            f"{self.label}: loss {value:g} and gradient norm {size:g} in step {state.global_step} of "
            f"{state.max_steps}; {len(steps)} steps were not finite, {in_a_row} of them in a row. {remedy}. "
            "The same command resumes from the last checkpoint, if there is one"
        )

    def _record_spike(self, value: float, state: Any) -> None:
        """Record a loss far above the recent ones in the trainer's log history; nothing else follows from it."""
        recent: list[float] = state.stateful_callbacks.setdefault(RECENT_LOSSES, [])  # saved in checkpoints
        if len(recent) >= RECENT // 5:
            usual = median(recent)
            if value > usual + SPIKE * median(abs(loss - usual) for loss in recent):
                step = state.global_step
                state.log_history.append({"loss_spike": step, "step_loss": value, "recent_median": usual})
                logger.warning("%s: step %d: loss %.3f, the recent median is %.3f", self.label, step, value, usual)
        recent.append(value)
        del recent[:-RECENT]


def recorded(state: Any, kind: str) -> list[int]:
    """Return the numbers, from 0, of the steps that a trainer's log history has as ``kind``, such as "skipped_step"."""
    return [entry[kind] for entry in state.log_history if kind in entry]
