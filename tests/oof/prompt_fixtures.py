"""Tokenizers for the tests: tiny ones of every family, made here, and the real ones where they are on disk."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

REPO = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("ARENA_MODELS", REPO.parent / "models"))
REAL = {"gemma2": "tokenizer-gemma2", "llama3.1": "tokenizer-llama3.1"}
OTHERS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
DEMO = {"tiny-gemma2": "tiny-gemma2", "tiny-llama": "tiny-llama"}
TINY = ("gemma", "llama3", "chatml", "plain")
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "Prompt\nResponse A\nResponse B\nVerdict\n\n### Prompt, 1500 characters, 40% shown … 23 67 89 of the",
    "What is the capital of France? The capital of France is Paris, which lies on the Seine.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # the sum of the two is three",
]
SPECIALS = {
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    ],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "plain": ["<s>", "</s>", "<unk>"],
}
NAMES = {
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    # As SmolLM2 is published: the turn's own tokens serve as BOS, EOS and padding.
    "chatml": {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    },
    "plain": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def tiny(family: str) -> Any:
    """Return a fresh, unprepared BPE tokenizer of a family, trained on three lines."""
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=Tokenizer.from_str(_tiny_json(family)), **NAMES[family])


@functools.cache
def _tiny_json(family: str) -> str:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if family == "gemma" else []
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>") if bytes_ else models.BPE())
    if family == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        split = [pre_tokenizers.Split(Regex(LLAMA), "isolated")] if family == "llama3" else []
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if family == "gemma" else sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = [line for text in CORPUS for line in text.split("\n")] if family == "gemma" else CORPUS
    size = len(SPECIALS[family]) + 256 + 120
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS[family] + bytes_, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if family != "gemma":
        return str(tokenizer.to_str())
    # As Gemma: newlines are ordinary added tokens, bytes are no added tokens at all.
    fresh = Tokenizer(models.BPE(*_model(tokenizer), byte_fallback=True, unk_token="<unk>"))
    fresh.normalizer, fresh.pre_tokenizer, fresh.decoder = (
        tokenizer.normalizer,
        tokenizer.pre_tokenizer,
        tokenizer.decoder,
    )
    fresh.add_special_tokens(SPECIALS[family])
    fresh.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(1, 4)])
    return str(fresh.to_str())


def _model(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@functools.cache
def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def real(name: str) -> Any:
    """Return a real or demo tokenizer; skip the test where it is absent. It is shared: prepare it before use."""
    folder = REPO / "configs" / "bases" / DEMO[name] if name in DEMO else MODELS / (REAL | OTHERS)[name]
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{folder} is absent")
    return _load(folder)


def any_tokenizer(name: str) -> Any:
    """Return the tokenizer of a name of TINY, REAL, OTHERS or DEMO."""
    return tiny(name) if name in TINY else real(name)
