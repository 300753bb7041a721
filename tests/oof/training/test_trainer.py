"""Invariances of training: micro-batches, a kill and out-of-memory halving do not change the weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaModel

from oof.common.errors import UserError
from oof.config import Member
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.model.classifier import load_base, load_classifier, load_tokenizer
from oof.model.lora import add_adapters, save_classifier
from oof.model.optimizations import checkpoint_trainable_layers
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import encoded_transcripts, training_steps
from tests.fixtures.tiny_models import MEMBER, save_tiny


def train(
    member: Member,
    folder: Path,
    stop_at: int | None = None,
    summary: dict | None = None,
    checkpointing: bool = False,
) -> torch.Tensor:
    """Train on 32 battles (4 steps); return all trainable weights, and fill ``summary``."""
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    if checkpointing:
        checkpoint_trainable_layers(model)
    if stop_at is not None:
        whole = type(steps).__getitem__

        def interrupted(self: TrainingSteps, index: int) -> list[dict[str, torch.Tensor]]:
            if index == stop_at:
                raise KeyboardInterrupt
            return whole(self, index)

        steps.__class__ = type("Interrupted", (TrainingSteps,), {"__getitem__": interrupted})
        with pytest.raises(KeyboardInterrupt):
            train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
        return torch.empty(0)
    trained = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    if summary is not None:
        summary |= trained
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_cutting_a_step_into_micro_batches_changes_nothing(tmp_path: Path) -> None:
    one = train(MEMBER, tmp_path / "one")
    many = train(replace(MEMBER, train=replace(MEMBER.train, tokens_per_batch=400)), tmp_path / "many")
    difference = (one - many).abs()
    # Adam divides by the gradient's size: where a gradient is only rounding, its sign and so one step may differ.
    assert (difference > 2e-5).float().mean() < 0.01
    assert difference.max() < 1e-3


def test_a_killed_job_resumes_to_identical_weights(tmp_path: Path) -> None:
    member = replace(MEMBER, lora=replace(MEMBER.lora, dropout=0.1), train=replace(MEMBER.train, checkpoint_steps=1))
    whole = train(member, tmp_path / "whole")
    train(member, tmp_path / "killed", stop_at=2)
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    assert torch.equal(train(member, tmp_path / "killed"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_steps", [0, 2])
def test_checkpoints_by_time_change_no_weight_and_a_killed_job_resumes_from_the_last(
    checkpoint_steps: int, tmp_path: Path
) -> None:
    never = replace(MEMBER.train, checkpoint_steps=checkpoint_steps, checkpoint_minutes=0.0)
    dropout = replace(MEMBER, lora=replace(MEMBER.lora, dropout=0.1))
    whole = train(replace(dropout, train=never), tmp_path / "never")
    always = replace(dropout, train=replace(never, checkpoint_minutes=1e-9))
    assert torch.equal(train(always, tmp_path / "always"), whole)
    expected = {"checkpoint-2", "checkpoint-3"} if not checkpoint_steps else {"checkpoint-3", "checkpoint-4"}
    assert {path.parent.name for path in (tmp_path / "always").glob("checkpoint-*/whole")} == expected
    train(always, tmp_path / "killed", stop_at=3)
    assert (tmp_path / "killed" / "checkpoint-3" / "whole").is_file()
    assert torch.equal(train(always, tmp_path / "killed"), whole)


def test_a_short_training_writes_no_checkpoint_by_default(tmp_path: Path) -> None:
    assert MEMBER.train.checkpoint_steps == 0 < MEMBER.train.checkpoint_minutes
    train(MEMBER, tmp_path / "short")
    assert not list((tmp_path / "short").glob("checkpoint-*"))


def test_a_timed_checkpoint_without_room_on_the_disk_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    member = replace(MEMBER, train=replace(MEMBER.train, checkpoint_minutes=1e-9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    train(member, tmp_path / "full")
    assert not list((tmp_path / "full").glob("checkpoint-*"))
    assert sum("no checkpoint" in record.message for record in caplog.records) == 1


def test_running_out_of_memory_halves_the_batch_and_keeps_the_optimisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(MEMBER, tmp_path / "whole")
    forward, summary = LlamaModel.forward, {}

    def short_of_memory(self: LlamaModel, input_ids: torch.Tensor, **more: object) -> object:
        if input_ids.numel() > 600:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(self, input_ids, **more)

    monkeypatch.setattr(LlamaModel, "forward", short_of_memory)
    small = train(
        replace(MEMBER, train=replace(MEMBER.train, tokens_per_batch=4096)), tmp_path / "small", summary=summary
    )
    assert summary["oom_halvings"] == 3
    assert summary["tokens_per_batch"] == 512
    difference = (whole - small).abs()
    assert (difference > 2e-5).float().mean() < 0.01
    assert difference.max() < 1e-3


def test_a_sequence_that_does_not_fit_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: LlamaModel, input_ids: torch.Tensor, **more: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(LlamaModel, "forward", no_memory)
    with pytest.raises(UserError, match=r"longest sequence of step 0; set quantise=nf4, or lower prompts\.max_tokens"):
        train(MEMBER, tmp_path)


@pytest.fixture
def too_little_memory_without_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes of a Llama run out of memory from the third (the second step's first), unless its layers recompute."""
    forward, passes = LlamaModel.forward, []

    def limited(self: LlamaModel, input_ids: torch.Tensor, **more: object) -> object:
        passes.append(1)
        if len(passes) > 2 and not self.layers[-1].gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(self, input_ids, **more)

    monkeypatch.setattr(LlamaModel, "forward", limited)


@pytest.mark.parametrize("lora", [pytest.param({}, marks=pytest.mark.slow), {"layers": "upper_half"}])
def test_a_lack_of_memory_at_the_smallest_batch_switches_recomputation_on(
    lora: dict, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    member = replace(MEMBER, lora=replace(MEMBER.lora, **lora))
    expected_summary, summary = {}, {}
    expected = train(member, tmp_path / "from-the-start", summary=expected_summary, checkpointing=True)
    request.getfixturevalue("too_little_memory_without_recomputation")
    weights = train(member, tmp_path / "switched", summary=summary)
    assert torch.equal(weights, expected)
    assert summary["oom_halvings"] > 0
    assert (summary["oom_checkpointing_step"], expected_summary["oom_checkpointing_step"]) == (1, None)
    assert summary["checkpointed_layers"] == expected_summary["checkpointed_layers"] == (2 if lora else 4)
    assert summary["tokens_per_batch"] == member.train.tokens_per_batch  # large batches fit again
    assert any("going on with activation checkpointing" in record.message for record in caplog.records)


@pytest.mark.usefixtures("too_little_memory_without_recomputation")
def test_recomputation_that_is_off_stays_off_and_the_error_names_the_setting(tmp_path: Path) -> None:
    member = replace(MEMBER, train=replace(MEMBER.train, activation_checkpointing="off"))
    with pytest.raises(UserError, match=r"longest sequence of step 1; set train\.activation_checkpointing=auto"):
        train(member, tmp_path)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_trains_and_its_adapter_loads_again(kind: str, tmp_path: Path) -> None:
    checkpoint = save_tiny("llama", tmp_path / "base", scale=1.0, hidden_size=64, intermediate_size=128)
    member = replace(MEMBER, checkpoint=checkpoint, quantise=kind, train=replace(MEMBER.train, lr=5e-3, head_lr=1e-2))
    tokenizer = load_tokenizer(checkpoint)
    encoded = encoded_transcripts(32, tokenizer)
    targets = targets_in_both_orders(np.eye(3)[np.zeros(32, dtype=int) + 2])
    steps = TrainingSteps(encoded, targets, np.ones(32), member.train, tokenizer.pad_token_id, seed=2)
    base = load_base(member, tokenizer, 1)
    assert base.score.weight.dtype == torch.float32  # never quantised
    assert {type(m).__name__ for m in base.model.modules()} & {"Linear4bit", "Linear8bitLt"}
    model = add_adapters(base, member.lora, 1)
    history = train_classifier(model, member, steps, cross_entropy, tmp_path / "training", 3, "test")["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    save_classifier(model, tmp_path / "adapter", member)

    def score(model: Any, member: Member) -> np.ndarray:
        return predict_logits(model, member, encoded, tokenizer.pad_token_id, "test")

    again = score(load_classifier(member, tmp_path / "adapter", tokenizer, seed=9), member)
    np.testing.assert_allclose(again, score(model, member), atol=1e-4)
    unquantised = replace(member, quantise="none")
    with pytest.raises(UserError, match=f"quantise={kind}, now it is none"):
        load_classifier(unquantised, tmp_path / "adapter", tokenizer, seed=9)
    (tmp_path / "adapter" / "arena.json").unlink()
    drift = np.abs(score(load_classifier(unquantised, tmp_path / "adapter", tokenizer, seed=9), unquantised) - again)
    assert 0 < drift.mean() < 0.5  # similar logits, but not the same


def test_the_gradient_of_a_step_is_that_of_one_big_batch() -> None:
    tokenizer = load_tokenizer(MEMBER.checkpoint)
    encoded = encoded_transcripts(24, tokenizer)
    targets = targets_in_both_orders(np.random.default_rng(0).dirichlet(np.ones(3), size=24))
    weights = np.random.default_rng(1).uniform(0.2, 2, 24)
    model = add_adapters(load_base(MEMBER, tokenizer, 1), MEMBER.lora, 1)

    def gradient(budget: int, ranks: int) -> torch.Tensor:
        model.zero_grad()
        for rank in range(ranks):
            recipe = replace(MEMBER.train, tokens_per_batch=budget)
            steps = TrainingSteps(encoded, targets, weights, recipe, tokenizer.pad_token_id, seed=2)
            steps.rank, steps.ranks = rank, ranks
            for micro in steps[1]:
                loss = cross_entropy(model(input_ids=micro["input_ids"]).logits, micro["targets"])
                (loss * micro["weights"]).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    one = gradient(1_000_000, 1)
    for budget, ranks in ((200, 1), (500, 2), (1_000_000, 5), (100, 20)):
        torch.testing.assert_close(gradient(budget, ranks), one, atol=1e-6, rtol=1e-3)
