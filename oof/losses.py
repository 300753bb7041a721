"""Losses of a batch of three-class logits against soft targets, one value per row.

Hard labels are one-hot targets, so members and students share one training path. Targets never go into the
model as ``labels``: float labels make transformers choose a multi-label loss without a word.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return (b,) ``-sum_c targets_c log softmax(logits)_c``."""
    return -(targets * log_softmax(logits, dim=-1)).sum(dim=-1)


def soft_kl(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (b,) ``T^2 KL(softmax(log targets / T) || softmax(logits / T))``.

    The factor keeps the gradient's size independent of T.
    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    teacher = log_softmax(targets.clamp_min(1e-8).log() / temperature, dim=-1)
    student = log_softmax(logits / temperature, dim=-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1)
