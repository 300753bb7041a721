"""Losses of a batch of logits of three classes (two without ties) against soft targets, one value per row.

Hard labels are one-hot targets, so members and students share one training path. Targets are never passed to the model
as ``labels``, because float labels make transformers choose a multi-label loss without a warning. Losses are per row,
because the trainer weights rows over micro-batches of any size (:mod:`oof.encoding.batches`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cosine_similarity, log_softmax

from oof.config import Losses

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits (b, 3), targets (b, 3m)) -> (b,) losses
RowTerm = Callable[[torch.Tensor], torch.Tensor]  # one teacher's (b, 3) targets -> (b,)
SMALLEST = 1e-8  # probabilities are clamped here before their logarithm is taken


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return (b,) ``-sum_c targets_c log softmax(logits)_c``."""
    return -(targets * log_softmax(logits, dim=-1)).sum(dim=-1)


def softened(targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (b, 3) ``log softmax(log targets / T)``: the teacher's log-probabilities at temperature T."""
    return log_softmax(targets.clamp_min(SMALLEST).log() / temperature, dim=-1)


def soft_kl(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (b,) ``T^2 KL(softmax(log targets / T) || softmax(logits / T))``.

    The factor keeps the gradient's size independent of T.
    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    teacher = softened(targets, temperature)
    student = log_softmax(logits / temperature, dim=-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1)


def cosine_distance(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (b,) ``1 - cos(softmax(log targets / T), softmax(logits / T))``.

    It compares directions of probability vectors, so it is nearly constant where both are close to uniform. Use it
    beside the KL term, not alone.
    Source: the winning solution of Kaggle's LMSYS competition, 2024, which adds it to CE and KL at T = 1.
    """
    student = log_softmax(logits / temperature, dim=-1).exp()
    return 1.0 - cosine_similarity(student, softened(targets, temperature).exp(), dim=-1)


def centred_mse(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return (b,) ``mean_c (z_c - t_c)^2`` of centred logits z and centred log-probabilities t of the teacher.

    Centred, because adding a constant to logits changes no probability. Half of it is the limit of
    :func:`soft_kl` as T grows.
    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014; the limit: Hinton et al., section 2.1.
    """
    teacher = targets.clamp_min(SMALLEST).log()
    difference = logits - logits.mean(dim=-1, keepdim=True) - (teacher - teacher.mean(dim=-1, keepdim=True))
    return difference.square().mean(dim=-1)


def distill_loss(logits: torch.Tensor, targets: torch.Tensor, weights: Losses, temperature: float) -> torch.Tensor:
    """Return (b,) the weighted mean of the terms of ``weights`` that a battle has.

    ``(ce CE + kl mean_j KL_j + cosine mean_j cos_j + mse mean_j MSE_j) / (sum of the weights)`` over teachers j. With
    two teachers, ``ce: 1, kl: 2, cosine: 2`` is (CE + KL_1 + cos_1 + KL_2 + cos_2) / 5. A battle without a label has no
    CE, and the sum of the weights is without ``ce``: its loss is a mean as that of any other battle, so that its weight
    alone says how much it counts.

    Args:
        logits: (b, 3).
        targets: (b, 3 (m + 1)): each teacher's probabilities, then the one-hot label, zeros where there is none.
        weights: of the terms; not all zero.
        temperature: T of KL and cosine.
    """
    *teachers, label = torch.split(targets, logits.shape[-1], dim=-1)
    terms: tuple[tuple[float, RowTerm], ...] = (
        (weights.kl, lambda teacher: soft_kl(logits, teacher, temperature)),
        (weights.cosine, lambda teacher: cosine_distance(logits, teacher, temperature)),
        (weights.mse, lambda teacher: centred_mse(logits, teacher)),
    )
    total = weights.ce * cross_entropy(logits, label) if weights.ce else torch.zeros_like(logits[:, 0])
    for weight, term in terms:
        if weight:
            total = total + weight * torch.stack([term(teacher) for teacher in teachers]).mean(dim=0)
    mean = total / (weights.ce + weights.soft)
    if not weights.ce or not weights.soft:
        return mean
    return mean * torch.where(label.sum(dim=-1) > 0, 1.0, (weights.ce + weights.soft) / weights.soft)
