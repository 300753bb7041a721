"""Progress of a training: steps on its bar or lines of the heartbeat, and the file metrics.jsonl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from oof.common.atomic_files import replacing
from oof.common.progress import Progress, duration
from oof.training.finite_steps import RECENT_LOSSES
from oof.training.held_out_loss import HELD_OUT_LOSS


class StepProgress(TrainerCallback):
    """Steps done, and on a bar the running loss, of a training with transformers' Trainer."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.resume_at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.shown.bar is not None and logs and "loss" in logs:
            self.shown.bar.set_postfix(loss=f"{logs['loss']:.3f}")


class TrainingProgress(StepProgress):
    """The same, with step, loss, speed and time left in the lines of the process's heartbeat.

    Args:
        shown: the progress of this training.
        tokens: (n,) tokens of each optimizer step, of all processes of the job.
    """

    def __init__(self, shown: Progress, tokens: NDArray[np.int64]) -> None:
        super().__init__(shown)
        self.until = np.concatenate([[0], np.cumsum(tokens)])
        self.first, self.last = (0, 0.0), (0, 0.0)  # step and time at the start of this process, and of the last line
        self.step, self.recent = 0, list[float]()  # a copy of the trainer's, because another thread reads them
        shown.describe = self._state

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step
        self.first = self.last = self.step, time.monotonic()
        super().on_train_begin(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step, self.recent = state.global_step, list(state.stateful_callbacks.get(RECENT_LOSSES, []))
        super().on_step_end(args, state, control)

    def _state(self) -> str:
        """Return step, mean loss since the last line (of at most 50 steps), tokens per second and the time left."""
        step, now = self.step, time.monotonic()
        at = f"step {step} of {len(self.until) - 1}"
        if step == self.last[0]:
            return f"{at}, {duration(now - self.first[1])} so far"
        recent = self.recent[-(step - self.last[0]) :]
        loss = f"{sum(recent) / len(recent):.4f}" if recent else "not finite"
        speed = (self.until[step] - self.until[self.last[0]]) / max(now - self.last[1], 1e-9)
        done = self.until[step] - self.until[self.first[0]]
        left = duration((self.until[-1] - self.until[step]) * (now - self.first[1]) / done)
        self.last = step, now
        return f"{at}, loss {loss}, {speed:.0f} tokens/s, {left} left"


class MetricsFile(TrainerCallback):
    """Appends every logged line to ``metrics.jsonl`` beside the job, to follow a training while it runs.

    A resumed training first removes the lines of later steps than its checkpoint's, which it repeats, and a last line
    that a kill cut. So no step is repeated. The held-out loss has lines of its own.

    Args:
        path: of the file.
        tokens: (n,) tokens of each optimizer step, of all processes of the job.
    """

    def __init__(self, path: Path, tokens: NDArray[np.int64]) -> None:
        self.path, self.until = path, np.concatenate([[0], np.cumsum(tokens)])
        self.last, self.earlier, self.began = (0, 0.0), 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        self.last = state.global_step, self.began
        if state.is_world_process_zero:
            kept = self._lines(state.global_step)
            self.earlier = kept[-1]["seconds"] if kept else 0.0
            with replacing(self.path) as temporary:
                temporary.write_text(
                    "".join(f"{json.dumps(line, sort_keys=True)}\n" for line in kept), encoding="utf-8"
                )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not (state.is_world_process_zero and logs):
            return
        line: dict[str, Any] = {}
        if "loss" in logs:
            line = {**state.log_history[-1], **self._speed(state.global_step), **gpu_use()}
        elif HELD_OUT_LOSS in logs:
            line = {"step": state.global_step, "epoch": state.epoch, "seconds": self._seconds(), **logs}
        if line:
            with self.path.open("a", encoding="utf-8") as file:  # closed at once, so that every line is written out
                file.write(f"{json.dumps(line, sort_keys=True)}\n")

    def _speed(self, step: int) -> dict[str, float]:
        (before, then), now = self.last, time.monotonic()
        self.last = step, now
        tokens = float(self.until[step] - self.until[before])
        return {"seconds": self._seconds(), "tokens_per_second": round(tokens / max(now - then, 1e-9), 1)}

    def _seconds(self) -> float:
        return round(self.earlier + time.monotonic() - self.began, 3)

    def _lines(self, last_step: int) -> list[dict[str, Any]]:
        """Return the lines of an earlier attempt up to a step; a line that cannot be read ends them."""
        lines: list[dict[str, Any]] = []
        if not self.path.is_file():
            return lines
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                usable = line["step"] <= last_step and line["seconds"] >= 0
            except (ValueError, KeyError, TypeError):
                break
            if not usable:
                break
            lines.append(line)
        return lines


def gpu_use() -> dict[str, float]:
    """Return the first process's peak memory in GB and its GPU's busy share; {} on a CPU.

    The busy share is NVML's: the share of the last moments in which a kernel ran. It is left out where the package
    nvidia-ml-py is not installed, or the driver does not tell.
    """
    if not torch.cuda.is_available():
        return {}
    use = {"gpu_memory_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}
    try:
        return {**use, "gpu_busy": torch.cuda.utilization() / 100}
    except Exception:  # pynvml's errors, of a package that may be missing; a log must not end a training
        return use
