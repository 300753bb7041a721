"""Blockwise soft-capped attention: the same function as eager attention, without (t, t) matrices in memory.

Transformers' eager attention writes every t x t score five times through main memory and computes the masked half above
the diagonal; PyTorch's sdpa has no soft-capping. Here each block of queries is multiplied with its visible keys only.
On a CPU a block fits into the cache, on a GPU it is large enough to fill the device. The backward pass recomputes the
block, as FlashAttention does. A soft-capped score cannot exceed the cap, so the softmax needs no running maximum.

Sequences padded on the right need no mask, because causal attention never looks to the right. With a mask (left
padding), eager attention runs instead. The function is registered in transformers under the name ``blockwise``.

Source: Dao, FlashAttention-2, arXiv:2307.08691, sections 3.1 and 3.2; Gemma 2, arXiv:2408.00118, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

NAME = "blockwise"
LARGEST_CAP = 80.0  # exp(80) x 2^31 keys is still a float32: no running maximum is needed
# Scores of one block. On a CPU 2 MB, so that a few copies stay in its shared cache; on a GPU enough to fill it.
SCORES = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class QueryBlock:
    """A block of queries and the keys that they may see.

    Attributes:
        rows: of the batch.
        first, last: the queries' first position and their last + 1.
        lowest: the first key position; the last one is the last query's.
        window: a query sees this many positions, its own included.
    """

    rows: slice
    first: int
    last: int
    lowest: int
    window: int

    @property
    def queries(self) -> tuple[slice, slice, slice, slice]:
        """Index into (b, n, g, t, d) queries."""
        return self.rows, slice(None), slice(None), slice(self.first, self.last)

    @property
    def keys(self) -> tuple[slice, slice, slice]:
        """Index into (b, n, t, d) keys and values."""
        return self.rows, slice(None), slice(self.lowest, self.last)

    def mask_(self, weights: torch.Tensor) -> torch.Tensor:
        """Set the (r * n, g * q, k) weights of keys after the query, or before its window, to 0 in place."""
        size = self.last - self.first
        by_query = weights.view(len(weights), -1, size, weights.shape[-1])
        later = torch.ones(size, size, dtype=torch.bool, device=weights.device).triu_(1)
        by_query[..., self.first - self.lowest :].masked_fill_(later, 0.0)
        n_expired = self.last - self.window - self.lowest  # keys that have left the window of the block's last query
        if n_expired > 0:
            query = torch.arange(self.first, self.last, device=weights.device)
            key = torch.arange(self.lowest, self.lowest + n_expired, device=weights.device)
            by_query[..., :n_expired].masked_fill_(key <= query[:, None] - self.window, 0.0)
        return weights


def _blocks(query: torch.Tensor, window: int) -> Iterator[QueryBlock]:
    batch, heads, length = len(query), query.shape[1] * query.shape[2], query.shape[3]
    scores = SCORES.get(query.device.type, SCORES["cpu"])
    size = max(8, min(length, scores // (heads * length)))
    n_rows = max(1, scores // (heads * length * size))
    for row in range(0, batch, n_rows):
        rows = slice(row, min(row + n_rows, batch))
        for first in range(0, length, size):
            yield QueryBlock(rows, first, min(first + size, length), max(0, first - window + 1), window)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """(r, n, g, q, d) -> (r * n, g * q, d), or (r, n, k, d) -> (r * n, k, d)."""
    return tensor.flatten(0, 1).flatten(1, -2)


class SoftcappedAttention(torch.autograd.Function):
    """(b, n, g, t, d) queries (g for each of n key heads) and (b, n, t, d) keys and values -> (b, n, g, t, d)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, cap: float, window: int
    ) -> torch.Tensor:
        batch, n, g, length, _ = query.shape
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        norm = torch.empty((batch, n, g, length, 1), dtype=torch.float32, device=query.device)
        for block in _blocks(query, window):
            q = query[block.queries]
            scores = torch.bmm(_flat(q), _flat(key[block.keys]).transpose(1, 2)).float()
            weights = block.mask_(scores.mul_(scaling / cap).tanh_().mul_(cap).exp_())
            total = weights.sum(dim=-1, keepdim=True)
            # Divided before rounding: exp(cap) overflows in float16.
            out[block.queries] = torch.bmm(weights.div_(total).to(query.dtype), _flat(value[block.keys])).view(q.shape)
            norm[block.queries] = total.view(*q.shape[:-1], 1)
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.constants = scaling, cap, window
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = gradients
        query, key, value, out, norm = ctx.saved_tensors
        scaling, cap, window = ctx.constants
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        shift = (grad.float() * out.float()).sum(dim=-1, keepdim=True)
        for block in _blocks(query, window):
            q, k, v = _flat(query[block.queries]), _flat(key[block.keys]), _flat(value[block.keys])
            upstream = _flat(grad[block.queries])
            capped = torch.bmm(q, k.transpose(1, 2)).float().mul_(scaling / cap).tanh_()
            weights = block.mask_((capped * cap).exp_()).div_(_flat(norm[block.queries]))
            slope = torch.bmm(upstream, v.transpose(1, 2)).float().sub_(_flat(shift[block.queries])).mul_(weights)
            slope.addcmul_(slope * capped, capped, value=-1)  # through tanh
            slope = slope.to(query.dtype)
            grad_query[block.queries] = (torch.bmm(slope, k) * scaling).view(query[block.queries].shape)
            shape = key[block.keys].shape
            grad_key[block.keys].add_(torch.bmm(slope.transpose(1, 2), q).view(shape), alpha=scaling)
            grad_value[block.keys].add_(torch.bmm(weights.to(query.dtype).transpose(1, 2), upstream).view(shape))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def computes(config: Any) -> bool:
    """Return whether a text configuration's attention is soft-capped, causal and without dropout."""
    cap = getattr(config, "attn_logit_softcapping", None)
    other = getattr(config, "attention_dropout", 0) or getattr(config, "use_bidirectional_attention", False)
    return cap is not None and cap <= LARGEST_CAP and not other


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (b, t, h, d) outputs of (b, h, t, d) queries and (b, n, t, d) keys and values, and no attention weights.

    Raises:
        ValueError: without a mask, an attention that :func:`computes` refuses, or the keys of a cache.
    """
    if attention_mask is not None:
        return eager_attention_forward(module, query, key, value, attention_mask, dropout, scaling, softcap)
    length = query.shape[2]
    if dropout or softcap is None or softcap > LARGEST_CAP or not getattr(module, "is_causal", True):
        raise ValueError(f"{NAME} attention is soft-capped, causal and without dropout; use eager")
    if key.shape[2] != length:
        raise ValueError(f"{NAME} attention is for whole sequences; pass use_cache=False")
    window = length if sliding_window is None else sliding_window
    grouped = query.reshape(len(query), key.shape[1], -1, *query.shape[2:])
    same_dtype = key.to(query.dtype), value.to(query.dtype)
    out: torch.Tensor = SoftcappedAttention.apply(grouped, *same_dtype, scaling, softcap, window)  # type: ignore[no-untyped-call]
    return out.flatten(1, 2).transpose(1, 2).contiguous(), None


def _mask_if_needed(attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """Return no mask where no token is masked: the attention is causal by itself."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    mask: torch.Tensor = eager_mask(attention_mask=attention_mask, **options)
    return mask


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask_if_needed)
