"""Ordered table of attention implementations, with the models, precisions and cards that each one can compute.

``attn: auto`` takes the first name of :data:`ORDER` without an obstacle that also passes the self-check against eager
attention (:mod:`oof.model.attention_check`). The table is a pure function of model, precision and machine, so that the
choice for any card is tested without one.

Limits of FlashAttention 4 are read from ``flash_attn/cute/interface.py`` of flash-attn-4 4.0.0b36: on sm80 to sm89 it
has no backward pass (and transformers refuses it there); on sm100 its backward pass for heads of 256 has no
soft-capping; on sm120 its backward pass for heads of 256 compiles, but its tiles take 128 KB of shared memory where the
card has 99 KB (``FlashAttentionBackwardSm120.can_implement``). So an A100 needs FlashAttention 2. On a card without
FlashAttention (T4, sm75) blockwise attention runs for soft-capped families: the Triton implementation on PyPI for sm75
(flash-attention-triton 0.1.1) has neither soft-capping nor sliding windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oof.model import blockwise_attention

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
LARGEST_FLASH_HEAD = 256

# Installed by a package under the name of transformers' attn_implementation.
PACKAGES = {
    "flash_attention_4": "flash-attn-4",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_2": "flash-attn",
}
# Compiled kernels of the `kernels` package, which transformers takes in place of a package that is not installed.
HUB_KERNELS = {
    "flash_attention_4": "kernels-community/flash-attn4",
    "flash_attention_3": "kernels-community/vllm-flash-attn3",
    "flash_attention_2": "kernels-community/flash-attn2",
}
ORDER = (*PACKAGES, *HUB_KERNELS.values(), "sdpa", blockwise_attention.NAME, "eager")


@dataclass(frozen=True)
class ModelAttention:
    """Attention of a model.

    Attributes:
        capped: its scores are soft-capped.
        blockwise: :func:`oof.model.blockwise_attention.computes` it.
        flash: transformers lets its class run FlashAttention.
        dropout: training drops attention weights.
        shape: query heads, key heads and head size.
    """

    capped: bool
    blockwise: bool
    flash: bool
    dropout: bool
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Machine:
    """Device that computes.

    Attributes:
        capability: compute capability of the GPU; (0, 0) for a CPU.
        installed: FlashAttention names of :data:`ORDER` that load without a download.
    """

    capability: tuple[int, int] = (0, 0)
    installed: frozenset[str] = frozenset()

    @property
    def device(self) -> str:
        return "cuda" if self.capability > (0, 0) else "cpu"


def candidates(model: ModelAttention, dtype: torch.dtype, machine: Machine) -> tuple[str, ...]:
    """Return the implementations that can compute a model's attention, fastest first; the last one is eager."""
    return tuple(name for name in ORDER if not obstacle(name, model, dtype, machine))


def obstacle(name: str, model: ModelAttention, dtype: torch.dtype, machine: Machine) -> str:
    """Return why an implementation cannot compute a model's attention, as a clause; "" if it can."""
    if name == "eager":
        return ""
    if name == "sdpa":
        return "sdpa drops the model's soft-capping" if model.capped else ""
    if name == blockwise_attention.NAME:
        return "" if model.blockwise else "it computes soft-capped, causal attention without dropout only"
    version = int(name[-1])
    missing = "" if name in machine.installed else _missing(name)
    return _card_obstacle(version, dtype, machine) or _model_obstacle(version, model, machine.capability) or missing


def _card_obstacle(version: int, dtype: torch.dtype, machine: Machine) -> str:
    (major, minor), lowest = machine.capability, 9 if version == 4 else 8
    if machine.device == "cpu":
        return "it needs a CUDA GPU"
    if dtype not in SIXTEEN_BITS:
        return f"it computes in 16 bits, not in {str(dtype).removeprefix('torch.')}"
    if major < lowest:
        return f"it needs a GPU of compute capability {lowest}.0 or higher, not {major}.{minor}"
    if version == 3 and major > 9:
        return f"it needs a GPU of compute capability 8.0 to 9.0, not {major}.{minor}"
    return ""


def _model_obstacle(version: int, model: ModelAttention, capability: tuple[int, int]) -> str:
    head_size, major = model.shape[2], capability[0]
    if not model.flash:
        return "transformers does not support it for this model"
    if head_size > LARGEST_FLASH_HEAD or head_size % 8:
        return f"it computes heads of 8 to {LARGEST_FLASH_HEAD} in steps of 8, not {head_size}"
    if version > 2 and model.dropout:  # transformers would leave the dropout out without an error
        return "it has no attention dropout"
    if version < 4 or major < 10:
        return ""
    if major in (10, 11) and head_size > 128 and (head_size != LARGEST_FLASH_HEAD or model.capped):
        kind = "soft-capped heads" if model.capped else "heads"
        return f"it does not train {kind} of {head_size} on compute capability {major}"
    if major == 12 and head_size > 192:
        return f"it does not train heads of {head_size} on compute capability {major}"
    return ""


def _missing(name: str) -> str:
    if name in PACKAGES:
        return f"the package {PACKAGES[name]} is not installed"
    return f"the kernel {name} is not in the local cache"
