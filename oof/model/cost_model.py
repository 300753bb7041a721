"""Cost model: parameters, memory and operations of one pass, traced without weights.

Passes are traced on fake tensors (:mod:`oof.model.pass_trace`) at two small depths and two small batches, and
extrapolated: every further layer costs the same, and every operation's cost is a constant (the weights that it reads)
plus an amount per token. Attention alone grows with the square of the length, and is counted by
:mod:`oof.model.attention_cost`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oof.config import Member
from oof.encoding.batches import TrainingSteps, padded
from oof.model.attention import model_attention
from oof.model.attention_cost import visible_scores
from oof.model.checkpoint_shapes import shared_config
from oof.model.fused_layers import load_kernels
from oof.model.operations import ATTENTION, OPTIMIZER
from oof.model.pass_trace import PassTrace, build_on_meta, trace_pass
from oof.model.planned_operators import BYTES_PER_WEIGHT
from oof.model.precision import resolve_dtype

logger = logging.getLogger(__name__)

# The difference of the two depths is one layer (with adapters in the upper half: one frozen and one trained layer)
# that is neither the last one, nor the lowest trained one, in whose input no gradient ends.
DEPTHS = {"all": (2, 3), "upper_half": (4, 6)}
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2}  # of both moments, per trainable weight
TRACED_TOKENS = 1024  # of each sequence of the traced batches
USABLE_MEMORY = 0.9  # share of a card's memory that a plan may fill; the rest is for fragmentation
FUSED_FLOPS = {False: 4, True: 10}  # per visible score and value of a head, forward and backward


@dataclass(frozen=True)
class Cost:
    """The cost of one forward (and backward) pass of a batch.

    Attributes:
        parameters, trainable: weights of the whole classifier; of adapters and head.
        weight_bytes: memory of all weights, quantised where they are.
        peak_bytes: the most memory at any moment, optimizer included when training.
        flops: floating-point operations of matrix products and attention, the visible half of the scores alone.
    """

    parameters: int
    trainable: int
    weight_bytes: float
    peak_bytes: float
    flops: float


@dataclass(frozen=True)
class PassOperations:
    """All operations of a pass, as functions of the padded tokens; attention apart.

    Attributes:
        kinds, dtypes: (n,) of each operation.
        products: (n,) whether it is a matrix product.
        weights: (n,) how often the operation runs; negative for those of the depth that is subtracted.
        flops, bytes: (n, 2) constant and amount per padded token.
        forwards, backwards: attention layers that run in each direction.
    """

    kinds: NDArray[np.str_]
    dtypes: NDArray[np.str_]
    products: NDArray[np.bool_]
    weights: NDArray[np.float64]
    flops: NDArray[np.float64]
    bytes: NDArray[np.float64]
    forwards: float
    backwards: float


def traced_attention(attention: str, config: Any, dtype: torch.dtype) -> str:
    """Return which of the two traced kinds an attention is on a GPU: "eager" stores the scores, "sdpa" does not.

    With fewer key heads than query heads, the only sdpa kernel that takes float32 stores the scores (seen with PyTorch
    2.11 on an H200).
    """
    text_config = config.get_text_config()
    grouped = text_config.num_key_value_heads != text_config.num_attention_heads
    return "eager" if attention == "eager" or (attention == "sdpa" and grouped and dtype == torch.float32) else "sdpa"


def needs_checkpointing(model: Any, member: Member, steps: TrainingSteps) -> bool:
    """Return whether the layers with trainable weights recompute their activations (gradient checkpointing).

    With ``train.activation_checkpointing: auto`` they do where the planned memory of the longest micro-batch fills more
    than 90 % of the GPU, and never on a CPU.
    """
    setting = member.train.activation_checkpointing
    if setting != "auto":
        return setting == "on"
    if not torch.cuda.is_available():
        return False
    member = as_installed(member)
    attention = traced_attention(model.config._attn_implementation, model.config, resolve_dtype(member.dtype))
    cost = trace(member, *longest_batch(steps), True, False, attention)
    usable = torch.cuda.mem_get_info()[1] * USABLE_MEMORY
    if cost.peak_bytes <= usable:
        return False
    logger.info("activation checkpointing: on (%.0f GB planned, %.0f GB usable)", cost.peak_bytes / 1e9, usable / 1e9)
    return True


def longest_batch(steps: TrainingSteps) -> tuple[int, int]:
    """Return sequences and padded tokens of the batch that takes the most memory, that of the longest sequences."""
    longest = int(padded(steps.encoded.lengths).max())
    return max(1, steps.budget // longest), longest


def as_installed(member: Member) -> Member:
    """Return a member without the fused layers that this machine cannot load; traces take them for installed."""
    return member if load_kernels() is not None else replace(member, fused_layers="off")


def trace(member: Member, batch: int, tokens: int, training: bool, checkpointing: bool, attention: str) -> Cost:
    """Return the cost of one pass over ``batch`` sequences of ``tokens`` tokens.

    Args:
        member: checkpoint, precision, quantisation, adapters.
        batch: sequences.
        tokens: of each sequence, padding included.
        training: forward and backward; else forward alone.
        checkpointing: activation checkpointing of the layers with trainable weights.
        attention: "eager" or "sdpa"; FlashAttention and blockwise attention use as much memory as sdpa.
    """
    depth, traced = _depth(member), _traced(member)
    stores_scores = attention == "eager"

    def at(sequences: int, length: int) -> NDArray[np.float64]:
        """Return parameters, trainable ones, bytes of the weights and peak bytes of a batch at full depth."""
        total = np.zeros(4)
        for traced_depth, weight in _depth_weights(member, depth):
            each = trace_pass(traced, traced_depth, sequences, length, training, checkpointing, stores_scores)
            total += weight * np.array([each.parameters, each.trainable, each.weight_bytes, each.peak_bytes])
        return total

    if stores_scores:
        parameters, trainable, weights, peak = at(batch, tokens)
    else:  # memory grows with the tokens, however they are cut into sequences: the traces of all batches are shared
        parameters, trainable, weights, one = at(1, TRACED_TOKENS)
        peak = one + (at(2, TRACED_TOKENS)[3] - one) * (batch * tokens / TRACED_TOKENS - 1)
    saved = 0.0
    if member.quantise != "none":
        width = 4 if traced.dtype == "float32" else 2
        saved = _frozen_weights(traced, depth) * (width - BYTES_PER_WEIGHT[member.quantise])
    moments = MOMENT_BYTES[member.train.optimizer] * trainable if training else 0
    flops = _flops(member, batch, tokens, training, checkpointing)
    return Cost(round(parameters), round(trainable), float(weights - saved), float(peak - saved + moments), flops)


def pass_operations(member: Member, training: bool, checkpointing: bool) -> PassOperations:
    """Return the operations of a pass of a member, with an attention that stores no scores.

    Args:
        member: checkpoint, precision, quantisation, adapters.
        training: forward and backward and one optimizer step; else forward alone.
        checkpointing: activation checkpointing of the layers with trainable weights.
    """
    return _pass_operations(_traced(member), training, checkpointing)


@cache
def _pass_operations(member: Member, training: bool, checkpointing: bool) -> PassOperations:
    parts: list[tuple[float, PassTrace, PassTrace]] = []
    for depth, weight in _depth_weights(member, _depth(member)):
        one, two = (trace_pass(member, depth, b, TRACED_TOKENS, training, checkpointing, False) for b in (1, 2))
        parts.append((weight, one, two))
    pairs = [(w, a, b) for w, one, two in parts for a, b in zip(one.operations, two.operations, strict=True)]
    attention = [(w, a) for w, a, _ in pairs if a.kind == ATTENTION]
    rest = [(w, a, b) for w, a, b in pairs if a.kind != ATTENTION]
    flops, moved = (
        np.array([_line(getattr(a, name), getattr(b, name)) for _, a, b in rest]) for name in ("flops", "bytes")
    )
    backwards = sum(w for w, a in attention if a.name.endswith("backward"))
    return PassOperations(
        kinds=np.array([a.kind for _, a, _ in rest]),
        dtypes=np.array([a.dtype for _, a, _ in rest]),
        products=np.array([a.product for _, a, _ in rest]),
        weights=np.array([w for w, _, _ in rest]),
        flops=flops,
        bytes=moved,
        forwards=sum(w for w, _ in attention) - backwards,
        backwards=backwards,
    )


def _line(one: float, two: float) -> tuple[float, float]:
    """Return constant and slope per token of a cost at one and at two sequences."""
    return 2 * one - two, (two - one) / TRACED_TOKENS


def _flops(member: Member, batch: int, tokens: int, training: bool, checkpointing: bool) -> float:
    """Return the FLOPs of the matrix products and the attention of one pass."""
    operations = pass_operations(member, training, checkpointing)
    chosen = operations.products & (operations.kinds != OPTIMIZER)
    products = operations.weights[chosen] @ (operations.flops[chosen] @ np.array([1.0, batch * tokens]))
    heads, _, size = model_attention(shared_config(member.checkpoint, member.revision), "on").shape
    scores = np.mean([visible_scores(tokens, window) for window in attention_windows(member)])
    layers = operations.forwards * FUSED_FLOPS[False] + operations.backwards * FUSED_FLOPS[True]
    return float(products + batch * heads * size * scores * layers)


def attention_windows(member: Member) -> list[int | None]:
    """Return the attention window of each layer; None = a layer that sees all tokens before it."""
    config = shared_config(member.checkpoint, member.revision).get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


def frozen_bytes(member: Member) -> float:
    """Return the bytes of a member's frozen layers, which no batch size or recomputation reduces."""
    width = BYTES_PER_WEIGHT.get(member.quantise, 4.0 if member.dtype == "float32" else 2.0)
    return _frozen_weights(_traced(member), _depth(member)) * width


def _depth(member: Member) -> int:
    return int(shared_config(member.checkpoint, member.revision).get_text_config().num_hidden_layers)


def _depth_weights(member: Member, depth: int) -> list[tuple[int, float]]:
    """Return the depths to trace, each with its weight in the cost at ``depth``."""
    shallow, deeper = DEPTHS[member.lora.layers]
    if depth <= deeper:
        return [(depth, 1.0)]
    further = (depth - deeper) / (deeper - shallow)
    return [(deeper, 1.0 + further), (shallow, -further)]


def _traced(member: Member) -> Member:
    """Return a member with only what changes a pass, so that others share its cached traces."""
    dtype = "float32" if member.dtype == "float32" else "bfloat16"  # all 16-bit types cost the same
    base = Member(member.checkpoint, member.revision, lora=member.lora, attn_softcap=member.attn_softcap)
    return replace(base, dtype=dtype, quantise=member.quantise, fused_layers=member.fused_layers)


@cache
def _frozen_weights(member: Member, depth: int) -> int:
    """Return how many weights of the layers' frozen matrices quantisation would shrink."""
    model = build_on_meta(member, depth, torch.bfloat16, "eager")
    named = model.named_parameters()
    return sum(p.numel() for n, p in named if p.ndim == 2 and ".layers." in n and not p.requires_grad)
