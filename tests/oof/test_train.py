"""Invariances of training: how a step is cut, and being killed, change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oof import bases
from oof.adapters import add_adapters
from oof.batches import TrainingSteps
from oof.config import Lora, Member, Prompts, Train
from oof.jobs import both_orders
from oof.losses import cross_entropy
from oof.models import load_base, load_tokenizer
from oof.prompts import encode_battles
from oof.train import train_classifier

ROOT = Path(__file__).resolve().parents[2]
MEMBER = Member(
    checkpoint=str(ROOT / "configs" / "bases" / "tiny-llama"),
    dtype="float32",
    lora=Lora(rank=4, alpha=8),
    train=Train(epochs=1, lr=1e-3, head_lr=1e-3, batch_battles=8, tokens_per_batch=100_000, warmup_share=0.0),
)


def train(member: Member, folder: Path, stop_at: int | None = None) -> torch.Tensor:
    """Train on 32 battles (4 steps); return all trainable weights."""
    tokenizer = load_tokenizer(member.checkpoint)
    table, _, _ = bases.transcripts(32, 5)
    encoded = encode_battles(table, tokenizer, Prompts(max_tokens=256), 256)
    targets = both_orders(np.random.default_rng(0).dirichlet(np.ones(3), size=32))
    steps = TrainingSteps(encoded, targets, np.ones(32), member.train, tokenizer.pad_token_id, seed=2)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
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
    train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_cutting_a_step_into_micro_batches_changes_nothing(tmp_path: Path) -> None:
    one = train(MEMBER, tmp_path / "one")
    many = train(replace(MEMBER, train=replace(MEMBER.train, tokens_per_batch=400)), tmp_path / "many")
    apart = (one - many).abs()
    # Adam divides by the gradient's size, so where a gradient is mere rounding its sign, and one step, may differ.
    assert (apart > 2e-5).float().mean() < 0.01
    assert apart.max() < 1e-3


def test_a_killed_job_resumes_to_identical_weights(tmp_path: Path) -> None:
    member = replace(MEMBER, lora=replace(MEMBER.lora, dropout=0.1), train=replace(MEMBER.train, checkpoint_steps=1))
    whole = train(member, tmp_path / "whole")
    train(member, tmp_path / "killed", stop_at=2)
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    assert torch.equal(train(member, tmp_path / "killed"), whole)


def test_swapping_every_battle_and_its_label_gives_the_same_training_set() -> None:
    targets = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    orders = both_orders(targets)
    np.testing.assert_allclose(orders[:, ::-1], both_orders(targets[:, [1, 0, 2]]))
    blocks = both_orders(np.concatenate([targets, targets], axis=1))
    np.testing.assert_allclose(blocks, np.concatenate([orders, orders], axis=2))
