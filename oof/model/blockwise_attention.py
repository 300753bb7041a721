"""Soft-capped causal attention in blocks of queries: eager's function without its (t, t) matrices, nothing compiled.

Transformers' eager attention writes every t x t score five times through main memory and computes the half above the
diagonal in vain; sdpa has no soft-capping, and flex attention has no backward pass on a CPU. Here a block of queries
meets the keys that it may see, on a CPU small enough to stay in the cache, and the backward pass computes the block
again, as in FlashAttention. A soft-capped score cannot exceed the cap, so that its exponential needs no running
maximum. On a GPU a block is large enough to fill it.

Source: Dao, FlashAttention-2, arXiv:2307.08691, sections 3.1 and 3.2; Gemma 2, arXiv:2408.00118, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from oof.model.softcapped import register

NAME = "blockwise"
# Scores of one block: 2 MB, a few copies of which stay in a shared cache; on a GPU, enough to fill it.
SCORES = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class Block:
    """Rows ``rows`` of the batch, queries ``first`` to ``last``, keys from ``lowest`` on; -> what they do not see."""

    rows: slice
    first: int
    last: int
    lowest: int
    window: int

    @property
    def queries(self) -> tuple[slice, slice, slice, slice]:
        return self.rows, slice(None), slice(None), slice(self.first, self.last)

    @property
    def keys(self) -> tuple[slice, slice, slice]:
        return self.rows, slice(None), slice(self.lowest, self.last)

    def hide_(self, weights: torch.Tensor) -> torch.Tensor:
        """Set the weights (r * n, g * q, k) of keys after the query, or before its window, to 0 in place."""
        size = self.last - self.first
        seen = weights.view(len(weights), -1, size, weights.shape[-1])
        later = torch.ones(size, size, dtype=torch.bool, device=seen.device).triu_(1)
        seen[..., self.first - self.lowest :].masked_fill_(later, 0.0)
        behind = self.last - 1 - self.window - self.lowest  # the last key that the last query has lost
        if behind >= 0:
            query = torch.arange(self.first, self.last, device=seen.device)
            key = torch.arange(self.lowest, self.lowest + behind + 1, device=seen.device)
            seen[..., : behind + 1].masked_fill_(key <= query[:, None] - self.window, 0.0)
        return weights


def _blocks(query: torch.Tensor, window: int) -> Iterator[Block]:
    batch, heads, length = len(query), query.shape[1] * query.shape[2], query.shape[3]
    scores = SCORES.get(query.device.type, SCORES["cpu"])
    size = max(8, min(length, scores // (heads * length)))
    together = max(1, scores // (heads * length * size))
    for row in range(0, batch, together):
        rows = slice(row, min(row + together, batch))
        for first in range(0, length, size):
            yield Block(rows, first, min(first + size, length), max(0, first - window + 1), window)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """(r, n, g, q, d) -> (r * n, g * q, d), or (r, n, k, d) -> (r * n, k, d)."""
    return tensor.flatten(0, 1).flatten(1, -2)


class SoftcappedAttention(torch.autograd.Function):
    """(b, n, g, t, d) queries of n key heads with g query heads each, (b, n, t, d) keys and values -> like queries."""

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
            weights = block.hide_(scores.mul_(scaling / cap).tanh_().mul_(cap).exp_())
            total = weights.sum(dim=-1, keepdim=True)
            # Divided before they are rounded: exp(cap) is no float16.
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
            weights = block.hide_((capped * cap).exp_()).div_(_flat(norm[block.queries]))
            slope = torch.bmm(upstream, v.transpose(1, 2)).float().sub_(_flat(shift[block.queries])).mul_(weights)
            slope.addcmul_(slope * capped, capped, value=-1)  # through tanh
            slope = slope.to(query.dtype)
            grad_query[block.queries] = (torch.bmm(slope, k) * scaling).view(query[block.queries].shape)
            shape = key[block.keys].shape
            grad_key[block.keys].add_(torch.bmm(slope.transpose(1, 2), q).view(shape), alpha=scaling)
            grad_value[block.keys].add_(torch.bmm(weights.to(query.dtype).transpose(1, 2), upstream).view(shape))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _blockwise(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, cap: float, window: int
) -> torch.Tensor:
    grouped = query.reshape(len(query), key.shape[1], -1, *query.shape[2:])
    out: torch.Tensor = SoftcappedAttention.apply(grouped, key, value, scaling, cap, window)  # type: ignore[no-untyped-call]
    return out.flatten(1, 2)


attention = register(NAME, _blockwise)
