"""Share of each kind of operation in the time of LoRA training and of scoring, by ``torch.profiler``.

On a GPU the time is that of the kernels, classified by their names; on a CPU that of PyTorch's operations. The matrix
products inside eager and blockwise attention count as matrix products.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.gpu.lora_training import plan_of, prepared, train
from benchmarks.gpu.parts import ARENA, TRAINING, Case, Context, Row
from benchmarks.gpu.random_classifier import (
    PAD,
    build,
    free_memory,
    member_of,
    random_battles,
    resolved,
    sequence_lengths,
    vocabulary_of,
)
from oof.config import Member
from oof.training.inference import predict_logits

# The first pattern that is found in a name, in lower case, decides.
KINDS = {
    "optimizer": r"adam|multi_tensor|foreach",
    "fused attention": r"flash|fmha|attention",
    "dequantisation": r"dequant|quantize|bitsandbytes|int8",
    "matrix products": r"gemm|nvjet|cutlass|cublas|::(add)?b?mm_?$|matmul|linear|xmma",
    "norms": r"norm|rsqrt",
    "activation functions": r"gelu|geglu|silu|swiglu|sigmoid|tanh",
    "softmax and loss": r"softmax|nll|cross_entropy",
    "copies and casts": r"copy|memcpy|cast|to_copy|clone|contiguous|memset|fill|zero",
    "gather and scatter": r"index|gather|scatter|embedding|cat",
    "reductions": r"reduce|sum|mean|max",
    "elementwise": r"elementwise|::(mul|add|sub|div|neg|pow|cos|sin)_?$",
}
OTHER = "other"
LISTED = 10  # operations with the most time


def kind_of(name: str) -> str:
    """Return the kind of an operation or kernel."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), OTHER)


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return each kind's share of the time, the largest first."""
    totals: dict[str, float] = {}
    for name, time_us in times:
        kind = kind_of(name)
        totals[kind] = totals.get(kind, 0.0) + time_us
    whole = sum(totals.values()) or 1.0
    return {kind: time_us / whole for kind, time_us in sorted(totals.items(), key=lambda item: -item[1]) if time_us}


def measure(case: Case, context: Context) -> Row:
    """Return the shares of the kinds of operations in training or scoring, and the names that take the most time."""
    shape, what = case
    member = member_of(shape, context)
    times = profiled_training(member, context) if what == TRAINING else profiled_scoring(member, context)
    whole = sum(time_us for _, time_us in times) or 1.0
    longest = sorted(times, key=lambda item: -item[1])[:LISTED]
    return {
        "attention": resolved(member),
        "shares": shares(times),
        "longest": {name[:100]: time_us / whole for name, time_us in longest},
        "kernel_seconds": whole / 1e6,
    }


def profiled_training(member: Member, context: Context) -> list[tuple[str, float]]:
    """Return name and microseconds of each operation of two optimizer steps at the arena's lengths."""
    with prepared(member, resolved(member), ARENA, context) as (model, warm, _):
        steps = plan_of(member, warm.encoded.lengths[:, 0], warm.budget)
        steps.steps = steps.steps[:2]
        return profiled(lambda: train(model, member, steps))


def profiled_scoring(member: Member, context: Context) -> list[tuple[str, float]]:
    """Return name and microseconds of each operation of the scoring of some battles in both orders."""
    lengths = sequence_lengths(ARENA, max(1, context.size.score_battles // 4), context.size)
    battles = random_battles(lengths, vocabulary_of(member), orders=2)
    free_memory()
    model = build(member, resolved(member)).eval()
    predict_logits(model, member, battles, PAD, "warm-up")
    return profiled(lambda: predict_logits(model, member, battles, PAD, "scoring"))


def profiled(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Return name and microseconds of each operation of a call: of kernels on a GPU, else of PyTorch's operations."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    if not on_gpu:
        return [(event.key, float(event.self_cpu_time_total)) for event in profiler.key_averages()]
    # Annotations such as the optimizer's step span kernels that are counted themselves.
    kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return [(event.key, float(event.self_device_time_total)) for event in kernels]
