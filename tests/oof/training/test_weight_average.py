"""Mean of a training's weights over its last steps: that of its checkpoints, also after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oof.config import Member
from oof.encoding.batches import TrainingSteps
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER


def member_of(average_last: float) -> Member:
    recipe = replace(MEMBER.train, checkpoint_steps=1, average_last=average_last)
    return replace(MEMBER, lora=replace(MEMBER.lora, dropout=0.1), train=recipe)


def train(member: Member, folder: Path) -> dict[str, torch.Tensor]:
    """Train on 32 battles (4 steps); return the trained weights by their names in a saved adapter."""
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return {name.replace(".default", "").replace(".modules_to_save", ""): value for name, value in trained.items()}


@pytest.mark.slow
def test_the_weights_are_the_mean_after_the_last_steps(tmp_path: Path) -> None:
    last = train(member_of(0.0), tmp_path / "last")
    third, fourth = (load_file(tmp_path / "last" / f"checkpoint-{i}" / "adapter_model.safetensors") for i in (3, 4))
    assert fourth.keys() == last.keys()
    assert all(torch.equal(value, fourth[name]) for name, value in last.items())
    mean = train(member_of(0.5), tmp_path / "mean")
    for name, value in mean.items():
        torch.testing.assert_close(value, (third[name] + fourth[name]) / 2)
    assert any((third[name] != value).any() for name, value in fourth.items())
    again = train(member_of(0.5), tmp_path / "mean")  # killed after the last checkpoint, it goes on from there
    assert all(torch.equal(again[name], value) for name, value in mean.items())
    one = train(member_of(0.1), tmp_path / "one")
    assert all(torch.equal(one[name], value) for name, value in last.items())


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(member_of(0.75), tmp_path / "whole")
    get = TrainingSteps.__getitem__

    def stopping_get(self: TrainingSteps, index: int) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return get(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingSteps, "__getitem__", stopping_get)
        with pytest.raises(KeyboardInterrupt):
            train(member_of(0.75), tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint-3" / "average.safetensors").is_file()
    resumed = train(member_of(0.75), tmp_path / "killed")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
