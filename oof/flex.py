"""Soft-capped causal attention through PyTorch's flex attention, compiled a few times, not once for every batch.

Transformers' own flex attention makes a new mask function in every forward pass. Each is compiled anew, until
PyTorch's limit of eight is reached; from there on it runs uncompiled, with the whole (t, t) scores in memory. On an
H200, fold jobs of the demo's Gemma2 took 145 s with it, and 4 s of a Llama of the same size. Here the functions stay
the same objects, the masks are kept, and sequences are padded to whole blocks, so that shapes are few.

It is used where ``attn: flex_attention`` asks for it. By itself a soft-capped model runs on blockwise attention, which
``benchmarks/attention.py`` found no slower on an H200, and which compiles nothing.

Sequences padded on the right need no mask, as causal attention never looks there. With a mask, eager computes it.

Source: Dong et al., Flex Attention, arXiv:2412.05496; Gemma 2, arXiv:2408.00118, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from oof.blockwise import mask_if_needed

NAME = "softcapped_flex"
BLOCK = 128  # of flex attention; its kernel for fewer queries is one for decoding
# Kinds of call that are compiled: full or sliding, one or more sequences and blocks, with and without each gradient.
COMPILED_AT_MOST = 64

Function = Callable[..., torch.Tensor]


@cache
def _compiled() -> Any:
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, COMPILED_AT_MOST)
    settings.specialize_float = True  # of two models with different scales; as variables, the kernel cannot have them
    return torch.compile(flex_attention)


@cache
def _softcap(cap: float) -> Function:
    def capped(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _causal(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return query >= key


@cache
def _sliding(window: int) -> Function:
    def within(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (query - key < window)

    return within


@cache
def _mask(length: int, window: int, device: torch.device) -> BlockMask:
    seen = _causal if window >= length else _sliding(window)
    # Made in inference mode it could not be used in training.
    with torch.inference_mode(mode=False):
        return create_block_mask(seen, None, None, length, length, device=str(device))


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
    """Attention as transformers calls it: (b, h, t, d) queries -> (b, t, h, d).

    Raises:
        ValueError: without a mask, what this function does not compute, or a cache's keys.
    """
    if attention_mask is not None:
        return eager_attention_forward(module, query, key, value, attention_mask, dropout, scaling, softcap)
    length = query.shape[2]
    if dropout or softcap is None or not getattr(module, "is_causal", True) or key.shape[2] != length:
        raise ValueError(f"{NAME} is soft-capped, causal, without dropout and for whole sequences; use eager")
    more = -length % BLOCK
    query, key, value = (nn.functional.pad(x, (0, 0, 0, more)).to(query.dtype) for x in (query, key, value))
    window = min(sliding_window or length, length + more)
    out = _compiled()(
        query,
        key,
        value,
        score_mod=_softcap(softcap),
        block_mask=_mask(length + more, window, query.device),
        scale=scaling,
        enable_gqa=True,
    )
    return out[:, :, :length].transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)  # a name that no library uses: nothing else changes
AttentionMaskInterface.register(NAME, mask_if_needed)
