"""Tiny random checkpoints of several families, with the demo's tokenizer, saved like any Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

BASES = Path(__file__).resolve().parents[2] / "configs" / "bases"
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_HEADS = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, Any] = {
    "gemma2": lambda **more: Gemma2Config(**SMALL_HEADS | more),
    "gemma3_text": lambda **more: Gemma3TextConfig(**SMALL_HEADS | more),
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": lambda **more: Qwen3Config(**{"head_dim": 8} | more),
}


def save_tiny(family: str, folder: Path, scale: float = 4.0, **more: Any) -> str:
    """Save a random model whose weights are ``scale`` times the usual, so that caps and windows bite."""
    source = BASES / ("tiny-gemma2" if family.startswith("gemma") else "tiny-llama")
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)  # a few tokens more than the tokenizer has: Qwen's class adds its own
    config = FAMILIES[family](vocab_size=len(tokenizer) + 8, **SHAPE | more)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
