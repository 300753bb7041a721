"""Soft-capped causal attention through PyTorch's flex attention, compiled a few times, not once for every batch.

Transformers' own flex attention makes a new mask function in every forward pass. Each is compiled anew, until
PyTorch's limit of eight is reached; from there on it runs uncompiled, with the whole (t, t) scores in memory. On an
H200, fold jobs of the demo's Gemma2 took 145 s with it, and 4 s of a Llama of the same size. Here the functions stay
the same objects, the masks are kept, and sequences are padded to whole blocks, so that shapes are few.

It is used where ``attn: flex_attention`` asks for it. By itself a soft-capped model runs on blockwise attention, which
``benchmarks/gpu/attention_kernels.py`` found no slower on an H200, and which compiles nothing.

Source: Dong et al., Flex Attention, arXiv:2412.05496; Gemma 2, arXiv:2408.00118, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from oof.model.softcapped import register

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


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, cap: float, window: int
) -> torch.Tensor:
    length = query.shape[2]
    more = -length % BLOCK
    padded = [nn.functional.pad(x, (0, 0, 0, more)) for x in (query, key, value)]
    mask = _mask(length + more, min(window, length + more), query.device)
    out: torch.Tensor = _compiled()(*padded, score_mod=_softcap(cap), block_mask=mask, scale=scaling, enable_gqa=True)
    return out[:, :, :length]


attention = register(NAME, _flex)
