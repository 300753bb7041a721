"""Losses against their formulas, scipy and torch; the gradient of a step does not depend on its micro-batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from oof.config import Losses, Train
from oof.encoding import batches
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.model.classifier import load_tokenizer
from oof.training.losses import centred_mse, cosine_distance, cross_entropy, distill_loss, soft_kl
from tests.fixtures.demo_run import ROOT
from tests.fixtures.tiny_classifiers import encoded_transcripts

ROWS = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


def tensors(values: list[float]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    logits, teacher = np.array(values[:3]), softmax(np.array(values[3:]) / 2)
    return torch.tensor([logits], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64), logits, teacher


@given(ROWS)
def test_cross_entropy_is_its_formula(values: list[float]) -> None:
    z, t, logits, teacher = tensors(values)
    assert cross_entropy(z, t).item() == pytest.approx(-(teacher * log_softmax(logits)).sum(), abs=1e-9)


def test_cross_entropy_of_one_hot_targets_is_torchs() -> None:
    z, y = torch.randn(20, 3), torch.randint(3, (20,))
    one_hot = torch.nn.functional.one_hot(y, 3).float()
    torch.testing.assert_close(cross_entropy(z, one_hot), torch.nn.functional.cross_entropy(z, y, reduction="none"))


@given(ROWS, st.sampled_from([1.0, 2.0, 5.0]))
def test_soft_kl_is_t_squared_times_the_kl_of_softened_distributions(values: list[float], temperature: float) -> None:
    z, t, logits, teacher = tensors(values)
    softened = softmax(np.log(np.maximum(teacher, 1e-8)) / temperature)
    expected = temperature**2 * entropy(softened, softmax(logits / temperature))
    assert soft_kl(z, t, temperature).item() == pytest.approx(expected, abs=1e-9)


def test_at_temperature_one_kl_and_soft_cross_entropy_have_the_same_gradient() -> None:
    teacher = torch.softmax(torch.randn(4, 3), dim=-1)
    grads = []
    for loss in (cross_entropy, lambda z, t: soft_kl(z, t, 1.0)):
        z = torch.arange(12, dtype=torch.float32).reshape(4, 3).requires_grad_()
        loss(z, teacher).sum().backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)


@given(ROWS, st.sampled_from([1.0, 2.0, 5.0]))
def test_cosine_is_scipys_distance_of_softened_probabilities(values: list[float], temperature: float) -> None:
    z, t, logits, teacher = tensors(values)
    expected = cosine(softmax(np.log(np.maximum(teacher, 1e-8)) / temperature), softmax(logits / temperature))
    assert cosine_distance(z, t, temperature).item() == pytest.approx(expected, abs=1e-9)


@given(ROWS)
def test_mse_is_the_variance_of_the_difference_of_logits(values: list[float]) -> None:
    z, t, logits, teacher = tensors(values)
    expected = np.var(logits - np.log(np.maximum(teacher, 1e-8)))
    assert centred_mse(z, t).item() == pytest.approx(expected, abs=1e-9)


@given(ROWS)
def test_at_high_temperature_kl_becomes_half_the_mse(values: list[float]) -> None:
    z, t, _, _ = tensors(values)
    assert soft_kl(z, t, 1e4).item() == pytest.approx(centred_mse(z, t).item() / 2, rel=5e-3, abs=1e-5)


@given(ROWS, st.floats(-30, 30))
def test_a_constant_added_to_the_logits_changes_no_term(values: list[float], constant: float) -> None:
    z, t, _, _ = tensors(values)
    targets = torch.cat([t, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)], dim=1)
    every_term = Losses(ce=1, kl=2, cosine=3, mse=4)
    difference = distill_loss(z + constant, targets, every_term, 2.0) - distill_loss(z, targets, every_term, 2.0)
    assert abs(difference.item()) < 1e-8


@pytest.mark.parametrize(
    "term",
    [
        cross_entropy,
        centred_mse,
        lambda z, t: soft_kl(z, t, 2.0),
        lambda z, t: cosine_distance(z, t, 2.0),
    ],
)
def test_classes_are_the_last_axis(term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    logits, targets = torch.randn(5, 2, 3), torch.rand(5, 2, 3).softmax(dim=2)
    flat = term(logits.reshape(10, 3), targets.reshape(10, 3))
    torch.testing.assert_close(term(logits, targets), flat.reshape(5, 2))


def test_a_perfect_student_has_no_soft_loss() -> None:
    teacher = torch.softmax(torch.randn(5, 3, dtype=torch.float64), dim=1)
    targets = torch.cat([teacher, torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1]]], dim=1)
    assert distill_loss(teacher.log() + 3, targets, Losses(kl=1, cosine=1, mse=1), 2.0).abs().max() < 1e-9


def test_two_teachers_give_the_winning_solution_s_loss() -> None:
    rng = np.random.default_rng(0)
    logits, label = torch.tensor(rng.normal(size=(6, 3))), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 2, 1, 0]]
    first, second = (torch.tensor(rng.dirichlet(np.ones(3), 6)) for _ in range(2))
    loss = distill_loss(logits, torch.cat([first, second, label], dim=1), Losses(ce=1, kl=2, cosine=2), 1.0)
    terms = [cross_entropy(logits, label)]
    terms += [soft_kl(logits, t, 1.0) + cosine_distance(logits, t, 1.0) for t in (first, second)]
    torch.testing.assert_close(loss, sum(terms) / 5)


def test_the_loss_of_a_battle_without_a_label_is_the_mean_of_its_other_terms() -> None:
    logits, teacher = torch.randn(4, 3), torch.softmax(torch.randn(4, 3), dim=1)
    targets = torch.cat([teacher, torch.zeros(4, 3)], dim=1)
    kl, cosine_term = soft_kl(logits, teacher, 2.0), cosine_distance(logits, teacher, 2.0)
    torch.testing.assert_close(distill_loss(logits, targets, Losses(ce=1, kl=1), 2.0), kl)
    several = distill_loss(logits, targets, Losses(ce=4, kl=1, cosine=2), 2.0)
    torch.testing.assert_close(several, (kl + 2 * cosine_term) / 3)
    assert distill_loss(logits, targets, Losses(ce=1, kl=0), 2.0).abs().max() == 0


@pytest.mark.parametrize("losses", [Losses(), Losses(ce=1, kl=1), Losses(ce=3, kl=2), Losses(ce=0.1, kl=5)])
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_a_battle_without_a_label_pulls_with_its_whole_weight(losses: Losses, weight: float) -> None:
    """With the teacher as soft label, the gradient of CE and of KL at T = 1 is p - q, and so is that of any mean."""
    z, teacher = torch.randn(1, 3, dtype=torch.float64), torch.softmax(torch.randn(1, 3, dtype=torch.float64), dim=1)
    logits = z.repeat(2, 1).requires_grad_()  # a labelled battle, and the same one without its label
    targets = torch.cat([teacher.repeat(2, 1), torch.cat([teacher, torch.zeros_like(teacher)])], dim=1)
    (distill_loss(logits, targets, losses, 1.0) * torch.tensor([1.0, weight])).sum().backward()
    gradient = torch.softmax(z, dim=1)[0] - teacher[0]
    torch.testing.assert_close(logits.grad, torch.stack([gradient, weight * gradient]))


def pooled(batch: dict[str, torch.Tensor], table: torch.Tensor, pad: int) -> torch.Tensor:
    """A linear classifier of token counts: its gradient can be written down."""
    return (table[batch["input_ids"]] * (batch["input_ids"] != pad)[..., None]).sum(dim=1) / 50


@pytest.mark.parametrize("losses", [Losses(), Losses(ce=1, kl=1), Losses(ce=1, kl=2, cosine=2, mse=0.5)])
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(ROOT / "configs" / "bases" / "tiny-llama"))
    encoded = encoded_transcripts(24, tokenizer)
    rng = np.random.default_rng(0)
    targets = targets_in_both_orders(
        np.concatenate([rng.dirichlet(np.ones(3), 24), np.eye(3)[rng.integers(3, size=24)]], axis=1)
    )
    weights = rng.uniform(0.2, 3.0, 24)
    model = torch.tensor(rng.normal(size=(len(tokenizer), 3))).requires_grad_()

    def gradient(cut: Callable[[Train], Train], ranks: int = 1) -> tuple[torch.Tensor, list[int]]:
        recipe, pad = cut(Train(batch_battles=24)), tokenizer.pad_token_id
        steps = TrainingSteps(encoded, targets, weights, recipe, pad, 1)
        micro = []
        for steps.rank in range(ranks):
            steps.ranks = ranks
            micro += steps[0]
        logits = [pooled(b, model, tokenizer.pad_token_id) for b in micro]
        each = [distill_loss(z, b["targets"].double(), losses, 2.0) for z, b in zip(logits, micro, strict=True)]
        total = sum((loss * b["weights"]).sum() for loss, b in zip(each, micro, strict=True))
        return torch.autograd.grad(total, model)[0], [len(b["weights"]) for b in micro]

    with monkeypatch.context() as patch:
        patch.setattr(batches, "SPARE", dict.fromkeys(batches.SPARE, 100_000))
        whole, sizes = gradient(lambda r: Train(batch_battles=r.batch_battles, tokens_per_batch=100_000))
    assert sizes == [48]
    for budget in (1, 300, 700):
        cut, sizes = gradient(lambda r, b=budget: Train(batch_battles=r.batch_battles, tokens_per_batch=b))
        assert len(sizes) > 5
        assert budget == 1 or len(set(sizes)) > 1  # unequal micro-batches
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-8)
    for ranks in (2, 5):
        shared, sizes = gradient(lambda r: Train(batch_battles=r.batch_battles, tokens_per_batch=700), ranks)
        assert len(sizes) % ranks == 0
        torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-8)


def test_losses_of_two_classes_are_those_of_a_and_b_alone() -> None:
    rng = np.random.default_rng(0)
    teacher, labels = rng.dirichlet(np.ones(2), size=8), rng.integers(0, 2, 8)
    blocks = np.concatenate([teacher, np.zeros((8, 1)), np.eye(3)[labels]], axis=1)
    targets = torch.tensor(targets_in_both_orders(blocks, ties=False)[:, 0], dtype=torch.float64)
    assert targets.shape == (8, 4)
    z = torch.tensor(rng.normal(size=(8, 2)))
    q = softmax(z.numpy(), axis=1)

    def loss(**weights: float) -> np.ndarray:
        return distill_loss(z, targets, Losses(**({"ce": 0.0, "kl": 0.0} | weights)), 1.0).numpy()

    np.testing.assert_allclose(
        loss(ce=1.0), torch.nn.functional.cross_entropy(z, torch.tensor(labels), reduction="none")
    )
    np.testing.assert_allclose(loss(kl=1.0), entropy(teacher, q, axis=1), rtol=1e-6)
    margins = (z[:, 0] - z[:, 1]).numpy() - np.log(teacher[:, 0] / teacher[:, 1])
    np.testing.assert_allclose(loss(mse=1.0), margins**2 / 4, rtol=1e-5)


def test_targets_without_ties_are_swapped_as_those_with_ties() -> None:
    targets = np.concatenate([np.array([[0.25, 0.75, 0.0]]), np.eye(3)[[1]]], axis=1)
    np.testing.assert_array_equal(
        targets_in_both_orders(targets, ties=False)[0], [[0.25, 0.75, 0, 1], [0.75, 0.25, 1, 0]]
    )
