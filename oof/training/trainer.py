"""Training of one classifier: callbacks, optimizations and arguments of the Trainer, and a summary of its history."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.config import Member, Train
from oof.distributed.gpus import train_on_one_gpu
from oof.distributed.process_group import rank, ranks
from oof.encoding.batches import TrainingSteps
from oof.model.fused_layers import FusedLayers
from oof.model.optimizations import FusedLora, LastTokens, checkpointed_layers
from oof.training.callbacks import (
    CompleteCheckpoints,
    StopInTime,
    TimedCheckpoints,
    all_finite,
    last_complete_checkpoint,
    tracker_callbacks,
)
from oof.training.classifier_trainer import ClassifierTrainer
from oof.training.finite_steps import recorded
from oof.training.held_out_loss import HeldOut
from oof.training.losses import RowLoss
from oof.training.progress import MetricsFile, TrainingProgress
from oof.training.weight_average import WeightAverage


def train_classifier(
    model: nn.Module,
    member: Member,
    steps: TrainingSteps,
    row_loss: RowLoss,
    checkpoints: Path,
    seed: int,
    label: str,
    report_to: str = "none",
    held_out: HeldOut | None = None,
) -> dict[str, object]:
    """Train ``model`` in place over every step of the plan, resuming from the last checkpoint if there is one.

    Args:
        model: a classifier of :mod:`oof.model.classifier` with its trainable parameters in float32.
        member: precision and recipe.
        steps: the planned micro-batches.
        row_loss: from logits and soft targets to one loss per row.
        checkpoints: folder for the trainer's checkpoints; the caller removes it when the job is done.
        seed: for dropout.
        label: name in the progress bar and in the tracker.
        report_to: a tracker that transformers supports (trackio, tensorboard, wandb, mlflow), or "none".
            ``metrics.jsonl`` beside the checkpoints' folder is written in any case.
        held_out: battles whose loss is reported at each log entry; nothing depends on it.

    Returns:
        ``history`` (``{"step", "loss", "learning_rate", …}``, about twenty entries), ``tokens_per_batch`` at the end,
        ``oom_halvings``, ``checkpointed_layers``, ``oom_checkpointing_step`` at which a lack of memory switched
        checkpointing on (or None), ``fused_layers``, ``skipped_steps`` whose loss or gradient was not finite, and the
        number of ``loss_spikes`` (:mod:`oof.training.finite_steps`). In float16 also ``overflow_steps``, skipped to
        lower the scale of the loss, and ``loss_scale`` at the end.

    Raises:
        UserError: one sequence does not fit into the memory; too many steps are not finite; the tracker
            is not installed.
        interrupts.Stopped: asked to stop, after a checkpoint was written.
    """
    steps.rank, steps.ranks = rank(), ranks()
    stop, fused = StopInTime(), FusedLayers(model, member)
    average = WeightAverage(member.train.average_last, len(steps), checkpoints)
    optimizations = (LastTokens(model, steps.pad_id), FusedLora(model), fused)
    tokens = steps.tokens()
    callbacks = [
        stop,
        TimedCheckpoints(member.train.checkpoint_minutes),
        average,  # before a checkpoint is marked as complete
        CompleteCheckpoints(),
        MetricsFile(checkpoints.parent / "metrics.jsonl", tokens),
    ]
    trainer = ClassifierTrainer(
        member=member,
        row_loss=row_loss,
        steps=steps,
        label=label,
        model=model,
        args=train_on_one_gpu(_arguments(member.train, len(steps), checkpoints, seed, label, report_to)),
        callbacks=[*callbacks, *tracker_callbacks(report_to, checkpoints.parent)],
    )
    trainer.held_out = held_out
    trainer.remove_callback(PrinterCallback)
    with interrupts.deferred(), progress(label, len(steps), "steps") as shown:
        trainer.add_callback(TrainingProgress(shown, tokens))
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    for optimization in optimizations:
        optimization.remove()
    if stop.reason:
        raise interrupts.Stopped(stop.reason)
    average.apply(model)
    if not all_finite(trainer.trained):
        raise UserError(f"{label}: the trained weights are not finite; run the same command again")
    history = [dict(entry) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "history": history,
        "tokens_per_batch": steps.budget,
        "oom_halvings": trainer.halvings,
        "checkpointed_layers": checkpointed_layers(model),
        "oom_checkpointing_step": trainer.recomputes_from,
        "skipped_steps": recorded(trainer.state, "skipped_step"),
        "loss_spikes": len(recorded(trainer.state, "loss_spike")),
        "fused_layers": fused.kinds,
        **_loss_scaling(trainer),
    }


def _loss_scaling(trainer: ClassifierTrainer) -> dict[str, object]:
    scaler = trainer.accelerator.scaler
    overflows = recorded(trainer.state, "overflow_step")
    return {} if scaler is None else {"overflow_steps": overflows, "loss_scale": scaler.get_scale()}


def _arguments(
    recipe: Train, n_steps: int, folder: Path, seed: int, label: str, report_to: str
) -> TrainingArguments:  # fmt: skip
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
        report_to="none" if report_to == "tensorboard" else report_to,  # see tracker_callbacks
        run_name=label,
        project="arena-distill",  # trackio's project name
        use_cpu=not torch.cuda.is_available(),
    )
