"""Arithmetic and bytes of attention layers, against counts by hand."""

from __future__ import annotations

import pytest
import torch

from oof.model.attention_cost import attention_operations, visible_scores
from oof.model.attention_table import ModelAttention
from oof.model.cards import CARDS
from oof.model.operations import Operation

GEMMA2_9B = ModelAttention(capped=True, blockwise=True, flash=True, dropout=False, shape=(16, 8, 256))
LLAMA = ModelAttention(capped=False, blockwise=False, flash=True, dropout=False, shape=(32, 8, 128))


def both(name: str, model: ModelAttention, tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[Operation]:
    return [
        each for back in (False, True) for each in attention_operations(name, model, dtype, tokens, None, back)
    ]  # fmt: skip


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 100), (64, 16)])
def test_visible_scores_are_those_of_a_loop(tokens: int, window: int | None) -> None:
    assert visible_scores(tokens, window) == sum(min(i + 1, window or tokens) for i in range(tokens))


def test_a_fused_kernel_reads_and_writes_once() -> None:
    (forward,) = attention_operations("flash_attention_4", LLAMA, torch.bfloat16, 100, None, False)
    (backward,) = attention_operations("flash_attention_4", LLAMA, torch.bfloat16, 100, None, True)
    assert forward.flops == 2 * 2 * 32 * 128 * 5050  # two products of the visible scores
    assert forward.bytes == 2 * 100 * 128 * (32 + 8 + 8 + 32)
    assert backward.flops == 2.5 * forward.flops
    assert backward.bytes == 2 * forward.bytes + 2 * 4 * 100 * 32 * 128


# Bytes of one Gemma2-9B layer over an H100's bandwidth, computed by hand: milliseconds, forward and backward.
BLOCKWISE_AT_FULL_BANDWIDTH = {(11, 368): 1.8, (5, 800): 3.5, (2, 2048): 6.3}


@pytest.mark.parametrize(("shape", "milliseconds"), BLOCKWISE_AT_FULL_BANDWIDTH.items())
def test_blockwise_attention_on_an_h100_moves_what_was_worked_out(
    shape: tuple[int, int], milliseconds: float
) -> None:  # fmt: skip
    batch, tokens = shape
    moved = batch * sum(each.bytes for each in both("blockwise", GEMMA2_9B, tokens))
    assert 1e3 * moved / CARDS["H100"].bandwidth == pytest.approx(milliseconds, rel=0.05)


def test_eager_attention_stores_scores_and_float32_sdpa_of_grouped_heads_does_too() -> None:
    scores = 32 * 512 * 512
    eager, fused = (sum(each.bytes for each in both(name, LLAMA, 512)) for name in ("eager", "sdpa"))
    assert eager > 10 * 2 * scores
    assert fused < eager / 4
    stored = both("sdpa", LLAMA, 512, torch.float32)
    assert sum(each.bytes for each in stored) > 10 * 4 * scores
    assert {each.dtype for each in stored if each.product} == {"float32"}


def test_soft_capping_costs_eager_attention_bytes() -> None:
    plain = ModelAttention(capped=False, blockwise=False, flash=True, dropout=False, shape=GEMMA2_9B.shape)
    capped, uncapped = (sum(each.bytes for each in both("eager", each, 256)) for each in (GEMMA2_9B, plain))
    assert capped > 1.2 * uncapped
