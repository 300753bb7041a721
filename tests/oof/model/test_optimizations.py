"""Optimizations are exact: same logits, same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oof.config import Lora, Member
from oof.model.classifier import load_base, load_tokenizer
from oof.model.lora import add_adapters
from oof.model.optimizations import (
    FusedLora,
    LastTokens,
    checkpoint_trainable_layers,
    decoder_layers,
    merged_where_exact,
)
from tests.fixtures.exactness import assert_exact, batch, gradients
from tests.fixtures.tiny_classifiers import with_random_adapter
from tests.fixtures.tiny_models import FAMILIES, save_tiny

LORA = Lora(rank=4, alpha=8)


def model_of(family: str, folder: Path, lora: Lora = LORA) -> tuple[torch.nn.Module, int]:
    member = Member(checkpoint=save_tiny(family, folder), dtype="float32", lora=lora)
    return with_random_adapter(member, 0.1), load_tokenizer(member.checkpoint).pad_token_id


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_last_layer_for_pooled_tokens_only_gives_the_same_logits_and_gradients(family: str, tmp_path: Path) -> None:
    model, pad = model_of(family, tmp_path)
    assert_exact(model, pad, lambda: LastTokens(model, pad))


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_recomputed_activations_give_the_same_gradients(family: str, tmp_path: Path) -> None:
    model, pad = model_of(family, tmp_path, Lora(rank=4, alpha=8, layers="upper_half"))
    model.train()
    logits, grads = gradients(model, batch(pad))
    assert checkpoint_trainable_layers(model) == 2
    assert [getattr(layer, "gradient_checkpointing", False) for layer in decoder_layers(model)] == [
        False,
        False,
        True,
        True,
    ]
    again, again_grads = gradients(model, batch(pad))
    assert torch.equal(again, logits)
    for name, grad in grads.items():
        assert torch.equal(again_grads[name], grad), name


def test_there_is_no_backward_pass_below_the_lowest_adapter(tmp_path: Path) -> None:
    model, pad = model_of("llama", tmp_path, Lora(rank=4, alpha=8, layers="upper_half"))
    needs: list[bool] = []
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda module, args, output: needs.append(output.requires_grad))
    model.train()(**batch(pad))
    assert needs == [False, False, True, True]


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_merged_float32_adapter_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    model, pad = model_of(family, tmp_path)
    with torch.inference_mode():
        logits = model.eval()(**batch(pad)).logits
        merged = merged_where_exact(model)
        assert not any("lora" in name for name, _ in merged.named_parameters())
        torch.testing.assert_close(merged.eval()(**batch(pad)).logits, logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_is_not_merged_into_a_bf16_base(tmp_path: Path) -> None:
    member = Member(checkpoint=save_tiny("llama", tmp_path), dtype="bfloat16", lora=LORA)
    model = add_adapters(load_base(member, load_tokenizer(member.checkpoint), 0), LORA, 0)
    assert merged_where_exact(model) is model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_fused_lora_update_gives_the_same_logits_and_gradients(family: str, tmp_path: Path) -> None:
    model, pad = model_of(family, tmp_path)
    optimization = assert_exact(model, pad, lambda: FusedLora(model))
    assert len(optimization.layers) == sum("lora_B" in name for name, _ in model.named_parameters())


def test_the_bfloat16_error_of_a_fused_update_is_at_most_peft_s(tmp_path: Path) -> None:
    model, _ = model_of("llama", tmp_path)
    layer = next(m for name, m in model.named_modules() if name.endswith("q_proj"))
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    truth = layer.double()(x.double())

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((layer(x).detach().double() - truth.detach()).square().mean().sqrt())

    layer.float()
    pefts, optimization = error(), FusedLora(model)
    assert layer in optimization.layers
    assert error() <= 1.01 * pefts


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8, dora=True), Lora(rank=4, alpha=8, dropout=0.1)])
def test_other_lora_variants_keep_peft_s_forward(lora: Lora, tmp_path: Path) -> None:
    assert not FusedLora(model_of("llama", tmp_path, lora)[0]).layers
