"""Train one classifier on hard or soft targets with transformers' Trainer.

A Trainer step is one optimizer step: its batch is the list of micro-batches that :mod:`oof.encoding.batches` cut, each
weighted so that their losses add up to the mean over the step's battles. Accumulation therefore happens
inside ``training_step``, exactly, whatever the sizes; so does the one exchange of gradients that a step of several
processes needs. The Trainer keeps the optimizer, the schedule, clipping, checkpoints and resuming.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from oof.common import interrupts
from oof.common.errors import UserError
from oof.config import Member, Train
from oof.distributed.process_group import add_up_gradients, any_of, flat_gradients, rank, ranks, same_everywhere, wait
from oof.encoding.batches import TrainingSteps
from oof.model.classifier import precision_context
from oof.model.optimizations import FusedLora, LastTokens

logger = logging.getLogger(__name__)

WHOLE = "whole"  # the mark of a checkpoint that can be gone on from

# (logits (b, 3), targets (b, 3)) -> (b,) losses
RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MicroBatches = list[dict[str, torch.Tensor]]


class ClassifierTrainer(Trainer):
    """Trainer whose batch is a list of weighted micro-batches (see the module's docstring)."""

    def __init__(self, member: Member, row_loss: RowLoss, steps: TrainingSteps, **arguments: Any) -> None:
        super().__init__(train_dataset=steps, **arguments)
        self.member, self.row_loss, self.steps = member, row_loss, steps
        self.trained = [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.halvings = 0
        # With this flag Trainer does not wrap the model in DistributedDataParallel, which would exchange gradients
        # inside the backward pass: there, a process that runs out of memory leaves the others waiting.
        self.is_distributed_loading_by_transformers = steps.ranks > 1

    def get_train_dataloader(self) -> DataLoader[Any]:
        # The plan is already in order; a sampler must not shuffle it, nor accelerate deal it out.
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_only_item)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
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
                return total * self.steps.ranks  # of which the log takes the mean over processes
            inputs = self._cut_smaller(model, shortage or "in another process of this job")

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Start every process from the same weights. The stock method also averages gradients, in every backward."""
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

    def _cut_smaller(self, model: nn.Module, shortage: str) -> MicroBatches:
        """Return the same optimizer step in micro-batches of half the tokens."""
        index, steps = self.state.global_step, self.steps
        if steps.budget <= steps.longest(index):
            raise UserError(
                f"out of memory at {steps.budget} tokens per batch ({shortage}); lower prompts.max_tokens or "
                "train.tokens_per_batch, or set train.activation_checkpointing=on"
            )
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        steps.budget, self.halvings = max(steps.budget // 2, 1), self.halvings + 1
        logger.warning("out of memory in step %d; going on with %d tokens per batch", index, steps.budget)
        return steps[index]

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


class StopInTime(TrainerCallback):
    """Ends training after the step in which it was asked to stop, with a checkpoint."""

    def __init__(self) -> None:
        self.reason, self.began, self.longest = "", 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.longest = max(self.longest, time.monotonic() - self.began)
        reason = interrupts.due(self.longest)
        if state.global_step < state.max_steps and any_of(bool(reason), args.device):
            self.reason = reason or "another process of this job"
            control.should_save = control.should_training_stop = True


class History(TrainerCallback):
    """Keeps ``metrics.jsonl`` beside the job: every logged line so far, to follow a training that runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            lines = [json.dumps(entry, sort_keys=True) for entry in state.log_history if "loss" in entry]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of its files are on disk: a kill in the middle of one leaves it unmarked."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait()  # every process of the job writes a file of its own
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            for path in folder.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            (folder / WHOLE).touch()


def _last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest marked checkpoint, and remove what a kill left half-written."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        if (path / WHOLE).is_file():
            whole[int(path.name.rsplit("-", 1)[1])] = path
        elif rank() == 0:
            shutil.rmtree(path)
    wait()
    return str(whole[max(whole)]) if whole else None


def train_classifier(
    model: nn.Module,
    member: Member,
    steps: TrainingSteps,
    row_loss: RowLoss,
    checkpoints: Path,
    seed: int,
    label: str,
    report_to: str = "none",
) -> dict[str, object]:
    """Train ``model`` in place over every step of the plan, resuming from the last checkpoint if there is one.

    Args:
        model: a classifier of :mod:`oof.model.classifier` with its trainable parameters in float32.
        member: precision and recipe.
        steps: the planned micro-batches.
        row_loss: from logits and soft targets to one loss per row.
        checkpoints: folder for the trainer's checkpoints; the caller removes it when the job is done.
        seed: for dropout.
        label: what the progress bar says.
        report_to: a tracker that transformers knows (trackio, tensorboard, wandb, mlflow), or "none"; it calls the
            training ``label``. ``metrics.jsonl`` beside the checkpoints' folder is written in any case.

    Returns:
        Facts: ``history`` (``{"step", "loss", "learning_rate", …}`` about twenty times), ``tokens_per_batch`` as it
        ended and ``oom_halvings``.

    Raises:
        UserError: one sequence does not fit into the memory; the tracker is not installed.
        interrupts.Stopped: asked to stop; a checkpoint is there.
    """
    steps.rank, steps.ranks = rank(), ranks()
    stop, shortcuts = StopInTime(), (LastTokens(model, steps.pad_id), FusedLora(model))
    callbacks = [Progress(label), stop, WholeCheckpoints(), History(checkpoints.parent / "metrics.jsonl")]
    trainer = ClassifierTrainer(
        member=member,
        row_loss=row_loss,
        steps=steps,
        model=model,
        args=_arguments(member.train, len(steps), checkpoints, seed, label, report_to),
        callbacks=[*callbacks, *_trackers(report_to, checkpoints.parent)],
    )
    trainer.remove_callback(PrinterCallback)
    with interrupts.deferred():
        trainer.train(resume_from_checkpoint=_last_whole_checkpoint(checkpoints))
    for shortcut in shortcuts:
        shortcut.remove()
    if stop.reason:
        raise interrupts.Stopped(stop.reason)
    history = [dict(entry) for entry in trainer.state.log_history if "loss" in entry]
    return {"history": history, "tokens_per_batch": steps.budget, "oom_halvings": trainer.halvings}


def _trackers(report_to: str, folder: Path) -> list[TrainerCallback]:
    """Return TensorBoard's callback, which by itself would write into the checkpoints, and these are removed."""
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"jobs.report_to={report_to}: this tracker is not installed; pip install {report_to}")
    if report_to != "tensorboard" or rank() != 0:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))]  # type: ignore[no-untyped-call]


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
        report_to="none" if report_to == "tensorboard" else report_to,  # see _trackers
        run_name=label,
        project="arena-distill",  # trackio's
        use_cpu=not torch.cuda.is_available(),
    )


def _only_item(items: list[MicroBatches]) -> MicroBatches:
    return items[0]
