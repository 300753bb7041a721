"""GPU tests: training in float16, with 8-bit moments, through a bad step, and after an interruption.

``make test-gpu`` runs them on a CUDA GPU; on a CPU they run with narrower models. A GPU adds up gradients in an order
that may change from run to run, so weights are compared with a tolerance; the CPU's tests compare bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oof.config import Lora, Member, Train
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.model.classifier import load_base, load_tokenizer
from oof.model.lora import add_adapters
from oof.training.classifier_trainer import ClassifierTrainer
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.real_heads import FAMILIES, REAL_HEADS
from tests.fixtures.tiny_classifiers import encoded_transcripts
from tests.fixtures.tiny_models import save_tiny

ON_A_CPU = () if torch.cuda.is_available() else (pytest.mark.slow,)
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), *ON_A_CPU]

RECIPE = Train(
    lr=5e-4, head_lr=2e-3, batch_battles=4, tokens_per_batch=4096, schedule="constant", warmup_share=0.0,
    checkpoint_steps=1,
)  # fmt: skip
BAD = 2  # number of the injected step, from 0, of 6
NEAR = 5e-5  # mean difference of weights: a tenth of one step of Adam

Change = Callable[[ClassifierTrainer, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """Return a member in float16."""
    # Without a pad token the model has no embedding of zeros. The tokenizer's first token has the same number, and its
    # gradients would grow a thousandfold in each norm.
    shape = REAL_HEADS[request.param] | {"pad_token_id": None}
    checkpoint = save_tiny(request.param, tmp_path_factory.mktemp(request.param), 2.0, **shape)
    # Rank 64, so that matrices have the 4,096 values from which on moments are in 8 bits.
    return Member(checkpoint=checkpoint, dtype="float16", lora=Lora(rank=64, alpha=64), train=RECIPE)


def train(member: Member, folder: Path, change: Change | None = None) -> tuple[torch.Tensor, list[float], dict]:
    """Train on 24 battles that are all ties, and return weights, losses and the summary.

    Args:
        member: trained in 6 steps.
        folder: for checkpoints.
        change: of loss or gradients after each accumulation.
    """
    tokenizer = load_tokenizer(member.checkpoint)
    ties = targets_in_both_orders(np.eye(3)[np.full(24, 2)])
    encoded = encoded_transcripts(24, tokenizer)
    steps = TrainingSteps(encoded, ties, np.ones(24), member.train, tokenizer.pad_token_id, seed=2)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    accumulate = ClassifierTrainer._accumulate
    with pytest.MonkeyPatch.context() as patch:
        if change is not None:
            patch.setattr(ClassifierTrainer, "_accumulate", lambda self, *a: change(self, accumulate(self, *a)))
        summary = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    weights = torch.cat([p.detach().float().cpu().flatten() for p in model.parameters() if p.requires_grad])
    assert torch.isfinite(weights).all()
    history: list[dict] = summary["history"]  # type: ignore[assignment]
    return weights, [entry["loss"] for entry in history], summary


@pytest.fixture(scope="module")
def in_float16(member: Member, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[float], dict]:
    return train(member, tmp_path_factory.mktemp("float16"))


def falls(losses: list[float]) -> bool:
    return losses[-1] < 0.8 * losses[0]


def distance(weights: torch.Tensor, others: torch.Tensor) -> float:
    return float((weights - others).abs().mean())


def without_gradients(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step == BAD:
        for parameter in trainer.trained:
            parameter.grad = None
    return loss


def nan(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step != BAD:
        return loss
    for parameter in trainer.trained:
        parameter.grad = torch.full_like(parameter, float("nan"))
    return loss * float("nan")


def overflow(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step == BAD:
        trainer.trained[0].grad[0] = float("inf")  # type: ignore[index]
    return loss


def interruption(trainer: ClassifierTrainer, loss: torch.Tensor) -> torch.Tensor:
    if trainer.state.global_step == BAD + 2:
        raise KeyboardInterrupt
    return overflow(trainer, loss)


def test_float16_follows_float32(member: Member, in_float16: tuple, tmp_path: Path) -> None:
    weights, losses, summary = in_float16
    exact, exact_losses, _ = train(replace(member, dtype="float32"), tmp_path)
    assert falls(losses)
    assert losses == pytest.approx(exact_losses, abs=0.1)
    assert 0 < distance(weights, exact) < NEAR
    assert summary["overflow_steps"] == summary["skipped_steps"] == []
    assert summary["loss_scale"] == 2.0**16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_nan_is_skipped(dtype: str, member: Member, tmp_path: Path) -> None:
    changed = replace(member, dtype=dtype)
    _, losses, summary = train(changed, tmp_path, nan)
    assert summary["skipped_steps"] == [BAD]
    assert falls(losses)
    # In float16 the scaler has skipped the step, too, and halved the scale.
    assert summary.get("loss_scale") == {"float32": None, "float16": 2.0**15}[dtype]


def test_a_skipped_step_is_like_one_without_gradients(member: Member, tmp_path: Path) -> None:
    exact = replace(member, dtype="float32")
    expected, *_ = train(exact, tmp_path / "dropped", without_gradients)
    weights, *_ = train(exact, tmp_path / "skipped", nan)
    whole, *_ = train(exact, tmp_path / "whole")
    assert distance(weights, expected) < 0.1 * distance(weights, whole)


def test_an_overflow_halves_the_scale_and_an_interrupted_training_resumes_with_it(
    member: Member, tmp_path: Path
) -> None:
    expected, losses, whole = train(member, tmp_path / "whole", overflow)
    assert whole["overflow_steps"] == [BAD]
    assert whole["loss_scale"] == 2.0**15
    with pytest.raises(KeyboardInterrupt):
        train(member, tmp_path / "killed", interruption)
    weights, resumed_losses, resumed = train(member, tmp_path / "killed")
    assert (resumed["overflow_steps"], resumed["loss_scale"]) == (whole["overflow_steps"], whole["loss_scale"])
    assert resumed_losses == pytest.approx(losses, abs=0.05 * max(losses))
    assert distance(weights, expected) < NEAR


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_a_quantised_base_trains_in_float16(quantise: str, member: Member, in_float16: tuple, tmp_path: Path) -> None:
    _, losses, summary = train(replace(member, quantise=quantise), tmp_path)
    assert falls(losses)
    assert losses == pytest.approx(in_float16[1], abs=0.3)
    assert summary["skipped_steps"] == []


def test_8_bit_moments_follow_float32_ones(member: Member, in_float16: tuple, tmp_path: Path) -> None:
    _, losses, _ = train(replace(member, train=replace(RECIPE, optimizer="adamw_8bit")), tmp_path)
    assert falls(losses)
    assert losses == pytest.approx(in_float16[1], abs=0.1)
