"""Choice of attention implementation per model, precision and card.

Gemma2 caps its attention logits (soft-capping). PyTorch's sdpa has no such term and would compute another function
without an error. So sdpa is refused for a soft-capped family unless soft-capping is switched off (``attn_softcap:
off``). Which implementations can run, and in which order they are tried, is one table
(:mod:`oof.model.attention_table`). Each of them but eager must pass a self-check against eager attention first
(:mod:`oof.model.attention_check`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from huggingface_hub import constants
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_VERSIONS, lazy_import_flash_attention
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from oof.common.errors import UserError
from oof.model import blockwise_attention
from oof.model.attention_check import agrees_with_eager
from oof.model.attention_table import HUB_KERNELS, PACKAGES, SIXTEEN_BITS, Machine, ModelAttention, candidates, obstacle

logger = logging.getLogger(__name__)


def resolve_attention(config: Any, wanted: str, softcap: str = "on", dtype: torch.dtype = torch.float32) -> str:
    """Return the attention implementation for a model configuration on this machine.

    Args:
        config: of transformers; one with ``attn_logit_softcapping`` is a soft-capped family.
        wanted: ``attn`` of the member. "auto": the first one of :func:`oof.model.attention_table.candidates` that
            passes its self-check.
        softcap: "on" or "off", as trained.
        dtype: in which the model computes.

    Raises:
        UserError: ``wanted`` drops the model's soft-capping, cannot run here, or fails its self-check.
    """
    model, machine = model_attention(config, softcap), this_machine()
    if model.capped and wanted == "sdpa":
        raise UserError(
            f"attn=sdpa drops the soft-capping of {config.model_type}; use attn=auto, or train and score with "
            "attn_softcap=off"
        )
    names = candidates(model, dtype, machine)
    if wanted != "auto":
        names = tuple(name for name in (wanted, HUB_KERNELS.get(wanted, "")) if name in names)
        if not names:
            reason = obstacle(wanted, model, dtype, machine)
            raise UserError(f"attn={wanted} cannot run here: {reason}; {_remedy(wanted, reason)}")
    for name in names:
        if name == "eager" or _passes(name, model, dtype, machine):
            if wanted == "auto":
                _log_choice(name, model, dtype, machine)
            return name
    raise UserError(f"attn={wanted} does not compute eager's attention on this machine; use attn=auto")


def model_attention(config: Any, softcap: str) -> ModelAttention:
    """Return the attention of a model configuration, soft-capped or not as it was trained."""
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None and softcap == "on"
    n_heads = text.num_attention_heads
    model_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), PreTrainedModel)
    return ModelAttention(
        capped=capped,
        blockwise=capped and blockwise_attention.computes(text),
        flash=bool(model_class._supports_flash_attn) and not getattr(text, "use_bidirectional_attention", False),
        dropout=bool(getattr(text, "attention_dropout", 0)),
        shape=(
            n_heads,
            getattr(text, "num_key_value_heads", None) or n_heads,
            getattr(text, "head_dim", None) or text.hidden_size // n_heads,
        ),
    )


def this_machine() -> Machine:
    """Return this process's GPU and the FlashAttention implementations that load without a download."""
    if not torch.cuda.is_available():
        return Machine()
    available = (is_flash_attn_4_available, is_flash_attn_3_available, is_flash_attn_2_available)
    installed = {name for name, check in zip(PACKAGES, available, strict=True) if check()}
    if is_kernels_available():
        installed |= {kernel for kernel in HUB_KERNELS.values() if _is_cached(kernel)}
    return Machine(torch.cuda.get_device_capability(), frozenset(installed))


def _is_cached(kernel: str) -> bool:
    """Return whether the `kernels` package has downloaded the version of a kernel that transformers loads."""
    cache_folder = Path(os.environ.get("KERNELS_CACHE") or constants.HF_HUB_CACHE)
    version = f"v{FLASH_ATTN_KERNEL_VERSIONS.get(kernel, 1)}"
    folders = (cache_folder / f"{kind}s--{kernel.replace('/', '--')}" for kind in ("kernel", "model"))
    return any((folder / "refs" / version).is_file() for folder in folders)


def _passes(name: str, model: ModelAttention, dtype: torch.dtype, machine: Machine) -> bool:
    """Load an implementation and return whether it agrees with eager attention."""
    if name in HUB_KERNELS.values():
        try:
            with patch.object(constants, "HF_HUB_OFFLINE", True):  # it is cached: no request for a newer version
                lazy_import_flash_attention(name)
        except Exception as error:  # a kernel of another torch or another card fails in many ways
            logger.warning("%s cannot be loaded (%s)", name, f"{error}".splitlines()[:1])
            return False
    return agrees_with_eager(name, model.shape, dtype, machine.device, model.capped)


def _remedy(wanted: str, reason: str) -> str:
    if "not installed" in reason:
        install = "run 'make setup EXTRAS=gpu'" if wanted == "flash_attention_4" else "install it"
        return f"{install}, or use attn=auto"
    return "use dtype=bfloat16 or attn=auto" if "16 bits" in reason else "use attn=auto"


@cache
def _log_choice(name: str, model: ModelAttention, dtype: torch.dtype, machine: Machine) -> None:
    """Log, once per process, the choice on a GPU, and the reasons where it is not FlashAttention on a card for it."""
    if machine.device == "cpu":
        return
    logger.info("attention: %s", name)
    flash = name in PACKAGES or name in HUB_KERNELS.values()
    if not flash and model.capped and machine.capability >= (8, 0) and dtype in SIXTEEN_BITS:
        reasons = {package: obstacle(package, model, dtype, machine) or "failed its self-check" for package in PACKAGES}
        listed = "; ".join(f"{package}: {reason}" for package, reason in reasons.items())
        logger.warning("%s attention is slower than FlashAttention, which cannot run (%s)", name, listed)


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
