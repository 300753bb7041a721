"""AdamW with float32 or 8-bit moments, one learning rate for the adapters and one for the fresh head."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from oof.common.errors import UserError
from oof.config import Train


def build_optimizer(
    model: nn.Module, decayed: Collection[str], recipe: Train, scaled: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters.

    Args:
        model: its parameters that require gradients are trained; those of the ``score`` head with ``head_lr``.
        decayed: names of the parameters with weight decay.
        recipe: optimizer, rates and weight decay.
        scaled: whether a gradient scaler skips steps that overflow. torch's fused kernel would skip them by itself,
            and accelerate 1.15 then takes the step for done.

    Raises:
        UserError: ``adamw_8bit`` without bitsandbytes.

    Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022 (``adamw_8bit``; tensors below
    4,096 values keep float32 moments).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = recipe.head_lr if "score" in name.split(".") else recipe.lr
            decay = recipe.weight_decay if name in decayed else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    settings: Any = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=torch.cuda.is_available() and not scaled)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.optimizer=adamw_8bit needs bitsandbytes; run 'make setup EXTRAS=gpu'")
    from bitsandbytes.optim.adamw import AdamW8bit

    eight_bit: torch.optim.Optimizer = AdamW8bit(settings)  # type: ignore[no-untyped-call]
    return eight_bit
