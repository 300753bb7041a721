"""Soft-capped causal attention as transformers calls it: what our implementations of it share.

Sequences padded on the right need no mask, as causal attention never looks there. With a mask, eager computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

LARGEST_CAP = 80.0  # exp(80) x 2^31 keys is still a float32: no running maximum is needed

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
# (queries (b, h, t, d), keys and values (b, n, t, d) of one dtype, scaling, cap, window) -> (b, h, t, d)
Core = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, float, int], torch.Tensor]


def computes(config: Any) -> bool:
    """Return whether this is the attention of a text configuration: soft-capped, causal, without dropout."""
    cap = getattr(config, "attn_logit_softcapping", None)
    other = getattr(config, "attention_dropout", 0) or getattr(config, "use_bidirectional_attention", False)
    return cap is not None and cap <= LARGEST_CAP and not other


def register(name: str, core: Core) -> Attention:
    """Make ``core`` an attention implementation of transformers, under a name that no library uses; return it."""

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
        """(b, h, t, d) queries -> (b, t, h, d).

        Raises:
            ValueError: without a mask, what ``core`` does not compute (see :func:`computes`), or a cache's keys.
        """
        if attention_mask is not None:
            return eager_attention_forward(module, query, key, value, attention_mask, dropout, scaling, softcap)
        length = query.shape[2]
        if dropout or softcap is None or softcap > LARGEST_CAP or not getattr(module, "is_causal", True):
            raise ValueError(f"{name} attention is soft-capped, causal and without dropout; use eager")
        if key.shape[2] != length:
            raise ValueError(f"{name} attention is for whole sequences; pass use_cache=False")
        window = length if sliding_window is None else sliding_window
        same = key.to(query.dtype), value.to(query.dtype)
        return core(query, *same, scaling, softcap, window).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _mask_if_needed)
    return attention


def _mask_if_needed(attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor | None:
    """Return no mask where no token is masked: the attention is causal by itself."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    mask: torch.Tensor = eager_mask(attention_mask=attention_mask, **more)
    return mask
