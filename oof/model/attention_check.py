"""Self-check of an attention implementation: outputs and gradients against eager attention, on this machine.

An implementation may compute another function without an error (no soft-capping, another window, another assignment of
query heads to key heads), and a kernel may fail on one card or one head size alone. So each one computes a small
right-padded batch with the model's own head size and precision before a model is built on it. As in fold jobs, it gets
no padding mask: causal attention never looks to the right.
"""

from __future__ import annotations

import logging
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from oof.model.precision import largest_difference

logger = logging.getLogger(__name__)

CHECK_TOKENS, CHECK_WINDOW, CHECK_CAP = (40, 200), 16, 2.0  # scores are about as large as the cap
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}  # of the largest output or gradient


@cache
def agrees_with_eager(
    attention: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, capped: bool = True
) -> bool:
    """Return whether an attention gives eager's outputs and gradients, full and sliding, at two lengths.

    Args:
        attention: its registered name.
        shape: query heads, key heads and head size.
        dtype: of queries, keys and values; eager computes the same values in float32.
        device: "cpu" or "cuda".
        capped: with soft-capped scores.
    """
    try:
        differences = [
            _difference(attention, shape, dtype, device, capped, length, window)
            for length in CHECK_TOKENS
            for window in (None, CHECK_WINDOW)
        ]
    except Exception as error:  # a kernel can fail in many ways; after any failure another attention is used
        first = (f"{error}".splitlines() or [type(error).__name__])[0]
        logger.warning("%s attention is not usable here (%s)", attention, first[:120])
        return False
    wrong = [difference for difference in differences if not difference <= TOLERANCE[dtype]]  # also a NaN
    if wrong:
        logger.warning("%s attention differs from eager by %.2g here and is not used", attention, wrong[0])
        return False
    return True


def _difference(
    attention: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    capped: bool,
    length: int,
    window: int | None,
) -> float:
    """Return the largest difference from eager of the outputs and gradients, relative to eager's largest value."""
    groups, size = shape[0] // shape[1], shape[2]
    heads, key_heads = 2 * groups, 2  # two key heads are enough: every key head is computed alike
    generator = torch.Generator().manual_seed(length)
    drawn = [torch.randn((2, n, length, size), generator=generator) for n in (heads, key_heads, key_heads)]
    drawn[0] *= CHECK_CAP  # so that the cap changes the scores
    inputs = [x.to(device, dtype) for x in drawn]
    real = torch.arange(length) < torch.tensor([[length], [length - length // 4]])  # the second row is right-padded
    real = real[:, :, None, None].to(device)
    upstream = torch.randn((2, length, heads, size), generator=generator).to(device, dtype) * real
    settings: dict[str, Any] = {"scaling": size**-0.5, "softcap": CHECK_CAP if capped else None}
    module: Any = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=True)
    module.config = SimpleNamespace(_attn_implementation=attention)

    position = torch.arange(length, device=device)
    visible = (position <= position[:, None]) & (position > position[:, None] - (window or length))
    visible = visible & real[:, None, None, :, 0, 0]
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    exact_inputs = [x.float().requires_grad_() for x in inputs]
    query, key, value = exact_inputs
    expected = eager_attention_forward(module, query, key, value, mask, **settings)[0] * real
    tested_inputs = [x.requires_grad_() for x in inputs]
    settings |= {"attention_mask": _mask(attention, length, window, dtype, device), "sliding_window": window}
    tested = ALL_ATTENTION_FUNCTIONS[attention](module, *tested_inputs, **settings)[0] * real
    return largest_difference(
        (tested, *torch.autograd.grad(tested, tested_inputs, upstream)),
        (expected, *torch.autograd.grad(expected, exact_inputs, upstream.float())),
    )


def _mask(attention: str, length: int, window: int | None, dtype: torch.dtype, device: str) -> torch.Tensor | None:
    """Return the mask that transformers gives this attention for a batch without a padding mask."""
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[attention](
        batch_size=2,
        q_length=length,
        kv_length=length,
        mask_function=causal_mask_function if window is None else sliding_window_causal_mask_function(window),
        attention_mask=None,
        local_size=window,
        dtype=dtype,
        device=device,
    )
    return mask
