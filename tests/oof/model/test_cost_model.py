"""The traced cost equals the cost of the real model: weights, FLOPs, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from oof.config import Lora, Member, Train
from oof.model import pass_trace
from oof.model.checkpoint_shapes import base_config
from oof.model.classifier import load_base, load_tokenizer
from oof.model.cost_model import attention_windows, pass_operations, trace
from oof.model.lora import add_adapters
from oof.model.operations import ATTENTION
from oof.model.optimizations import LastTokens
from tests.fixtures.demo_run import ROOT
from tests.fixtures.tiny_models import save_tiny

WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "max_position_embeddings": 2048}
BATCH, TOKENS = 8, 256
# Runs the real model in a separate process, whose high-water mark is the peak memory.
MEASURE = """
import json, re, sys
import torch
from oof.model.lora import add_adapters
from oof.config import Lora, Member, Train
from oof.model.classifier import load_base, load_tokenizer
from oof.model.optimizations import LastTokens, checkpoint_trainable_layers

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

checkpoint, layers, checkpointing = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
member = Member(checkpoint=checkpoint, dtype="float32", lora=Lora(rank=8, layers=layers))
tokenizer = load_tokenizer(checkpoint)
model = add_adapters(load_base(member, tokenizer, 0), member.lora, 0).train()
if checkpointing:
    checkpoint_trainable_layers(model)
LastTokens(model, tokenizer.pad_token_id)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

def step(batch):
    model(input_ids=torch.full((batch, 256), 10)).logits.sum().backward()
    optimizer.step()

step(1)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step(8)
optimizer_bytes = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad)
print(json.dumps(status("VmHWM") - before + weights + optimizer_bytes))
"""


@pytest.fixture(scope="module", params=["gemma2", "llama"])
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    folder = tmp_path_factory.mktemp(request.param)
    tiny = save_tiny(request.param, folder, **WIDE)
    return Member(checkpoint=tiny, dtype="float32", lora=Lora(rank=8), fused_layers="off")


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_parameters_and_flops_are_those_of_the_real_model(member: Member, layers: str) -> None:
    member = replace(member, lora=Lora(rank=8, layers=layers), attn="eager")
    planned = trace(member, BATCH, TOKENS, True, False, "sdpa")
    tokenizer = load_tokenizer(member.checkpoint)
    model = add_adapters(load_base(member, tokenizer, 0), member.lora, 0).train()
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    LastTokens(model, tokenizer.pad_token_id)
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=torch.full((BATCH, TOKENS), 10)).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # Eager attention computes all scores and keeps them; a fused kernel computes the visible ones, and in the backward
    # pass once more: five products in place of four.
    visible = [sum(min(i + 1, window or TOKENS) for i in range(TOKENS)) for window in attention_windows(member)]
    share = sum(visible) / len(visible) / TOKENS**2
    (rest, scores), (rest_back, scores_back) = _of_attention(forward), _of_attention(backward)
    scored = trace(member, BATCH, TOKENS, False, False, "sdpa")
    assert scored.flops == pytest.approx(rest + share * scores, rel=0.01)
    assert planned.flops == pytest.approx(rest + rest_back + share * (scores + scores_back * 5 / 4), rel=0.01)


def _of_attention(counter: FlopCounterMode) -> tuple[float, float]:
    """Return the FLOPs outside and inside of eager attention, the only user of batched products."""
    counts = {f"{operator}": count for operator, count in counter.get_flop_counts()["Global"].items()}
    inside = counts.get("aten.bmm", 0)
    return sum(counts.values()) - inside, inside


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_extrapolated_operations_are_those_of_the_whole_depth(member: Member, layers: str) -> None:
    """Six layers are more than the traced depths of adapters in all layers; eight more than those of the upper half."""
    deep = replace(member, lora=Lora(rank=8, layers=layers))
    planned = pass_operations(deep, training=True, checkpointing=True)
    (tokens, batch), depth = (512, 3), base_config(member.checkpoint).num_hidden_layers
    direct = pass_trace.trace_pass(deep, depth, batch, tokens, True, True, False).operations
    direct = tuple(each for each in direct if each.kind != ATTENTION)
    at = np.array([1.0, batch * tokens])
    for name in ("flops", "bytes"):
        values = getattr(planned, name) @ at
        expected = sum(getattr(each, name) for each in direct)
        assert planned.weights @ values == pytest.approx(expected, rel=0.01)
    for kind in {each.kind for each in direct}:
        chosen = planned.kinds == kind
        expected = sum(each.bytes for each in direct if each.kind == kind)
        assert planned.weights[chosen] @ (planned.bytes[chosen] @ at) == pytest.approx(expected, rel=0.02), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "checkpointing"),
    [("all", False), ("upper_half", False), ("all", True)],
)
def test_planned_memory_is_near_the_measured_peak(member: Member, layers: str, checkpointing: bool) -> None:
    if sys.platform != "linux":
        pytest.skip("reads the process's high-water mark from /proc")
    attention = "sdpa"  # blockwise attention does not store scores either
    traced = replace(member, lora=Lora(rank=8, layers=layers))
    planned = trace(traced, BATCH, TOKENS, True, checkpointing, attention).peak_bytes
    # Without this, the C library keeps freed tensors, and the mark is that of its heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, member.checkpoint, layers, str(checkpointing)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)  # noqa: S603
    measured = json.loads(done.stdout.splitlines()[-1])
    assert planned == pytest.approx(measured, rel=0.2)


@pytest.mark.slow
def test_costs_of_deep_models_and_large_batches_are_extrapolated(member: Member) -> None:
    attention = "eager" if "gemma2" in member.checkpoint else "sdpa"
    wide, narrow = (trace(member, n, TOKENS, True, False, attention) for n in (6, 1))
    assert wide.parameters == narrow.parameters
    assert wide.peak_bytes > 2 * narrow.peak_bytes
    assert trace(member, 6, TOKENS, True, True, attention).peak_bytes < wide.peak_bytes
    assert trace(member, 6, TOKENS, False, False, attention).flops < wide.flops / 1.9


@pytest.mark.slow
def test_a_float32_base_and_8_bit_moments_take_their_bytes() -> None:
    base = Member("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16", lora=Lora(rank=8), fused_layers="off")
    bf16, fp32, nf4, small = (
        trace(each, 1, 64, True, False, "sdpa")
        for each in (
            base,
            replace(base, dtype="float32"),
            replace(base, quantise="nf4"),
            replace(base, train=Train(optimizer="adamw_8bit")),
        )
    )
    assert fp32.weight_bytes == pytest.approx(2 * bf16.weight_bytes, rel=0.02)
    layers = 0.358e9  # weights of Qwen2.5-0.5B's linear layers
    assert bf16.weight_bytes - nf4.weight_bytes == pytest.approx(layers * (2 - 0.516), rel=0.01)
    assert bf16.peak_bytes - small.peak_bytes == pytest.approx(6 * bf16.trainable)
