"""Ordered table of attention implementations, for cards and packages that are not at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oof.model.attention_table import HUB_KERNELS, ORDER, PACKAGES, Machine, ModelAttention, candidates, obstacle

GEMMA = ModelAttention(capped=True, blockwise=True, flash=True, dropout=False, shape=(16, 8, 256))
LLAMA = ModelAttention(capped=False, blockwise=False, flash=True, dropout=False, shape=(32, 8, 128))
GEMMA_27B = replace(GEMMA, shape=(32, 16, 128))
EVERY = frozenset((*PACKAGES, *HUB_KERNELS.values()))
FA4, FA3, FA2 = PACKAGES
KERNEL4, KERNEL3, KERNEL2 = HUB_KERNELS.values()
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
T4, A100, RTX4090, H100, B200, RTX5090 = (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
NONE: frozenset[str] = frozenset()

CASES = {
    "CPU, Gemma2": (GEMMA, FP32, (0, 0), NONE, ("blockwise", "eager")),
    "CPU, Llama": (LLAMA, BF16, (0, 0), NONE, ("sdpa", "eager")),
    "T4 in fp16, Gemma2": (GEMMA, FP16, T4, EVERY, ("blockwise", "eager")),
    "T4 in bf16, Gemma2": (GEMMA, BF16, T4, EVERY, ("blockwise", "eager")),
    "T4 in fp16, Llama": (LLAMA, FP16, T4, EVERY, ("sdpa", "eager")),
    "A100 in bf16, Gemma2": (GEMMA, BF16, A100, EVERY, (FA3, FA2, KERNEL3, KERNEL2, "blockwise", "eager")),
    "A100 in float32, Gemma2": (GEMMA, FP32, A100, EVERY, ("blockwise", "eager")),
    "A100 in bf16, Llama, the gpu extra": (LLAMA, BF16, A100, frozenset({FA4}), ("sdpa", "eager")),
    "RTX 4090, Gemma2, a cached kernel": (GEMMA, BF16, RTX4090, frozenset({KERNEL2}), (KERNEL2, "blockwise", "eager")),
    "H100 in bf16, Gemma2": (
        GEMMA,
        BF16,
        H100,
        EVERY,
        (FA4, FA3, FA2, KERNEL4, KERNEL3, KERNEL2, "blockwise", "eager"),
    ),
    "H100 in fp16, Gemma2, the gpu extra": (GEMMA, FP16, H100, frozenset({FA4}), (FA4, "blockwise", "eager")),
    "H100 in float32, Llama": (LLAMA, FP32, H100, EVERY, ("sdpa", "eager")),
    "H100 in bf16, Llama, the gpu extra": (LLAMA, BF16, H100, frozenset({FA4}), (FA4, "sdpa", "eager")),
    "H100, Gemma2, nothing installed": (GEMMA, BF16, H100, NONE, ("blockwise", "eager")),
    "H100, Llama, nothing installed": (LLAMA, BF16, H100, NONE, ("sdpa", "eager")),
    "B200, Gemma2-9B": (GEMMA, BF16, B200, EVERY, (FA2, KERNEL2, "blockwise", "eager")),
    "B200, Gemma2-27B": (GEMMA_27B, BF16, B200, EVERY, (FA4, FA2, KERNEL4, KERNEL2, "blockwise", "eager")),
    "RTX 5090, Gemma2-9B": (GEMMA, BF16, RTX5090, EVERY, (FA2, KERNEL2, "blockwise", "eager")),
}


@pytest.mark.parametrize("case", list(CASES))
def test_candidates_of_a_model_precision_card_and_installation(case: str) -> None:
    model, dtype, capability, installed, expected = CASES[case]
    assert candidates(model, dtype, Machine(capability, installed)) == expected


def test_every_implementation_has_a_place_and_eager_is_the_last_and_has_no_obstacle() -> None:
    assert len(set(ORDER)) == len(ORDER)
    assert ORDER[-1] == "eager"
    assert obstacle("eager", replace(GEMMA, blockwise=False, flash=False, dropout=True), FP32, Machine()) == ""


def test_flash_attention_without_dropout_is_not_used_for_a_model_with_dropout() -> None:
    """transformers passes no dropout to FlashAttention 3 and 4, and reports nothing."""
    model = replace(LLAMA, dropout=True)
    assert candidates(model, BF16, Machine(H100, EVERY)) == (FA2, KERNEL2, "sdpa", "eager")


@pytest.mark.parametrize(
    ("name", "model", "dtype", "machine", "reason"),
    [
        (FA4, GEMMA, BF16, Machine(), "needs a CUDA GPU"),
        (FA2, GEMMA, FP32, Machine(A100, EVERY), "16 bits, not in float32"),
        (FA2, GEMMA, FP16, Machine(T4, EVERY), "8.0 or higher, not 7.5"),
        (FA4, GEMMA, BF16, Machine(A100, EVERY), "9.0 or higher, not 8.0"),
        (FA3, GEMMA, BF16, Machine(B200, EVERY), "8.0 to 9.0, not 10.0"),
        (FA4, GEMMA, BF16, Machine(B200, EVERY), "soft-capped heads of 256"),
        (FA4, GEMMA, BF16, Machine(RTX5090, EVERY), "heads of 256"),
        (FA2, replace(GEMMA, shape=(8, 4, 320)), BF16, Machine(H100, EVERY), "not 320"),
        (FA2, replace(GEMMA, flash=False), BF16, Machine(H100, EVERY), "transformers"),
        (FA4, GEMMA, BF16, Machine(H100), "package flash-attn-4 is not installed"),
        (KERNEL2, GEMMA, BF16, Machine(H100), "not in the local cache"),
        ("sdpa", GEMMA, BF16, Machine(H100), "soft-capping"),
        ("blockwise", LLAMA, BF16, Machine(H100), "soft-capped"),
    ],
)
def test_an_obstacle_is_named(
    name: str, model: ModelAttention, dtype: torch.dtype, machine: Machine, reason: str
) -> None:
    assert reason in obstacle(name, model, dtype, machine)
