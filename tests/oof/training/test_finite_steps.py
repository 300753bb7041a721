"""A non-finite loss or gradient is skipped like a step without gradients; too many end the training in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from oof.common.errors import UserError
from oof.config import Member
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training.classifier_trainer import ClassifierTrainer
from oof.training.finite_steps import FiniteSteps, recorded
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

# 32 battles, 2 a step: 16 steps, with a checkpoint after each.
LONG = replace(MEMBER, train=replace(MEMBER.train, batch_battles=2, checkpoint_steps=1))
BAD = 3  # number of the injected step, from 0

Spoil = Callable[[ClassifierTrainer, torch.Tensor], torch.Tensor]


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil | None = None) -> tuple[torch.Tensor, dict]:
    """Return the trained weights and the summary; ``spoil`` changes loss or gradients after each accumulation."""
    member: Member = LONG
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    accumulate = ClassifierTrainer._accumulate
    with monkeypatch.context() as patch:
        if spoil is not None:
            patch.setattr(ClassifierTrainer, "_accumulate", lambda self, *a: spoil(self, accumulate(self, *a)))
        summary = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), summary


def nan_loss(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan") if trainer.state.global_step == BAD else loss


def infinite_gradient(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step == BAD:
        trainer.trained[0].grad[0] = float("inf")
    return loss


def no_gradient(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step == BAD:
        for parameter in trainer.trained:
            parameter.grad = None
    return loss


def always_nan_from(step: int) -> Spoil:
    return lambda trainer, loss: loss * float("nan") if trainer.state.global_step >= step else loss


@pytest.mark.parametrize("spoil", [nan_loss, pytest.param(infinite_gradient, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_skipped(spoil: Spoil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, clean = train(tmp_path / "dropped", monkeypatch, no_gradient)
    weights, summary = train(tmp_path / "skipped", monkeypatch, spoil)
    assert torch.equal(weights, expected)
    assert clean["skipped_steps"] == []
    assert summary["skipped_steps"] == [BAD]


@pytest.mark.slow
def test_a_skipped_step_is_still_known_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == BAD + 4:
            raise KeyboardInterrupt
        return nan_loss(trainer, loss)

    expected, _ = train(tmp_path / "whole", monkeypatch, nan_loss)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", monkeypatch, stopped)
    weights, summary = train(tmp_path / "stopped", monkeypatch)
    assert torch.equal(weights, expected)
    assert summary["skipped_steps"] == [BAD]


def test_too_many_in_a_row_end_the_job_and_the_next_call_resumes_from_a_finite_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"test: loss nan and gradient norm .* in step 8 of 16.*train\.lr"):
        train(tmp_path / "bad", monkeypatch, always_nan_from(5))
    kept = {int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("bad/checkpoint-*")}
    assert max(kept) == 8  # the skipped steps 5 to 7 changed no weight
    weights, summary = train(tmp_path / "bad", monkeypatch)
    assert torch.isfinite(weights).all()
    assert summary["skipped_steps"] == [5, 6, 7]


def ruin_weights_at(step: int, stop: int | None = None) -> Spoil:
    """Return what makes a weight NaN after the gradients of a step, as a fault of the hardware would."""

    def ruin(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == step:
            trainer.trained[0].data[0] = float("nan")
        if trainer.state.global_step == stop:
            raise KeyboardInterrupt
        return loss

    return ruin


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [BAD + 1, BAD + 2, None])
def test_a_checkpoint_with_weights_that_are_not_finite_is_removed(
    interrupted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(tmp_path / "whole", monkeypatch)
    with pytest.raises((KeyboardInterrupt, UserError)):
        train(tmp_path / "ruined", monkeypatch, ruin_weights_at(BAD, interrupted))
    assert (tmp_path / "ruined" / f"checkpoint-{BAD}").is_dir()
    assert not (tmp_path / "ruined" / f"checkpoint-{BAD + 1}").exists()
    assert torch.equal(train(tmp_path / "ruined", monkeypatch)[0], expected)


@pytest.mark.slow
def test_a_marked_checkpoint_of_an_older_version_that_holds_nan_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "old", monkeypatch, ruin_weights_at(-1, stop=BAD))
    path = tmp_path / "old" / f"checkpoint-{BAD}" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, path)
    assert torch.equal(train(tmp_path / "old", monkeypatch)[0], expected)


def test_weights_that_are_not_finite_at_the_end_are_not_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="trained weights are not finite"):
        train(tmp_path, monkeypatch, ruin_weights_at(15))


@pytest.mark.slow
def test_a_loss_spike_is_logged_and_counted_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, clean = train(tmp_path / "clean", monkeypatch)

    def spike(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
        return loss * 9 if trainer.state.global_step == 12 else loss

    weights, summary = train(tmp_path / "spike", monkeypatch, spike)
    assert (clean["loss_spikes"], summary["loss_spikes"]) == (0, 1)
    messages = [record.message for record in caplog.records if "the recent median is" in record.message]
    assert [message.split(": loss")[0] for message in messages] == ["test: step 12"]
    assert torch.equal(weights, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [11, 14])
def test_loss_spikes_are_found_as_before_after_a_resume(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spike(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
        return loss * 9 if trainer.state.global_step == 12 else loss

    def stopped(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == stop:
            raise KeyboardInterrupt
        return spike(trainer, loss)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, monkeypatch, stopped)
    assert train(tmp_path, monkeypatch, spike)[1]["loss_spikes"] == 1


def test_a_spike_is_8_deviations_above_the_median_of_the_last_50_losses() -> None:
    guard = FiniteSteps([], "test")
    state = TrainerState()
    deviations = [0.1, -0.1] * 30  # median 0, median absolute deviation 0.1
    for loss in [5.0, *(1 + d for d in deviations), 1.79, 1.81]:
        guard.check(torch.tensor(loss), state)
        state.global_step += 1
    assert [entry["loss_spike"] for entry in state.log_history] == [62]
    assert recorded(state, "loss_spike") == [62]
