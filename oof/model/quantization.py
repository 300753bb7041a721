"""bitsandbytes settings of a quantised base model or student: int8 or nf4, never the score head.

The one place for these arguments: a base is trained and scored, and a student exported, with the same ones.

Sources: Dettmers et al., LLM.int8(), NeurIPS 2022; Dettmers et al., QLoRA, NeurIPS 2023 (nf4, double quantisation).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

# An explicit list replaces transformers' default, which spares the head, too; so the head is named.
UNQUANTISED = ["score"]


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the arguments for ``from_pretrained(quantization_config=...)``.

    Args:
        kind: "int8" or "nf4".
        dtype: in which nf4 weights are multiplied after dequantisation; int8 does not read it.
    """
    options: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["bnb_4bit_compute_dtype"] = dtype
    return BitsAndBytesConfig(**options, llm_int8_skip_modules=UNQUANTISED)  # type: ignore[no-untyped-call]


def dequantise(model: Any, dtype: torch.dtype) -> Any:
    """Return a model with plain weights of ``dtype`` in place of its quantised ones; any other model as it is.

    The function stays the same up to rounding, so that adapters trained on the quantised base can be merged. Merged
    into the quantised weights, most of their update would be rounded away.
    """
    if not getattr(model, "is_quantized", False):
        return model
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that weights are dequantised
    plain = model.dequantize(dtype)
    logger.setLevel(level)
    return plain


def compute_in(config: Any, dtype: torch.dtype) -> None:
    """Make a saved nf4 model multiply in ``dtype``, in place, instead of in the precision of the GPU that quantised it.

    A T4 only emulates the bfloat16 that a newer GPU has written into the model's configuration.
    """
    saved = getattr(config, "quantization_config", None)
    if saved and "bnb_4bit_compute_dtype" in saved:
        saved["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
