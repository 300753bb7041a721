"""Precision of a member: what "auto" takes on which hardware, and in which dtype weights are held."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oof.config import Lora
from oof.model.classifier import load_base, load_tokenizer
from oof.model.lora import add_adapters
from oof.model.precision import resolve_dtype
from tests.fixtures.tiny_models import MEMBER


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "chosen"),
    [
        (True, True, torch.bfloat16),
        (True, False, torch.float16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_auto_takes_16_bits_where_the_hardware_computes_in_them(
    gpu: bool, bfloat16: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return bfloat16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bfloat16)
    assert resolve_dtype("auto") == chosen


def test_a_frozen_base_is_held_in_float16_and_a_fully_trained_one_in_float32() -> None:
    half, tokenizer = replace(MEMBER, dtype="float16"), load_tokenizer(MEMBER.checkpoint)
    adapted = add_adapters(load_base(half, tokenizer, 1), half.lora, 1)
    layers = [p for name, p in adapted.named_parameters() if ".layers." in name]
    assert {p.dtype for p in layers if not p.requires_grad} == {torch.float16}
    assert {p.dtype for p in layers if p.requires_grad} == {torch.float32}
    whole = load_base(replace(half, lora=Lora(rank=0)), tokenizer, 1)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
