"""Arithmetic and bytes of one attention layer, by implementation, forward and backward.

Fused kernels (FlashAttention, PyTorch's sdpa in 16 bits) are counted by formula: they compute the visible half of the
scores and read and write queries, keys, values and outputs once. Eager and blockwise attention are ordinary operations,
and are traced on fake tensors as they run.

Source: Dao, FlashAttention-2, arXiv:2307.08691, section 3: two products of the visible scores forward, five backward.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from oof.model import blockwise_attention
from oof.model.attention_table import ModelAttention
from oof.model.cuda_autocast import emulated_autocast
from oof.model.operations import ATTENTION, Operation, OperationLog

CAP = 50.0  # its value changes no cost


def visible_scores(tokens: int, window: int | None) -> int:
    """Return the query-key pairs of one head that causal attention in a window computes."""
    reach = min(window or tokens, tokens)
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


@cache
def attention_operations(
    name: str, model: ModelAttention, dtype: torch.dtype, tokens: int, window: int | None, backward: bool
) -> tuple[Operation, ...]:
    """Return the operations of one layer's attention to one sequence in one direction.

    Args:
        name: of the implementation.
        model: heads and soft-capping.
        dtype: of queries, keys and values.
        tokens: of the sequence, padding included.
        window: positions that a query sees; None = all before it.
        backward: the backward pass alone; else the forward pass alone.
    """
    grouped = model.shape[0] != model.shape[1]
    # The only sdpa kernel that takes float32 with fewer key heads than query heads stores the scores, as eager does.
    stored = name == "eager" or (name == "sdpa" and grouped and dtype == torch.float32)
    if stored or name == blockwise_attention.NAME:
        return _traced("eager" if stored else name, model, dtype, tokens, window)[backward]
    return (_fused(name, model, dtype, tokens, window, backward),)


def _fused(
    name: str, model: ModelAttention, dtype: torch.dtype, tokens: int, window: int | None, backward: bool
) -> Operation:
    heads, key_heads, size = model.shape
    flops = (10 if backward else 4) * heads * visible_scores(tokens, window) * size
    per_head = tokens * size * dtype.itemsize
    # Forward: queries, keys, values, outputs. Backward: these, the outputs' gradient, three gradients, and a float32
    # sum of the queries' gradient, which is written and read.
    moved = (4 * heads + 4 * key_heads) * per_head + 8 * tokens * heads * size if backward else 0
    moved = moved or (2 * heads + 2 * key_heads) * per_head
    label = str(dtype).removeprefix("torch.")
    return Operation(name, ATTENTION, label, float(flops), float(moved), (1, tokens, heads, size))


@cache
def _traced(
    name: str, model: ModelAttention, dtype: torch.dtype, tokens: int, window: int | None
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Return the operations of the forward and of the backward pass of an implementation in PyTorch."""
    heads, key_heads, size = model.shape
    module: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, training=False, is_causal=True)
    settings: dict[str, Any] = {"scaling": size**-0.5, "softcap": CAP if model.capped else None}
    settings |= {"sliding_window": window}
    gpu_blocks = patch.dict(blockwise_attention.SCORES, cpu=blockwise_attention.SCORES["cuda"])
    forward, backward = OperationLog(), OperationLog()
    with FakeTensorMode(), gpu_blocks:
        query, key, value = (
            torch.empty(1, n, tokens, size, dtype=dtype, requires_grad=True) for n in (heads, key_heads, key_heads)
        )
        mask = torch.empty(1, 1, tokens, tokens, dtype=dtype) if name == "eager" else None
        function = eager_attention_forward if name == "eager" else blockwise_attention.attention
        with forward, emulated_autocast(dtype):
            out = function(module, query, key, value, mask, **settings)[0]
        gradient = torch.empty_like(out)
        with backward:
            torch.autograd.backward(out, gradient)
    return tuple(forward.operations), tuple(backward.operations)
