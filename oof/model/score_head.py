"""The classifier's ``score`` head: stock bias-free linear layer, computed in float32 whatever the base's precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Float32Head(nn.Linear):
    """The stock bias-free ``score`` layer, computed in float32 outside autocast.

    A few classes of one pooled vector per sequence cost nothing, and bf16 would round their differences to 3 digits.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def fresh_head(width: int, std: float, seed: int, n_classes: int = 3) -> Float32Head:
    """Return an (n_classes, width) float32 head drawn from N(0, std) by ``seed`` alone."""
    head = Float32Head(width, n_classes, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    return head


def compute_head_in_float32(model: Any) -> None:
    """Replace a classifier's head by one that is computed in float32, with the same weights."""
    head = Float32Head(model.score.in_features, model.score.out_features, bias=False)
    head.weight = nn.Parameter(model.score.weight.detach().float())
    model.score = head
