"""Training in float16 with loss scaling: agrees with float32, recovers from overflows, resumes, and knows its limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaModel

from oof.common.errors import UserError
from oof.config import Lora, Member
from oof.model.classifier import load_base, load_classifier
from oof.model.lora import add_adapters, save_classifier
from oof.training.classifier_trainer import ClassifierTrainer
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.demo_run import BASES
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

HALF = replace(MEMBER, dtype="float16")
LARGE = 2.0**24  # a scale at which gradients of these models overflow


def train(member: Member, folder: Path) -> tuple[torch.Tensor, dict]:
    """Train on 32 battles (4 steps unless the member says otherwise); return the trained weights and the summary."""
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    summary = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), summary


def losses(summary: dict) -> list[float]:
    return [entry["loss"] for entry in summary["history"]]


@pytest.fixture
def large_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training start with a scale at which gradients overflow."""
    made = ClassifierTrainer.__init__

    def with_large_scale(self: ClassifierTrainer, *args: object, **more: object) -> None:
        made(self, *args, **more)  # type: ignore[arg-type]
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            self.accelerator.scaler.load_state_dict(state | {"scale": LARGE})

    monkeypatch.setattr(ClassifierTrainer, "__init__", with_large_scale)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny-gemma2", "tiny-llama"])
@pytest.mark.parametrize("rank", [pytest.param(4, marks=pytest.mark.slow), 0])
def test_float16_trains_as_float32_within_a_tolerance(
    base: str, rank: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = replace(MEMBER, checkpoint=str(BASES / base), lora=Lora(rank=rank, alpha=8))
    exact, exact_summary = train(member, tmp_path / "float32")
    rounded, summary = train(replace(member, dtype="float16"), tmp_path / "float16")
    assert losses(summary) == pytest.approx(losses(exact_summary), abs=2e-3)
    difference = (rounded - exact).abs()
    assert 0 < difference.mean() < 5e-5
    # Adam divides by the gradient's size: where a gradient is only rounding, its sign and so one step may differ.
    assert difference.max() < 5e-3
    assert summary["overflow_steps"] == summary["skipped_steps"] == []
    assert summary["loss_scale"] == 2.0**16
    assert "loss_scale" not in exact_summary
    assert [record.message for record in caplog.records if "float16" in record.message] == [
        "test: dtype=float16 is slow on a CPU; dtype=auto takes what the hardware computes"
    ]


@pytest.mark.usefixtures("large_scale")
def test_an_overflow_lowers_the_scale_and_costs_its_step_alone(tmp_path: Path) -> None:
    recipe = replace(MEMBER.train, batch_battles=2, schedule="constant")  # 16 steps
    weights, summary = train(replace(HALF, train=recipe), tmp_path / "overflow")
    skipped = len(summary["overflow_steps"])
    assert summary["overflow_steps"] == list(range(skipped))
    assert 1 <= skipped <= 10
    assert summary["loss_scale"] == LARGE / 2**skipped
    assert summary["skipped_steps"] == []

    def without_first_steps(self: ClassifierTrainer, *args: object) -> torch.Tensor:
        loss = accumulate(self, *args)
        if self.state.global_step < skipped:
            for parameter in self.trained:
                parameter.grad = None
        return loss

    accumulate = ClassifierTrainer._accumulate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_accumulate", without_first_steps)
        expected, _ = train(replace(MEMBER, train=recipe), tmp_path / "dropped")
    difference = (weights - expected).abs()
    assert difference.mean() < 1e-4
    assert difference.max() < 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures("large_scale")
def test_the_schedule_waits_while_steps_overflow(tmp_path: Path) -> None:
    recipe = replace(MEMBER.train, batch_battles=2, schedule="linear")  # 16 steps
    _, summary = train(replace(HALF, train=recipe), tmp_path)
    rates = [entry["learning_rate"] for entry in summary["history"]]
    skipped = len(summary["overflow_steps"])
    taken = [recipe.lr * (1 - step / 16) for step in range(16 - skipped)]
    assert skipped > 0
    assert rates == pytest.approx([recipe.lr] * skipped + taken)


@pytest.mark.slow
@pytest.mark.usefixtures("large_scale")
@pytest.mark.parametrize("stop", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_killed_job_resumes_to_identical_weights_and_scale(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(MEMBER.train, batch_battles=2, checkpoint_steps=1)
    member = replace(HALF, train=recipe, lora=replace(HALF.lora, dropout=0.1))
    expected, whole = train(member, tmp_path / "whole")
    accumulate = ClassifierTrainer._accumulate

    def interrupted(self: ClassifierTrainer, *args: object) -> torch.Tensor:
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return accumulate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_accumulate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(member, tmp_path / "killed")
    weights, resumed = train(member, tmp_path / "killed")
    assert whole["overflow_steps"]
    assert torch.equal(weights, expected)
    for name in ("overflow_steps", "loss_scale", "skipped_steps"):
        assert resumed[name] == whole[name]


@pytest.mark.slow
def test_an_overflow_of_the_forward_pass_ends_in_a_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaModel.forward

    def too_large(self: LlamaModel, *args: object, **more: object) -> object:
        output = forward(self, *args, **more)
        output.last_hidden_state = output.last_hidden_state * 1e5  # beyond 65,504
        return output

    monkeypatch.setattr(LlamaModel, "forward", too_large)
    with pytest.raises(UserError, match="exceeds float16's range: set dtype=bfloat16 or dtype=float32"):
        train(HALF, tmp_path)


@pytest.mark.slow
def test_gradients_that_overflow_at_the_lowest_scale_are_bad_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = ClassifierTrainer._accumulate

    def infinite(self: ClassifierTrainer, *args: object) -> torch.Tensor:
        loss = accumulate(self, *args)
        self.trained[0].grad[0] = float("inf")
        return loss

    monkeypatch.setattr(ClassifierTrainer, "_accumulate", infinite)
    member = replace(HALF, train=replace(HALF.train, batch_battles=1))  # 32 steps
    with pytest.raises(UserError, match=r"in step 19 of 32; 4 steps were not finite"):  # 16 lower the scale to 1
        train(member, tmp_path)


@pytest.mark.slow
def test_the_gradients_are_clipped_unscaled(tmp_path: Path) -> None:
    recipe = replace(MEMBER.train, max_grad_norm=0.01)
    exact, exact_summary = train(replace(MEMBER, train=recipe), tmp_path / "float32")
    rounded, summary = train(replace(HALF, train=recipe), tmp_path / "float16")
    norms, exact_norms = ([entry["grad_norm"] for entry in s["history"]] for s in (summary, exact_summary))
    assert norms == pytest.approx(exact_norms, rel=2e-2)
    assert (rounded - exact).abs().mean() < 5e-5


@pytest.mark.slow
def test_a_classifier_trained_in_float16_scores_as_it_was_trained(tmp_path: Path) -> None:
    steps, tokenizer = training_steps(HALF)
    model = add_adapters(load_base(HALF, tokenizer, 1), HALF.lora, 1)
    train_classifier(model, HALF, steps, cross_entropy, tmp_path / "training", 3, "test")
    save_classifier(model, tmp_path / "adapter", HALF)
    ids = steps[0][0]["input_ids"]
    loaded = load_classifier(HALF, tmp_path / "adapter", tokenizer, 9)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
