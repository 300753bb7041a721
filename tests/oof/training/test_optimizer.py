"""AdamW in float32 and 8 bits: groups of parameters, parity, resuming."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from oof.common.errors import UserError
from oof.config import Lora, Member, Train
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training.classifier_trainer import ClassifierTrainer
from oof.training.losses import cross_entropy
from oof.training.optimizer import build_optimizer
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

# Rank 64, so that most adapter matrices have 4,096 values or more and get 8-bit moments.
RECIPE = replace(MEMBER.train, batch_battles=4, checkpoint_steps=1)  # 8 steps
EXACT = replace(MEMBER, lora=Lora(rank=64, alpha=64, dropout=0.1), train=RECIPE)
EIGHT_BIT = replace(EXACT, train=replace(RECIPE, optimizer="adamw_8bit"))


def train(member: Member, folder: Path) -> tuple[torch.Tensor, list[float], dict]:
    """Return the trained weights, the losses, and the optimizer's saved state after the last step."""
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    summary = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    history: list[dict] = summary["history"]  # type: ignore[assignment]
    state = torch.load(folder / f"checkpoint-{len(steps)}" / "optimizer.pt", weights_only=True)
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return weights, [entry["loss"] for entry in history], state


def moments(state: dict) -> list[torch.Tensor]:
    """Return the tensors of an optimizer's state with one value per weight."""

    def tensors(value: object) -> list[torch.Tensor]:
        if isinstance(value, dict):
            return [tensor for inner in value.values() for tensor in tensors(inner)]
        return [value] if isinstance(value, torch.Tensor) and value.ndim > 1 else []

    return tensors(state["state"])


def test_the_head_has_its_own_rate_and_decay_follows_the_given_names() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "score": nn.Linear(2, 3, bias=False), "frozen": nn.Linear(1, 1)})
    model["frozen"].requires_grad_(False)
    recipe = Train(lr=0.1, head_lr=0.2, weight_decay=0.3)
    optimizer = build_optimizer(model, {"body.weight", "score.weight"}, recipe)
    groups = {(g["lr"], g["weight_decay"], *(tuple(p.shape) for p in g["params"])) for g in optimizer.param_groups}
    assert groups == {(0.1, 0.3, (2, 2)), (0.1, 0.0, (2,)), (0.2, 0.3, (3, 2))}


@pytest.mark.slow
def test_8_bit_moments_train_as_float32_ones_within_a_tolerance(tmp_path: Path) -> None:
    exact, losses, exact_state = train(EXACT, tmp_path / "exact")
    weights, eight_bit_losses, state = train(EIGHT_BIT, tmp_path / "eight")
    assert eight_bit_losses == pytest.approx(losses, abs=2e-2)
    difference = (weights - exact).abs()
    assert 0 < difference.mean() < 0.1 * RECIPE.lr * len(losses)
    eight = sum(t.numel() for t in moments(state) if t.dtype == torch.uint8)
    assert eight > 0.9 * sum(t.numel() for t in moments(exact_state))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_killed_job_with_8_bit_moments_resumes_to_identical_weights(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = replace(EIGHT_BIT, dtype=dtype)
    expected, *_ = train(member, tmp_path / "whole")
    accumulate = ClassifierTrainer._accumulate

    def interrupted(self: ClassifierTrainer, *args: object) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return accumulate(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_accumulate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(member, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint-3" / "whole").is_file()
    assert torch.equal(train(member, tmp_path / "killed")[0], expected)


def test_without_bitsandbytes_the_setting_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="optimizer=adamw_8bit needs bitsandbytes"):
        build_optimizer(nn.Linear(2, 2), (), EIGHT_BIT.train)
