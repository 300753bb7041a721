from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from oof.losses import cross_entropy, soft_kl

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
