"""Which attention implementation a model runs on: resolved per family and device, checked, never silently another.

Gemma2 caps its attention logits (soft-capping), which PyTorch's sdpa has no term for: an implementation without it
computes another function without a word. So sdpa is refused for such a family unless its soft-capping is switched
off (``attn_softcap: off``), and flex attention (on a GPU) or our blockwise one (on a CPU) is used only after it has
agreed with eager on this machine.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from oof import blockwise
from oof.errors import UserError

logger = logging.getLogger(__name__)

CHECK_TOKENS, CHECK_TOLERANCE = 48, 2e-2  # bf16 has three digits


def resolve_attention(config: Any, wanted: str, softcap: str = "on") -> str:
    """Return the attention implementation for a model configuration.

    Args:
        config: of transformers; one with ``attn_logit_softcapping`` is a soft-capped family.
        wanted: ``attn`` of the member; "auto" takes FlashAttention 2 on a GPU that has it, else flex attention on a
            GPU or blockwise attention on a CPU if it passes its self-check, else eager; without soft-capping, sdpa.
        softcap: "on" or "off", as trained.

    Raises:
        UserError: the wanted one drops the model's soft-capping, or needs one.
    """
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None and softcap == "on"
    in_blocks = capped and blockwise.computes(text)
    if capped and wanted == "sdpa":
        raise UserError(
            f"attn=sdpa drops the soft-capping of {config.model_type}; use attn=auto, or train and score with "
            "attn_softcap=off"
        )
    if wanted == blockwise.NAME and not in_blocks:
        raise UserError(
            f"attn=blockwise computes soft-capped, causal attention without dropout, and {config.model_type}'s here is "
            "another; use attn=auto"
        )
    if wanted != "auto":
        return wanted
    if not capped:
        return "sdpa"
    family: Any = type(config)
    if not torch.cuda.is_available():
        return blockwise.NAME if in_blocks and agrees_with_eager(family, blockwise.NAME, "cpu") else "eager"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return "flex_attention" if agrees_with_eager(family, "flex_attention", "cuda") else "eager"


@cache
def agrees_with_eager(config_class: Hashable, attention: str, device: str) -> bool:
    """Return whether an attention gives eager's logits and gradients on a tiny model of a family."""
    try:
        difference = _difference(config_class, attention, device)
    except Exception as error:  # compilers fail in many ways; each means eager
        logger.info("%s is not usable here (%s); eager instead", attention, f"{error}".splitlines()[0][:120])
        return False
    if difference > CHECK_TOLERANCE:
        logger.warning("%s differs from eager by %.2g here; eager instead", attention, difference)
    return difference <= CHECK_TOLERANCE


def _difference(config_class: Any, attention: str, device: str) -> float:
    tiny = config_class(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        sliding_window=16,
        num_labels=3,
        pad_token_id=0,
    )
    ids = torch.randint(1, 64, (2, CHECK_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    results, weights = [], None
    for implementation in ("eager", attention):
        settings = copy.deepcopy(tiny)  # from_config writes the implementation into its argument
        model: Any = AutoModelForSequenceClassification.from_config(settings, attn_implementation=implementation)  # type: ignore[no-untyped-call]
        model = model.to(device)
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        model.requires_grad_(attention != "flex_attention" or device != "cpu")  # there, it has no backward pass
        logits = model(input_ids=ids).logits
        compared = [logits.detach().flatten()]
        if logits.requires_grad:
            logits.square().sum().backward()
            compared.append(model.model.embed_tokens.weight.grad.flatten())
        results.append(torch.cat(compared))
    return float((results[0] - results[1]).abs().max() / results[0].abs().max())


@contextmanager
def sdpa_allowed(config: Any, attention: str) -> Iterator[None]:
    """Let transformers build a soft-capped family on sdpa, whose soft-capping has been switched off.

    The class says that it does not support sdpa, for the sake of soft-capping alone; the shared sdpa function
    refuses a soft-cap that is not None, so a mistake cannot pass in silence.
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
