"""Trainer of transformers for batches of weighted micro-batches, on hard or soft targets.

One Trainer step is one optimizer step. Its batch is a list of micro-batches (:mod:`oof.encoding.batches`) with weights
that make their losses add up to the mean over the step's battles. So ``training_step`` accumulates gradients exactly,
whatever the micro-batches' sizes, and exchanges them between processes once per step. Trainer keeps the optimizer, the
schedule, clipping, checkpoints and resuming.

In float16 the loss is scaled dynamically by torch's GradScaler (Micikevicius et al., Mixed Precision Training, ICLR
2018). accelerate steps, saves and restores it. A step whose gradients overflow does not advance the schedule.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from oof.common.errors import UserError
from oof.config import Member
from oof.distributed.process_group import add_up_gradients, any_of, flat_gradients, same_everywhere, sum_over_processes
from oof.encoding.batches import TrainingSteps
from oof.model.optimizations import checkpoint_trainable_layers, checkpointed_layers
from oof.model.precision import precision_context, resolve_dtype
from oof.training.finite_steps import FiniteSteps
from oof.training.held_out_loss import HELD_OUT_LOSS, HeldOut, held_out_loss
from oof.training.losses import RowLoss
from oof.training.optimizer import build_optimizer

logger = logging.getLogger(__name__)

MicroBatches = list[dict[str, torch.Tensor]]
UNLOGGED_LOSS = "unlogged_loss"  # name in the trainer's state


class ClassifierTrainer(Trainer):
    """Trainer whose batch is a list of weighted micro-batches (see the module's docstring)."""

    def __init__(self, member: Member, row_loss: RowLoss, steps: TrainingSteps, label: str, **arguments: Any) -> None:
        super().__init__(train_dataset=steps, **arguments)
        self.member, self.row_loss, self.steps = member, row_loss, steps
        self.trained = [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        if resolve_dtype(member.dtype) == torch.float16:
            # accelerate 1.15 makes one itself with mixed_precision="fp16", but never on a CPU.
            self.accelerator.scaler = torch.amp.grad_scaler.GradScaler(self.args.device.type)
            if self.args.device.type == "cpu":
                logger.warning("%s: dtype=float16 is slow on a CPU; dtype=auto takes what the hardware computes", label)
        self.halvings, self.finite_steps = 0, FiniteSteps(self.trained, label, self.accelerator.scaler)
        self.recomputes_from: int | None = None
        self.continues_log = False
        self.held_out: HeldOut | None = None
        # With this flag Trainer does not wrap the model in DistributedDataParallel, which would exchange gradients
        # inside the backward pass: there, a process that runs out of memory leaves the others waiting.
        self.is_distributed_loading_by_transformers = steps.ranks > 1

    def get_train_dataloader(self) -> DataLoader[Any]:
        # The plan is already in order: no sampler may shuffle it, and accelerate must not deal it out.
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=lambda items: items[0])

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the step's loss and leave its gradients; out of memory, repeat the step with less memory."""
        self._continue_log()
        model.train()
        while True:
            shortage, total, flat = "", torch.zeros((), device=self.args.device), torch.empty(0)
            try:
                total = self._accumulate(model, inputs)
                flat = flat_gradients(self.trained) if self.steps.ranks > 1 else flat
            except torch.OutOfMemoryError as error:
                shortage = str(error).splitlines()[0]
            # Outside the handler, whose traceback would keep the tensors alive. All processes repeat a step together.
            if not any_of(bool(shortage), self.args.device):
                add_up_gradients(self.trained, flat)
                if self.accelerator.scaler is not None:
                    wrapped: Any = self.optimizer
                    self.accelerator.scaler.unscale_(wrapped.optimizer)
                self.finite_steps.check(total, self.state)
                return total * self.steps.ranks  # Trainer logs the mean over processes
            inputs = self._save_memory(model, shortage or "in another process of this job")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and tell trackers and ``metrics.jsonl`` the held-out loss, which the log history does not get."""
        super().log(logs, start_time)
        if self.held_out is not None and "loss" in logs:
            loss = held_out_loss(self.model, self.member, self.held_out, self.steps.pad_id, self.steps.budget)
            if loss is None:
                logger.warning("step %d: the held-out loss is not finite, and is left out", self.state.global_step)
                return
            self.control = self.callback_handler.on_log(self.args, self.state, self.control, {HELD_OUT_LOSS: loss})

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write a checkpoint that also holds the loss since the last log entry, so that a resume logs the same."""
        loss = sum_over_processes(self._tr_loss.clone()) / self.steps.ranks
        kept: Any = self.state.stateful_callbacks  # declared as a list, but a dict
        kept[UNLOGGED_LOSS] = [self._globalstep_last_logged, loss.item()]
        super()._save_checkpoint(model, trial)

    def _continue_log(self) -> None:
        """Restore, in the first step after a resume, what ``_save_checkpoint`` has kept."""
        kept: Any = self.state.stateful_callbacks
        if not self.continues_log and UNLOGGED_LOSS in kept:
            self._globalstep_last_logged, loss = kept[UNLOGGED_LOSS]
            self._tr_loss.fill_(loss)
        self.continues_log = True

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Start every process from the same weights. The stock method also averages gradients in every backward."""
        same_everywhere(self.trained)

    def _accumulate(self, model: Any, inputs: MicroBatches) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for micro in inputs:
            batch: Any = self._prepare_inputs(micro)
            targets, weights = batch.pop("targets"), batch.pop("weights")
            with precision_context(self.member):
                logits = model(**batch).logits
            loss = (self.row_loss(logits.float(), targets) * weights).sum()
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _save_memory(self, model: nn.Module, shortage: str) -> MicroBatches:
        """Return the same optimizer step in micro-batches of half the tokens, or recompute activations from now on.

        With recomputation the micro-batches start at the recipe's size again, because they need far less memory.

        Raises:
            UserError: one sequence does not fit, and recomputation is on already or forbidden.
        """
        index, steps, recipe = self.state.global_step, self.steps, self.member.train
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if steps.budget > steps.longest(index):
            steps.budget, self.halvings = max(steps.budget // 2, 1), self.halvings + 1
            logger.warning("out of memory in step %d; going on with %d tokens per batch", index, steps.budget)
            return steps[index]
        smallest, forbidden = steps.budget, recipe.activation_checkpointing == "off"
        if forbidden or checkpointed_layers(model) or not checkpoint_trainable_layers(model):
            remedy = "set train.activation_checkpointing=auto, or lower" if forbidden else "set quantise=nf4, or lower"
            raise UserError(
                f"out of memory at {smallest} tokens per batch ({shortage}), the longest sequence of step {index}; "
                f"{remedy} prompts.max_tokens (a student's own: distill.prompts.max_tokens)"
            )
        steps.budget, self.recomputes_from = recipe.tokens_per_batch, index
        logger.warning(
            "out of memory in step %d at %d tokens per batch; going on with activation checkpointing", index, smallest
        )
        return steps[index]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as the recipe says; norms and biases are not decayed."""
        if self.optimizer is None:
            trained: Any = self.model
            decayed = set(self.get_decay_parameter_names(trained))
            scaled = self.accelerator.scaler is not None
            self.optimizer = build_optimizer(trained, decayed, self.member.train, scaled)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate expects one dict of tensors; the subcommand plan counts FLOPs
