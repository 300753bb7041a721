"""The traced cost equals the cost of the real model: weights, FLOPs, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from oof.common.errors import UserError
from oof.config import Lora, Member
from oof.model.classifier import load_base, load_tokenizer
from oof.model.cost_model import base_config, trace
from oof.model.lora import add_adapters
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
from oof.config import Lora, Member
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
    return Member(checkpoint=save_tiny(request.param, folder, **WIDE), dtype="float32", lora=Lora(rank=8))


@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_parameters_and_flops_are_those_of_the_real_model(member: Member, layers: str) -> None:
    member = Member(checkpoint=member.checkpoint, dtype="float32", lora=Lora(rank=8, layers=layers))
    attention = "eager" if "gemma2" in member.checkpoint else "sdpa"
    planned = trace(member, BATCH, TOKENS, True, False, attention)
    tokenizer = load_tokenizer(member.checkpoint)
    model = add_adapters(load_base(member, tokenizer, 0), member.lora, 0).train()
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    LastTokens(model, tokenizer.pad_token_id)
    with FlopCounterMode(display=False) as flops:
        model(input_ids=torch.full((BATCH, TOKENS), 10)).logits.sum().backward()
    assert planned.flops == pytest.approx(flops.get_total_flops(), rel=0.05)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(input_ids=torch.full((BATCH, TOKENS), 10))
    scored = trace(member, BATCH, TOKENS, False, False, attention)
    assert scored.flops == pytest.approx(flops.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    ("layers", "checkpointing"),
    [
        ("all", False),
        pytest.param("upper_half", False, marks=pytest.mark.slow),
        pytest.param("all", True, marks=pytest.mark.slow),
    ],
)
def test_planned_memory_is_near_the_measured_peak(member: Member, layers: str, checkpointing: bool) -> None:
    if sys.platform != "linux":
        pytest.skip("reads the process's high-water mark from /proc")
    attention = "sdpa"  # blockwise attention does not store scores either
    traced = Member(checkpoint=member.checkpoint, dtype="float32", lora=Lora(rank=8, layers=layers))
    planned = trace(traced, BATCH, TOKENS, True, checkpointing, attention).peak_bytes
    # Without this, the C library keeps freed tensors, and the mark is that of its heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, member.checkpoint, layers, str(checkpointing)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)  # noqa: S603
    measured = json.loads(done.stdout.splitlines()[-1])
    assert planned == pytest.approx(measured, rel=0.2)


def test_costs_of_deep_models_and_large_batches_are_extrapolated(member: Member) -> None:
    attention = "eager" if "gemma2" in member.checkpoint else "sdpa"
    wide, narrow = (trace(member, n, TOKENS, True, False, attention) for n in (6, 1))
    assert wide.parameters == narrow.parameters
    assert wide.peak_bytes > 2 * narrow.peak_bytes
    assert trace(member, 6, TOKENS, True, True, attention).peak_bytes < wide.peak_bytes
    assert trace(member, 6, TOKENS, False, False, attention).flops < wide.flops / 1.9


def test_known_shapes_have_the_published_number_of_weights() -> None:
    """Source: the hub's model cards. 8.03 G of Llama 3.1 count the language model's output layer."""
    published = {"google/gemma-2-9b-it": 9.24, "google/gemma-2-2b-it": 2.61}
    published |= {"meta-llama/Llama-3.1-8B-Instruct": 8.03 - 0.525, "meta-llama/Llama-3.2-3B-Instruct": 3.21}
    for checkpoint, billions in published.items():
        member = Member(checkpoint=checkpoint, lora=Lora(rank=0))
        cost = trace(member, 1, 8, False, False, "sdpa")
        assert cost.parameters / 1e9 == pytest.approx(billions, abs=0.006), checkpoint


def test_an_unknown_checkpoint_is_an_error_of_one_sentence() -> None:
    with pytest.raises(UserError, match="nobody/nothing"):
        base_config("nobody/nothing")
