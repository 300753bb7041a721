"""Shapes of checkpoints that configurations name, so that they are planned without a network or a licence.

Source: the config.json of each on the Hugging Face hub.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import AutoConfig, Gemma2Config, LlamaConfig, Qwen2Config

from oof.model.classifier import MAIN, readable_errors

Shape = tuple[type[Any], dict[str, Any]]


def _gemma2(width: int, feed_forward: int, layers: int, heads: int, key_heads: int, head: int = 256) -> Shape:
    shape = {"vocab_size": 256000, "sliding_window": 4096, "head_dim": head}
    return Gemma2Config, shape | _sizes(width, feed_forward, layers, heads, key_heads)


def _llama3(width: int, feed_forward: int, layers: int, heads: int, head: int = 128) -> Shape:
    return LlamaConfig, {"vocab_size": 128256, "head_dim": head} | _sizes(width, feed_forward, layers, heads, 8)


def _qwen2(width: int, feed_forward: int, layers: int, heads: int, key_heads: int, vocabulary: int) -> Shape:
    return Qwen2Config, {"vocab_size": vocabulary} | _sizes(width, feed_forward, layers, heads, key_heads)


def _sizes(width: int, feed_forward: int, layers: int, heads: int, key_heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }


KNOWN_SHAPES: dict[str, Shape] = {
    "google/gemma-2-2b-it": _gemma2(2304, 9216, 26, 8, 4),
    "google/gemma-2-9b-it": _gemma2(3584, 14336, 42, 16, 8),
    "google/gemma-2-27b-it": _gemma2(4608, 36864, 46, 32, 16, head=128),
    "Skywork/Skywork-Reward-Gemma-2-27B": _gemma2(4608, 36864, 46, 32, 16, head=128),
    "meta-llama/Llama-3.2-1B-Instruct": _llama3(2048, 8192, 16, 32, head=64),
    "meta-llama/Llama-3.2-3B-Instruct": _llama3(3072, 8192, 28, 24),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(4096, 14336, 32, 32),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": _llama3(4096, 14336, 32, 32),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 2, 151936),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2, 151936),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 11008, 36, 16, 2, 151936),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2(5120, 13824, 48, 40, 8, 152064),
}


def base_config(checkpoint: str, revision: str = "") -> Any:
    """Return a checkpoint's configuration without downloading weights; known shapes need no network at all.

    Raises:
        UserError: the checkpoint is neither on this machine nor on the hub.
    """
    if checkpoint in KNOWN_SHAPES:
        config_class, shape = KNOWN_SHAPES[checkpoint]
        return config_class(**shape)
    with readable_errors(checkpoint, revision):
        return AutoConfig.from_pretrained(checkpoint, revision=revision or MAIN, trust_remote_code=False)


@cache
def shared_config(checkpoint: str, revision: str = "") -> Any:
    """Return :func:`base_config` without reading it again: one object for all callers, who must not change it."""
    return base_config(checkpoint, revision)
