"""Train one classifier on hard or soft targets with transformers' Trainer.

A Trainer step is one optimizer step: its batch is the list of micro-batches that :mod:`oof.batches` cut, each
weighted so that their losses add up to the mean over the step's battles. Accumulation therefore happens
inside ``training_step``, exactly, whatever the sizes; the Trainer keeps the optimizer, the schedule, clipping,
checkpoints and resuming.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from oof.batches import TrainingSteps
from oof.config import Member, Train
from oof.models import precision_context

# (logits (b, 3), targets (b, 3)) -> (b,) losses
RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MicroBatches = list[dict[str, torch.Tensor]]


class ClassifierTrainer(Trainer):
    """Trainer whose batch is a list of weighted micro-batches (see the module's docstring)."""

    def __init__(self, member: Member, row_loss: RowLoss, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.member, self.row_loss = member, row_loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        # The plan is already in order; a sampler must not shuffle it, nor accelerate deal it out.
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only_item)  # type: ignore[arg-type]

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        model.train()
        total = torch.zeros((), device=self.args.device)
        for micro in inputs:
            batch = self._prepare_inputs(micro)
            targets, weights = batch.pop("targets"), batch.pop("weights")
            with precision_context(self.member):
                logits = model(**batch).logits
            loss = (self.row_loss(logits.float(), targets) * weights).sum()
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with one rate for the adapters and one for the fresh head; norms and biases are not decayed."""
        if self.optimizer is None:
            recipe = self.member.train
            trained: Any = self.model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    lr = recipe.head_lr if "score" in name.split(".") else recipe.lr
                    decay = recipe.weight_decay if name in decayed else 0.0
                    groups.setdefault((lr, decay), []).append(parameter)
            settings = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
            self.optimizer = torch.optim.AdamW(settings, fused=torch.cuda.is_available())
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate expects one dict of tensors; the plan verb counts FLOPs


class Progress(TrainerCallback):
    """A bar with the time left and the running loss; silent when standard error is not a terminal."""

    def __init__(self, label: str) -> None:
        self.label, self.bar = label, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        quiet = not sys.stderr.isatty()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, disable=quiet, leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def train_classifier(
    model: nn.Module, member: Member, steps: TrainingSteps, row_loss: RowLoss, checkpoints: Path, seed: int, label: str
) -> list[dict[str, float]]:
    """Train ``model`` in place over every step of the plan, resuming from the last checkpoint if there is one.

    Args:
        model: a classifier of :mod:`oof.models` with its trainable parameters in float32.
        member: precision and recipe.
        steps: the planned micro-batches.
        row_loss: from logits and soft targets to one loss per row.
        checkpoints: folder for the trainer's checkpoints; the caller removes it when the job is done.
        seed: for dropout.
        label: what the progress bar says.

    Returns:
        The logged history: ``{"step", "loss", "learning_rate", …}`` about twenty times.
    """
    arguments = _arguments(member.train, len(steps), checkpoints, seed)
    trainer = ClassifierTrainer(
        member=member,
        row_loss=row_loss,
        model=model,
        args=arguments,
        train_dataset=steps,
        callbacks=[Progress(label)],
    )
    trainer.remove_callback(PrinterCallback)
    last = _last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return [dict(entry) for entry in trainer.state.log_history if "loss" in entry]


def _arguments(recipe: Train, n_steps: int, folder: Path, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=1,  # one item of the plan = one optimizer step
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=round(recipe.warmup_share * n_steps),
        max_grad_norm=recipe.max_grad_norm,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, n_steps // 20),
        save_strategy="steps" if recipe.checkpoint_steps else "no",
        save_steps=recipe.checkpoint_steps or n_steps,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )


def _only_item(items: list[MicroBatches]) -> MicroBatches:
    return items[0]


def _last_checkpoint(folder: Path) -> str | None:
    last: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
    return last
