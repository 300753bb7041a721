"""Trainer callbacks: timely stop, checkpoints by time, marks of complete checkpoints, trackers."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from oof.common import interrupts
from oof.common.errors import UserError
from oof.distributed.process_group import any_of, rank, wait

logger = logging.getLogger(__name__)

CHECKPOINT_BYTES = 12  # per trained weight: the weight and AdamW's two moments, each in float32
COMPLETE = "whole"  # name of the empty file that marks a checkpoint to resume from


class StopInTime(TrainerCallback):
    """Ends training, with a checkpoint, after the step in which a signal or the time limit asked for it.

    Attributes:
        reason: why training was ended early; "" if it was not.
    """

    def __init__(self) -> None:
        self.reason, self.began, self.longest = "", 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.longest = max(self.longest, time.monotonic() - self.began)
        reason = interrupts.stop_reason(self.longest)
        if state.global_step < state.max_steps and any_of(bool(reason), args.device):
            self.reason = reason or "another process of this job"
            control.should_save = control.should_training_stop = True


class TimedCheckpoints(TrainerCallback):
    """Asks for a checkpoint when ``minutes`` of training have passed since the start or the last checkpoint; 0 = never.

    Only the clock and the disk of the job's first process count, so that all processes of a job decide alike. A
    checkpoint that the disk has no room for is left out: training goes on, and only a resume would lose its work.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last, self.warned = 60 * minutes, 0.0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.seconds or state.global_step == state.max_steps:
            return
        due = rank() == 0 and time.monotonic() - self.last >= self.seconds and self._has_room(args.output_dir, model)
        if any_of(due, args.device):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def _has_room(self, folder: str, model: Any) -> bool:
        needed = CHECKPOINT_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
        existing = next(path for path in (Path(folder), *Path(folder).parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed and not self.warned:
            self.warned = True
            logger.warning(
                "%s: no checkpoint: it needs %.1f GB, and %.1f GB are free", folder, needed / 1e9, free / 1e9
            )
        return bool(free >= needed)


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of its files are on disk; one that a kill interrupts stays unmarked.

    A checkpoint with weights that are not finite is removed: nothing may resume from it, and it would count among the
    checkpoints that are kept.
    """

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        wait()  # every process of the job writes a file
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero:
            return
        if not all_finite(p for p in model.parameters() if p.requires_grad):
            logger.warning("%s: weights are not finite; removed", folder)
            shutil.rmtree(folder)
        else:
            for path in folder.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            (folder / COMPLETE).touch()


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that is marked and finite, or None; remove unmarked ones and newer ones with NaN."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        if (path / COMPLETE).is_file():
            complete[int(path.name.rsplit("-", 1)[1])] = path
        elif rank() == 0:
            shutil.rmtree(path)
    wait()
    chosen = next((complete[step] for step in sorted(complete, reverse=True) if _holds_finite(complete[step])), None)
    wait()  # every process has chosen before one of them removes anything
    for step, path in complete.items():
        if rank() == 0 and (chosen is None or step > int(chosen.name.rsplit("-", 1)[1])):
            logger.warning("%s: weights are not finite; removed", path)
            shutil.rmtree(path)
    wait()
    return str(chosen) if chosen else None


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether no value of any tensor is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _holds_finite(checkpoint: Path) -> bool:
    """Return whether the weights saved in a checkpoint are finite, read one tensor at a time."""
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if not all_finite(file.get_tensor(name) for name in file.keys()):  # noqa: SIM118  # safe_open is no mapping
                return False
    return True


def tracker_callbacks(report_to: str, folder: Path) -> list[TrainerCallback]:
    """Return TensorBoard's callback for ``folder``; other trackers are started by Trainer itself.

    Trainer's own TensorBoard callback would write into the checkpoints' folder, which is removed after the job.

    Raises:
        UserError: the tracker is not installed.
    """
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"jobs.report_to={report_to}: this tracker is not installed; pip install {report_to}")
    if report_to != "tensorboard" or rank() != 0:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))]  # type: ignore[no-untyped-call]
