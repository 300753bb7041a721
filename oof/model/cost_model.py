"""Cost model: parameters, memory and FLOPs of one pass, traced without weights.

The stock classifier is built on the meta device, given its adapters, and run forward and backward on fake tensors
(:mod:`oof.model.fake_tensors`). So soft-capping, frozen layers and activation checkpointing cost here what they cost in
a real pass. Deep models are traced at two small depths and extrapolated: every further pair of layers costs the same.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma2Config,
    LlamaConfig,
    Qwen2Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from oof.classes import CLASSES
from oof.config import Lora, Member
from oof.encoding.batches import TrainingSteps
from oof.model.attention import sdpa_allowed
from oof.model.classifier import MAIN, readable_errors
from oof.model.fake_tensors import TensorMeter, fake_weights
from oof.model.lora import add_adapters
from oof.model.optimizations import FusedLora, LastTokens, checkpoint_trainable_layers
from oof.model.precision import resolve_dtype

logger = logging.getLogger(__name__)

DEPTHS = (2, 4)  # even, for families whose layers alternate, and for adapters in the upper half
BYTES_PER_WEIGHT = {"nf4": 0.516, "int8": 1.0}  # nf4 with double quantisation: 4 bits and 8.1 / 512 of a constant
ADAM_BYTES = 12  # per trainable weight beside itself: gradient and two moments in float32
USABLE_MEMORY = 0.9  # share of a card's memory that a plan may fill; the rest is for fragmentation

# Shapes of the checkpoints that our configurations name, so that they can be planned without a network.
# Source: the config.json of each on the Hugging Face hub.
_GEMMA2 = {"vocab_size": 256000, "head_dim": 256, "sliding_window": 4096}
_LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8}
KNOWN_SHAPES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "google/gemma-2-9b-it": (
        Gemma2Config,
        _GEMMA2
        | {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42}
        | {"num_attention_heads": 16, "num_key_value_heads": 8},
    ),
    "google/gemma-2-2b-it": (
        Gemma2Config,
        _GEMMA2
        | {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
        | {"num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": (
        LlamaConfig,
        _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": (
        LlamaConfig,
        _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "Qwen/Qwen2.5-14B-Instruct": (
        Qwen2Config,
        {"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48}
        | {"num_attention_heads": 40, "num_key_value_heads": 8},
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        LlamaConfig,
        _LLAMA3
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"num_attention_heads": 32, "head_dim": 64},
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        LlamaConfig,
        _LLAMA3
        | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
        | {"num_attention_heads": 24, "head_dim": 128},
    ),
}

# A model on fake tensors gets a mask that it does not get in a fold job, and sdpa with a mask is another kernel.
UNMASKED = "unmasked_sdpa"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)


@dataclass(frozen=True)
class Cost:
    """The cost of one forward (and backward) pass of a batch.

    Attributes:
        parameters, trainable: weights of the whole classifier; of adapters and head.
        weight_bytes: memory of all weights, quantised where they are.
        peak_bytes: the most memory at any moment, optimizer included when training.
        flops: floating-point operations.
    """

    parameters: int
    trainable: int
    weight_bytes: float
    peak_bytes: float
    flops: float


def base_config(checkpoint: str, revision: str = "") -> Any:
    """Return a checkpoint's configuration without downloading weights; known shapes need no network at all.

    Raises:
        UserError: the checkpoint is neither on this machine nor on the hub.
    """
    if checkpoint in KNOWN_SHAPES:
        config_class, shape = KNOWN_SHAPES[checkpoint]
        return config_class(**shape)
    with readable_errors(checkpoint, revision):
        return AutoConfig.from_pretrained(checkpoint, revision=revision or MAIN, trust_remote_code=False)


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
    longest = int(-(-int(steps.encoded.lengths.max()) // 8) * 8)
    attention = traced_attention(model.config._attn_implementation, model.config, resolve_dtype(member.dtype))
    cost = trace(member, max(steps.unit, steps.budget // longest), longest, True, False, attention)
    usable = torch.cuda.mem_get_info()[1] * USABLE_MEMORY
    if cost.peak_bytes <= usable:
        return False
    logger.info("activation checkpointing: on (%.0f GB planned, %.0f GB usable)", cost.peak_bytes / 1e9, usable / 1e9)
    return True


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
    depth = int(base_config(member.checkpoint, member.revision).get_text_config().num_hidden_layers)
    # Only what changes a pass, so that members which differ in other settings share the cached traces.
    base = Member(member.checkpoint, member.revision)
    traced = replace(base, dtype=member.dtype, lora=member.lora, attn_softcap=member.attn_softcap)

    def at(layers: int, sequences: int) -> Cost:
        return _trace(traced, layers, sequences, tokens, training, checkpointing, attention)

    def deep(sequences: int) -> Cost:
        if depth <= DEPTHS[1]:
            return at(depth, sequences)
        shallow, deeper = at(DEPTHS[0], sequences), at(DEPTHS[1], sequences)
        return _extrapolated(shallow, deeper, (depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]))

    cost = deep(batch) if batch <= 2 else _extrapolated(deep(1), deep(2), batch - 1)
    if member.quantise == "none":
        return cost
    saved = _frozen_weights(traced, depth) * (resolve_dtype(member.dtype).itemsize - BYTES_PER_WEIGHT[member.quantise])
    return replace(cost, weight_bytes=cost.weight_bytes - saved, peak_bytes=cost.peak_bytes - saved)


def frozen_bytes(member: Member) -> float:
    """Return the bytes of a member's frozen layers, which no batch size or recomputation reduces."""
    depth = int(base_config(member.checkpoint, member.revision).get_text_config().num_hidden_layers)
    width = BYTES_PER_WEIGHT.get(member.quantise, float(resolve_dtype(member.dtype).itemsize))
    return _frozen_weights(Member(member.checkpoint, member.revision, lora=member.lora), depth) * width


def _extrapolated(first: Cost, second: Cost, at: float) -> Cost:
    """Return the cost at ``at`` on the line through two costs, at 0 and at 1."""
    values = {name: getattr(first, name) + at * (getattr(second, name) - getattr(first, name)) for name in vars(first)}
    return Cost(**values | {name: round(values[name]) for name in ("parameters", "trainable")})


@cache
def _trace(
    member: Member, depth: int, batch: int, tokens: int, training: bool, checkpointing: bool, attention: str
) -> Cost:
    dtype = resolve_dtype(member.dtype)
    model = _build(member, depth, dtype, attention)
    sizes = {name: (p.numel(), p.requires_grad) for name, p in model.named_parameters()}
    trainable = sum(n for n, trained in sizes.values() if trained)
    meter = TensorMeter()
    with fake_weights(model):
        if checkpointing:
            checkpoint_trainable_layers(model)
        model.train(training)
        optimizations = (LastTokens(model, pad_id=0), FusedLora(model))
        for tensor in (*model.parameters(), *model.buffers()):
            meter.add(tensor)
        weights = meter.now
        ids = torch.ones(batch, tokens, dtype=torch.long)
        with meter, torch.set_grad_enabled(training), _autocast(dtype):
            logits = model(input_ids=ids).logits
            if training:
                logits.float().sum().backward()
        model.zero_grad(set_to_none=True)
        for optimization in optimizations:
            optimization.remove()
    optimizer = (ADAM_BYTES - 4) * trainable if training else 0  # this pass's gradients are in the peak
    return Cost(
        parameters=sum(n for n, _ in sizes.values()),
        trainable=trainable,
        weight_bytes=weights,
        peak_bytes=meter.peak + optimizer,
        flops=meter.flops,
    )


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)


@cache
def _frozen_weights(member: Member, depth: int) -> int:
    """Return how many weights of the layers' frozen matrices quantisation would shrink."""
    model = _build(member, depth, torch.bfloat16, "eager")
    named = model.named_parameters()
    return sum(p.numel() for n, p in named if p.ndim == 2 and ".layers." in n and not p.requires_grad)


def _build(member: Member, depth: int, dtype: torch.dtype, attention: str) -> Any:
    config = copy.deepcopy(base_config(member.checkpoint, member.revision))
    text_config = config.get_text_config()
    text_config.num_hidden_layers = depth
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:depth]
    config.num_labels, text_config.pad_token_id, config.use_cache = len(CLASSES), 0, False
    if attention == "sdpa" and hasattr(text_config, "attn_logit_softcapping"):
        text_config.attn_logit_softcapping = None  # stands in for kernels that cap without storing the scores
    with torch.device("meta"), sdpa_allowed(config, attention):
        model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=UNMASKED if attention == "sdpa" else attention, dtype=dtype
        )
    with torch.device("meta"):
        model.score = nn.Linear(text_config.hidden_size, len(CLASSES), bias=False, dtype=torch.float32)
        return add_adapters(model, member.lora if member.lora.rank else Lora(rank=0), 0)
