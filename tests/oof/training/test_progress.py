"""Progress of a training: its log lines, and metrics.jsonl over kills and resumes."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oof.common import progress as heartbeat_lines
from oof.common.progress import beat
from oof.encoding.batches import TrainingSteps
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training.losses import cross_entropy
from oof.training.progress import TrainingProgress, gpu_use
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

# 48 steps, so that every second one is logged; checkpoints lie between two log entries, too.
LONG = replace(MEMBER, train=replace(MEMBER.train, epochs=3, batch_battles=2, checkpoint_steps=5))


class Killed(TrainingSteps):
    """A plan that cannot be read past a step."""

    stop_at = 0

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        if index == self.stop_at:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def train(folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    steps, tokenizer = training_steps(LONG)
    model = add_adapters(load_base(LONG, tokenizer, 1), LONG.lora, 1)
    if stop_at is not None:
        steps.__class__, steps.stop_at = Killed, stop_at  # type: ignore[attr-defined]
    return train_classifier(model, LONG, steps, cross_entropy, folder / "checkpoints", 3, "fold 0")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the summary of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.mark.slow
def test_metrics_lines_are_the_history_with_time_and_speed(whole: tuple[Path, dict[str, Any]]) -> None:
    lines, history = lines_of(whole[0]), whole[1]["history"]
    assert [{key: line[key] for key in entry} for line, entry in zip(lines, history, strict=True)] == history
    assert [line["step"] for line in lines] == list(range(2, 49, 2))
    added = {"seconds", "tokens_per_second"} if not torch.cuda.is_available() else set(lines[0]) - set(history[0])
    assert all(set(line) == {"step", "epoch", "loss", "learning_rate", "grad_norm"} | added for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert all(line["tokens_per_second"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["", '{"epoch": 0.5, "lo'])
def test_a_resumed_training_has_the_history_and_the_metrics_lines_of_an_uninterrupted_one(
    whole: tuple[Path, dict[str, Any]], cut: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=9)
    assert (tmp_path / "checkpoints" / "checkpoint-5" / "whole").is_file()
    before = lines_of(tmp_path)
    assert [line["step"] for line in before] == [2, 4, 6, 8]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    resumed, expected = train(tmp_path), whole[1]
    assert resumed["history"] == expected["history"]
    lines = lines_of(tmp_path)
    assert lines[:2] == before[:2]
    assert [line["step"] for line in lines] == list(range(2, 49, 2))
    assert [line["loss"] for line in lines] == [entry["loss"] for entry in expected["history"]]
    assert lines[2]["seconds"] >= lines[1]["seconds"]


def test_lines_of_a_training_have_step_loss_speed_and_time_left(
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def step_with_a_line(self: TrainingProgress, *arguments: Any, **more: Any) -> None:
        on_step_end(self, *arguments, **more)
        beat()

    on_step_end = TrainingProgress.on_step_end
    monkeypatch.setattr(TrainingProgress, "on_step_end", step_with_a_line)
    caplog.set_level(logging.INFO, logger=heartbeat_lines.__name__)
    summary = train(tmp_path)
    pattern = re.compile(r"fold 0: step (\d+) of 48, loss (\d\.\d{4}), (\d+) tokens/s, (\d+ s) left")
    lines = [pattern.fullmatch(record.message) for record in caplog.records if record.name == heartbeat_lines.__name__]
    assert [int(line[1]) for line in lines if line] == list(range(1, 49))
    losses = [float(line[2]) for line in lines if line]
    assert [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)] == pytest.approx(
        [entry["loss"] for entry in summary["history"]], abs=1e-4
    )
    assert lines[-1] is not None
    assert lines[-1][4] == "0 s"
    assert summary["history"] == whole[1]["history"]


@pytest.mark.slow
def test_a_short_training_writes_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=heartbeat_lines.__name__)
    with heartbeat_lines.heartbeat("oof"):
        train(tmp_path)
    assert not [record for record in caplog.records if record.name == heartbeat_lines.__name__]


def test_gpu_use_is_left_out_on_a_cpu_and_where_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_use() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12_345_678_901)

    def refused() -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", refused)
    assert gpu_use() == {"gpu_memory_peak_gb": 12.346}
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 87)
    assert gpu_use() == {"gpu_memory_peak_gb": 12.346, "gpu_busy": 0.87}
