"""What the parts of the GPU benchmark measure: models, batches that fit, attentions, arithmetic, drift and kinds."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import Gemma2ForSequenceClassification

from benchmarks.gpu import bench, plain_trainer, three_stages
from benchmarks.gpu.both_orders import drift
from benchmarks.gpu.card import describe, result_key
from benchmarks.gpu.kernel_profile import kind_of, shares
from benchmarks.gpu.parts import ARENA, FULL, PARTS, PROBLEM, QUICK, Context
from benchmarks.gpu.random_classifier import build, largest_budget, member_of, model_flops, random_battles
from oof.common.atomic_files import write_json
from oof.config import Member
from oof.model import blockwise_attention

SHAPE = next(iter(QUICK.shapes))


def fail_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every forward pass of more tokens than ``limit`` run out of memory; return the tokens of those that ran."""
    sizes: list[int] = []
    forward = Gemma2ForSequenceClassification.forward

    @functools.wraps(forward)  # Trainer reads the signature
    def limited(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        real = not isinstance(input_ids, FakeTensor)  # the plan's
        if real and input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        sizes.extend([input_ids.numel()] * real)
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(Gemma2ForSequenceClassification, "forward", limited)
    return sizes


@pytest.mark.slow
def test_training_that_runs_out_of_memory_is_measured_with_smaller_batches(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = context.size.max_tokens
    fail_above(2 * longest, monkeypatch)
    row, fit = bench.measured_row("training", (SHAPE, f"{longest} tokens", "eager"), context)
    assert fit, row
    assert PROBLEM not in row
    assert (row["halvings"], row["tokens_per_batch"]) == (1, 2 * longest)
    assert row["tokens_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["training", "trainer", "scoring"])
def test_a_case_of_which_not_one_sequence_fits_is_a_row(
    part: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = fail_above(7, monkeypatch)
    case = next(case for case in PARTS[part].cases(context) if len(case) < 3 or case[2] == "eager")
    row, fit = bench.measured_row(part, case, context)
    assert fit
    assert "memory" in row[PROBLEM] or "does not fit" in row[PROBLEM]
    assert sizes == []


@pytest.mark.slow
def test_the_plain_trainer_takes_the_largest_batch_that_fits_then_recomputes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = context.size.max_tokens
    fail_above(2 * longest, monkeypatch)
    row = plain_trainer.measure((SHAPE, f"{longest} tokens"), context)
    assert (row["batch"], row["checkpointing"]) == (2, False)
    fits = plain_trainer.train

    def train(model: Any, data: Any, options: dict[str, Any]) -> float:
        return fits(model, data, options) if options["activation_checkpointing"] else 0.0

    monkeypatch.setattr(plain_trainer, "train", train)
    row = plain_trainer.measure((SHAPE, f"{longest} tokens"), context)
    assert (row["batch"], row["checkpointing"]) == (2, True)


@pytest.mark.slow
def test_another_attention_than_auto_is_taken_by_every_case_that_names_none(context: Context) -> None:
    eager = replace(context, attention="eager")
    assert (member_of(SHAPE, eager).attn, member_of(SHAPE, eager, "blockwise").attn) == ("eager", "blockwise")
    assert result_key(describe(), eager) != result_key(describe(), context)
    row, _ = bench.measured_row("training", (SHAPE, ARENA, "eager"), eager)
    assert row["auto"]


@pytest.mark.slow
def test_the_plain_trainer_falls_back_where_an_attention_fails(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_trainer, "stock_attentions", lambda member: ["flash_attention_4", "eager"])
    row = plain_trainer.measure((SHAPE, ARENA), context)
    assert row["attention"] == "eager"
    assert row["failures"] == ["flash_attention_4: ImportError"]


@pytest.mark.parametrize(
    ("best", "shape", "expected"),
    [
        ("blockwise", "Gemma2-9B", ["eager"]),
        ("flash_attention_2", "Gemma2-9B", ["flash_attention_2", "eager"]),
        ("flash_attention_4", "Llama-3.1-8B", ["flash_attention_4", "sdpa"]),
        ("sdpa", "Llama-3.1-8B", ["sdpa"]),
    ],
)
def test_the_plain_trainer_has_the_best_attention_of_transformers(
    best: str, shape: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_trainer, "resolved", lambda member: best)
    assert plain_trainer.stock_attentions(Member(FULL.shapes[shape])) == expected


def test_a_run_that_was_stopped_goes_on_and_a_finished_one_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        stages.append(command[3])
        if len(stages) == 2:
            raise KeyboardInterrupt
        write_json(tmp_path / "demo" / "run" / "metrics.json", {"log_loss": {"prior": {"value": 1.1}}})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(three_stages.subprocess, "run", run)
    context = Context(tmp_path, quick=True)
    with pytest.raises(KeyboardInterrupt):
        three_stages.measure(("demo",), context)
    kept = tmp_path / "demo" / "run" / "metrics.json"
    assert kept.is_file()
    row = three_stages.measure(("demo",), context)
    assert row["continued"]
    assert set(row["seconds"]) == {"oof", "stack", "distill", "table"}
    row = three_stages.measure(("demo",), context)
    assert not row["continued"]


@pytest.mark.parametrize("quantise", ["none", "int8", "nf4"])
def test_a_random_classifier_has_the_shape_adapters_and_quantisation_of_a_fold_job(
    quantise: str, context: Context
) -> None:
    member = member_of(SHAPE, context, option=quantise)
    model = build(member, blockwise_attention.NAME)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    expected = {"none": "Linear", "int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantise]
    assert type(layer.base_layer).__name__ == type(layer).__name__ == expected
    assert model.config._attn_implementation == blockwise_attention.NAME
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits = model(input_ids=torch.arange(10, 26)[None]).logits
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()
    assert torch.equal(build(member, blockwise_attention.NAME)(input_ids=torch.arange(10, 26)[None]).logits, logits)


@pytest.mark.slow
def test_the_plan_chooses_the_largest_batch_that_fits_then_recomputes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_of("Gemma2-9B", Context(context.folder))
    chosen = []
    for memory in (80e9, 24e9, 1e9):
        monkeypatch.setattr("benchmarks.gpu.random_classifier.usable_memory", lambda memory=memory: memory * 0.9)
        chosen.append(largest_budget(member, blockwise_attention.NAME, FULL.max_tokens, FULL))
    assert chosen == [(4096, False), (2048, True), (2048, True)]


@pytest.mark.slow
def test_flops_are_those_of_the_real_tokens() -> None:
    member = Member(FULL.shapes["Gemma2-9B"])
    lengths = np.array([400, 600])
    per_token = model_flops(member, lengths, False) / 1000
    assert 2 * 8e9 < per_token < 2 * 9.5e9  # two operations for each weight but those of the embedding
    assert 1.9 < model_flops(member, lengths, True) / model_flops(member, lengths, False) < 2.2


def test_both_orders_of_random_battles_have_the_given_lengths() -> None:
    lengths = np.array([12, 30])
    battles = random_battles(lengths, 100, orders=2)
    np.testing.assert_array_equal(battles.lengths, np.stack([lengths, lengths], axis=1))
    assert battles.ids.min() >= 10


def test_drift_is_zero_for_equal_logits_and_the_kl_divergence_otherwise() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    assert drift(logits, logits)["kl"] == 0.0
    shifted = logits + np.array([0.5, 0.0, 0.0], dtype=np.float32)
    p, q = (torch.distributions.Categorical(logits=torch.from_numpy(x).double()) for x in (logits, shifted))
    expected = torch.distributions.kl_divergence(p, q).mean()
    assert drift(logits, shifted)["kl"] == pytest.approx(float(expected), rel=1e-6)
    assert drift(logits, shifted)["largest_difference"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm_", "matrix products"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("void cutlass::device_kernel<flash::enable_sm90>", "fused attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "fused attention"),
        ("void kDequantizeBlockwise<__nv_bfloat16>", "dequantisation"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::mul", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::tanh_kernel_cuda>", "activation functions"),
        ("unknown", "other"),
    ],
)
def test_operations_are_sorted_into_kinds_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_shares_of_kinds_sum_to_one_largest_first() -> None:
    assert shares([("aten::mm", 6.0), ("aten::mul", 1.0), ("aten::bmm", 1.0)]) == {
        "matrix products": 0.875,
        "elementwise": 0.125,
    }
