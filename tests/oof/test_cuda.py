"""GPU tests: logits equal those of plain transformers on the CPU, and memory use is as planned.

``make test-gpu`` runs them on a CUDA GPU. Those that need none also run on a CPU, with narrower models. On a GPU the
models are random and small, but have the real models' head sizes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from oof.config import Lora, Member, Prompts, Train
from oof.encoding.encode import encode_battles
from oof.model import blockwise_attention
from oof.model.attention import resolve_attention
from oof.model.classifier import load_base, load_tokenizer
from oof.model.cost_model import needs_checkpointing, trace, traced_attention
from oof.model.lora import add_adapters
from oof.model.optimizations import FusedLora, LastTokens, checkpoint_trainable_layers
from oof.model.precision import DTYPES
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.real_heads import FAMILIES, REAL_HEADS
from tests.fixtures.small_tables import table
from tests.fixtures.tiny_classifiers import logits_of, save_random_adapter, training_steps
from tests.fixtures.tiny_models import save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
RECIPE = Train(epochs=1, lr=1e-3, head_lr=1e-3, batch_battles=8, tokens_per_batch=4096, warmup_share=0.0)


@pytest.fixture(scope="module", params=FAMILIES)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = save_tiny(request.param, folder, scale=2.0, **REAL_HEADS[request.param])
    return Member(checkpoint=checkpoint, dtype="float32", lora=Lora(rank=8, alpha=16), train=RECIPE)


def reference(member: Member, folder: Path) -> np.ndarray:
    """Return (n, 2, 3) logits of plain transformers and peft: one unpadded row, float32, eager, on the CPU."""
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(6), tokenizer, Prompts(max_tokens=200), 200)
    base = AutoModelForSequenceClassification.from_pretrained(
        member.checkpoint,
        num_labels=3,
        dtype=torch.float32,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    model = PeftModel.from_pretrained(base, str(folder), torch_device="cpu").eval().cpu()

    def logits(i: int, order: int) -> list[float]:
        return model(input_ids=torch.tensor(encoded.sequence(i, order)[None].astype(np.int64))).logits[0].tolist()

    with torch.inference_mode():
        return np.array([[logits(i, 0), [logits(i, 1)[k] for k in (1, 0, 2)]] for i in range(6)])


@pytest.mark.parametrize("attn", ["auto", "eager"])
@pytest.mark.parametrize(("change", "tolerance"), [({}, 2e-3), ({"dtype": "bfloat16"}, 0.1), ({"float16": True}, 0.05)])
def test_logits_are_those_of_plain_transformers_on_the_cpu(
    member: Member, attn: str, change: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    folder = save_random_adapter(member, tmp_path / "adapter", 0.02)
    changed = replace(member, attn=attn, dtype=change.get("dtype", "float32"))
    changed = replace(changed, score_dtype="float16" if "float16" in change else "same")
    expected = reference(member, folder)
    assert expected.std() > 0.1
    np.testing.assert_allclose(
        logits_of(changed, folder, 6), expected, atol=tolerance * max(1.0, float(expected.std()))
    )


def test_soft_capped_attention_never_runs_on_sdpa(member: Member) -> None:
    config = AutoConfig.from_pretrained(member.checkpoint)
    chosen = resolve_attention(config, "auto")
    if "gemma2" in member.checkpoint:
        assert chosen == blockwise_attention.NAME  # no FlashAttention computes in float32
    else:
        assert chosen == "sdpa"


def train(member: Member, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the losses logged in 4 steps, and the training's summary."""
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    summary: dict[str, Any] = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    return np.array([entry["loss"] for entry in summary["history"]]), summary


@pytest.mark.slow
def test_training_follows_eager_in_every_attention_and_precision(member: Member, tmp_path: Path) -> None:
    expected, _ = train(replace(member, attn="eager"), tmp_path / "eager")
    for dtype, tolerance in (("float32", 5e-3), ("bfloat16", 5e-2)):
        losses, _ = train(replace(member, dtype=dtype), tmp_path / dtype)
        np.testing.assert_allclose(losses, expected, atol=tolerance * max(1.0, float(expected.max())), err_msg=dtype)


@needs_gpu
def test_a_real_out_of_memory_halves_the_batch_and_keeps_the_optimisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}
    checkpoint = save_tiny("llama", tmp_path / "base", scale=1.0, **wide)
    recipe = replace(RECIPE, tokens_per_batch=512, activation_checkpointing="off")
    small = Member(checkpoint=checkpoint, dtype="float32", lora=Lora(rank=8), train=recipe)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected, summary = train(small, tmp_path / "small")
    assert summary["oom_halvings"] == 0
    needed = torch.cuda.max_memory_reserved()
    large = replace(small, train=replace(recipe, tokens_per_batch=8192))
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.2 * needed / total))
    try:
        losses, summary = train(large, tmp_path / "large")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert summary["oom_halvings"] >= 1
    assert summary["tokens_per_batch"] < 8192
    np.testing.assert_allclose(losses, expected, atol=5e-3)


@needs_gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_memory_is_near_the_peak(member: Member, dtype: str, checkpointing: bool, tmp_path: Path) -> None:
    batch, tokens = 8, 1024
    family = next(name for name in REAL_HEADS if name in member.checkpoint)
    wide = REAL_HEADS[family] | {"intermediate_size": 2048, "num_hidden_layers": 8, "max_position_embeddings": 2048}
    wide_member = replace(member, checkpoint=save_tiny(family, tmp_path / "base", scale=1.0, **wide), dtype=dtype)
    config = AutoConfig.from_pretrained(wide_member.checkpoint)
    attention = traced_attention(resolve_attention(config, "auto"), config, DTYPES[dtype])
    planned = trace(replace(wide_member, fused_layers="off"), batch, tokens, True, checkpointing, attention).peak_bytes
    tokenizer = load_tokenizer(wide_member.checkpoint)
    torch.ones(64, 64, device="cuda") @ torch.ones(
        64, 64, device="cuda"
    )  # allocates the library's workspace before the measurement
    before = torch.cuda.memory_allocated()
    model = add_adapters(load_base(wide_member, tokenizer, 0), wide_member.lora, 0).cuda().train()
    if checkpointing:
        checkpoint_trainable_layers(model)
    _ = LastTokens(model, tokenizer.pad_token_id), FusedLora(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        ids = torch.full((batch, tokens), 10, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids).logits.float().sum()
        loss.backward()
        optimizer.step()
    measured = torch.cuda.max_memory_allocated() - before
    assert planned == pytest.approx(measured, rel=0.2)


@needs_gpu
def test_activation_checkpointing_depends_on_the_card_s_memory(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, tokenizer = training_steps(member)
    model = add_adapters(load_base(member, tokenizer, 1), member.lora, 1)
    assert not needs_checkpointing(model, member, steps)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a: (2**20, 2**20))
    assert needs_checkpointing(model, member, steps)
