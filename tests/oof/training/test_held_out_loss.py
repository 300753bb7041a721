"""Held-out loss during training: it is the loss of the model at that step, and training does not notice it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaModel, TrainerCallback

from oof.metrics import log_loss, softmax
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training import trainer
from oof.training.held_out_loss import HeldOut, sample
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import encoded_transcripts, training_steps
from tests.fixtures.tiny_models import MEMBER

DROPOUT = replace(MEMBER, lora=replace(MEMBER.lora, dropout=0.1))
LABELS = np.array([0, 1, 2, 0, 1, 2, 2])


def train(folder: Path, monitored: bool) -> tuple[Any, dict[str, Any], HeldOut, Any]:
    steps, tokenizer = training_steps(DROPOUT)
    model = add_adapters(load_base(DROPOUT, tokenizer, 1), DROPOUT.lora, 1)
    held_out = HeldOut(encoded_transcripts(40, tokenizer).take(np.arange(33, 40)), LABELS)
    rest = (folder / "checkpoints", 3, "fold 0", "none", held_out if monitored else None)
    return model, train_classifier(model, DROPOUT, steps, cross_entropy, *rest), held_out, tokenizer


def trained(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_weights_and_history_are_the_same_with_and_without_it(tmp_path: Path) -> None:
    model, summary, _, _ = train(tmp_path / "without", monitored=False)
    watched, watched_summary, _, _ = train(tmp_path / "with", monitored=True)
    assert torch.equal(trained(watched), trained(model))
    assert watched_summary["history"] == summary["history"]
    assert watched.training
    assert not any("held_out_loss" in line for line in lines_of(tmp_path / "without"))
    assert [line["step"] for line in lines_of(tmp_path / "with") if "held_out_loss" in line] == [1, 2, 3, 4]


def test_it_is_the_log_loss_of_the_mean_of_both_orders(tmp_path: Path) -> None:
    model, _, held_out, tokenizer = train(tmp_path, monitored=True)
    logits = predict_logits(model, DROPOUT, held_out.encoded, tokenizer.pad_token_id, "test")
    assert lines_of(tmp_path)[-1]["held_out_loss"] == pytest.approx(
        log_loss(softmax(logits.mean(axis=1)), LABELS), abs=1e-5
    )


def test_training_goes_on_where_a_held_out_logit_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = LlamaModel.forward

    def broken_on_held_out_battles(self: LlamaModel, *args: Any, **more: Any) -> Any:
        output = forward(self, *args, **more)
        if not self.training:
            output.last_hidden_state.mul_(torch.nan)
        return output

    monkeypatch.setattr(LlamaModel, "forward", broken_on_held_out_battles)
    model, _, _, _ = train(tmp_path, monitored=True)
    assert bool(trained(model).isfinite().all())
    assert not any("held_out_loss" in line for line in lines_of(tmp_path))
    assert caplog.messages.count("step 4: the held-out loss is not finite, and is left out") == 1


class Tracker(TrainerCallback):
    """Keeps what a tracker's callback is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "held_out_loss" in logs:
            self.logged.append((state.global_step, logs["held_out_loss"]))


def test_the_tracker_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker()
    monkeypatch.setattr(trainer, "tracker_callbacks", lambda *_: [tracker])
    train(tmp_path, monitored=True)
    lines = [line for line in lines_of(tmp_path) if "held_out_loss" in line]
    assert tracker.logged == [(line["step"], line["held_out_loss"]) for line in lines]
    assert len(lines) == 4


def test_the_sample_is_fixed_and_has_no_repeats() -> None:
    rows = np.arange(100, 150)
    assert sample(rows, 7).tolist() == sample(rows, 7).tolist()
    assert len(np.unique(sample(rows, 7))) == 7
    assert sample(rows, 500).tolist() == rows.tolist()
