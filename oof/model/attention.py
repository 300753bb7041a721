"""Choice of attention implementation per model family and device, with a self-check against eager attention.

Gemma2 caps its attention logits (soft-capping). PyTorch's sdpa has no such term and would compute another function
without an error. So sdpa is refused for a soft-capped family unless soft-capping is switched off (``attn_softcap:
off``). Blockwise attention runs only after it has agreed with eager attention on this machine, with the model's own
heads and precision, because a kernel may fail on one card or one head size alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.utils.import_utils import is_flash_attn_2_available

from oof.common.errors import UserError
from oof.model import blockwise_attention

logger = logging.getLogger(__name__)

CHECK_TOKENS, CHECK_WINDOW, CHECK_CAP = (40, 200), 16, 2.0  # scores are about as large as the cap
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}  # of the largest output or gradient


def resolve_attention(config: Any, wanted: str, softcap: str = "on", dtype: torch.dtype = torch.float32) -> str:
    """Return the attention implementation for a model configuration on this machine.

    Args:
        config: of transformers; one with ``attn_logit_softcapping`` is a soft-capped family.
        wanted: ``attn`` of the member. "auto" for a soft-capped family: FlashAttention 2 on a GPU that has it, else
            blockwise attention if it passes its self-check, else eager. "auto" without soft-capping: sdpa.
        softcap: "on" or "off", as trained.
        dtype: in which the model computes.

    Raises:
        UserError: ``wanted`` drops the model's soft-capping, needs a soft-cap, or fails its self-check.
    """
    attention, on_gpu = configured_attention(config, wanted, softcap), torch.cuda.is_available()
    if wanted == "auto" and _is_capped(config, softcap) and on_gpu and is_flash_attn_2_available():
        return "flash_attention_2"
    if attention != blockwise_attention.NAME:
        return attention
    text_config = config.get_text_config()
    heads, head_dim = text_config.num_attention_heads, getattr(text_config, "head_dim", 0)
    shape = heads, text_config.num_key_value_heads, head_dim or text_config.hidden_size // heads
    if agrees_with_eager(attention, shape, dtype, "cuda" if on_gpu else "cpu"):
        return attention
    if wanted != "auto":
        raise UserError(f"attn={wanted} does not compute eager's attention on this machine; use attn=auto")
    return "eager"


def configured_attention(config: Any, wanted: str, softcap: str) -> str:
    """Return the attention implementation of a member's setting, without a check of this machine.

    Raises:
        UserError: ``wanted`` drops the model's soft-capping, or needs a soft-cap that the model lacks.
    """
    capped = _is_capped(config, softcap)
    blockwise = capped and blockwise_attention.computes(config.get_text_config())
    if capped and wanted == "sdpa":
        raise UserError(
            f"attn=sdpa drops the soft-capping of {config.model_type}; use attn=auto, or train and score with "
            "attn_softcap=off"
        )
    if wanted == blockwise_attention.NAME and not blockwise:
        raise UserError(
            "attn=blockwise computes soft-capped, causal attention without dropout, which is not the attention of this "
            f"{config.model_type}; use attn=auto"
        )
    if wanted != "auto":
        return wanted
    if not capped:
        return "sdpa"
    return blockwise_attention.NAME if blockwise else "eager"


def _is_capped(config: Any, softcap: str) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None and softcap == "on"


@cache
def agrees_with_eager(attention: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> bool:
    """Return whether an attention gives eager's outputs and gradients, full and sliding, at two lengths.

    Args:
        attention: its registered name.
        shape: query heads, key heads and head size.
        dtype: of queries, keys and values; eager computes the same values in float32.
        device: "cpu" or "cuda".
    """
    try:
        difference = max(
            _difference(attention, shape, dtype, device, length, window)
            for length in CHECK_TOKENS
            for window in (None, CHECK_WINDOW)
        )
    except Exception as error:  # a kernel can fail in many ways; after any failure another attention is used
        logger.info("%s attention is not usable here (%s)", attention, f"{error}".splitlines()[0][:120])
        return False
    if not difference <= TOLERANCE[dtype]:  # also true of NaN
        logger.warning("%s attention differs from eager by %.2g here and is not used", attention, difference)
        return False
    return True


def _difference(
    attention: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, length: int, window: int | None
) -> float:
    """Return the largest difference from eager of the outputs and gradients, relative to eager's largest value."""
    groups, size = shape[0] // shape[1], shape[2]
    heads, key_heads = 2 * groups, 2  # two key heads are enough: every key head is computed alike
    generator = torch.Generator().manual_seed(length)
    drawn = [torch.randn((2, n, length, size), generator=generator) for n in (heads, key_heads, key_heads)]
    drawn[0] *= CHECK_CAP  # so that the cap changes the scores
    inputs = [x.to(device, dtype) for x in drawn]
    upstream = torch.randn((2, length, heads, size), generator=generator).to(device, dtype)
    settings: dict[str, Any] = {"scaling": size**-0.5, "softcap": CHECK_CAP}
    module: Any = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=True)

    position = torch.arange(length, device=device)
    visible = (position <= position[:, None]) & (position > position[:, None] - (window or length))
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    exact_inputs = [x.float().requires_grad_() for x in inputs]
    query, key, value = exact_inputs
    expected = eager_attention_forward(module, query, key, value, mask, **settings)[0]
    tested_inputs = [x.requires_grad_() for x in inputs]
    tested = ALL_ATTENTION_FUNCTIONS[attention](module, *tested_inputs, None, sliding_window=window, **settings)[0]
    pairs = zip(
        (tested, *torch.autograd.grad(tested, tested_inputs, upstream)),
        (expected, *torch.autograd.grad(expected, exact_inputs, upstream.float())),
        strict=True,
    )
    return max(
        float((mine.float() - theirs).detach().abs().max() / theirs.detach().abs().max()) for mine, theirs in pairs
    )


@contextmanager
def sdpa_allowed(config: Any, attention: str) -> Iterator[None]:
    """Let transformers build a soft-capped family on sdpa, where its soft-capping has been switched off.

    The model class declares that it does not support sdpa, only because of soft-capping. The shared sdpa function
    refuses a soft-cap that is not None, so a mistake raises an error.
    """
    if attention != "sdpa" or getattr(config.get_text_config(), "attn_logit_softcapping", 0) is not None:
        yield
        return
    check = PreTrainedModel._sdpa_can_dispatch
    PreTrainedModel._sdpa_can_dispatch = lambda self, is_init_check=False: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._sdpa_can_dispatch = check  # type: ignore[method-assign]
