"""Device and floating-point types of training and scoring.

Weights keep the member's ``dtype``; autocast runs the matrix products in it. Adapters, head and losses are float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from oof.config import Member

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """Return the GPU of this process, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of a member's setting; "auto" is bfloat16 where the hardware computes in it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def precision_context(member: Member) -> AbstractContextManager[object]:
    """Return the autocast context that training and scoring share."""
    dtype = resolve_dtype(member.dtype)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device().type, dtype=dtype)
