"""One forward (and backward) pass of a member on fake tensors: weights, peak memory and operations.

The stock classifier is built on the meta device and given its adapters and our optimizations, so soft-capping, frozen
layers, activation checkpointing and the last tokens cost here what they cost in a real pass on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from oof.classes import CLASSES
from oof.config import Member
from oof.model.attention import sdpa_allowed
from oof.model.checkpoint_shapes import base_config
from oof.model.cuda_autocast import emulated_autocast
from oof.model.fake_tensors import TensorMeter, fake_weights
from oof.model.lora import add_adapters
from oof.model.operations import HEAD, OPTIMIZER, Operation, OperationLog
from oof.model.optimizations import FusedLora, LastTokens, checkpoint_trainable_layers
from oof.model.planned_operators import PLANNED, fuse_layers, quantise_layers
from oof.model.score_head import Float32Head


@dataclass(frozen=True)
class PassTrace:
    """What one pass took.

    Attributes:
        parameters, trainable: numbers of weights.
        weight_bytes: of all weights in the dtype of the trace, none quantised.
        peak_bytes: the most memory at any moment, without the optimizer's moments.
        operations: of the pass and, in training, of one optimizer step, in order.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    peak_bytes: int
    operations: tuple[Operation, ...]


def traced_dtype(name: str) -> torch.dtype:
    """Return the dtype of a trace: all 16-bit types cost the same, and "auto" has 16 bits on every GPU."""
    return torch.float32 if name == "float32" else torch.bfloat16


@cache
def trace_pass(
    member: Member, depth: int, batch: int, tokens: int, training: bool, checkpointing: bool, stores_scores: bool
) -> PassTrace:
    """Return the trace of one pass.

    Args:
        member: checkpoint, precision, quantisation, adapters and fused layers.
        depth: layers of the traced model.
        batch, tokens: of the padded batch.
        training: forward and backward, with gradients of an earlier pass; else forward alone.
        checkpointing: activation checkpointing of the layers with trainable weights.
        stores_scores: eager attention, which keeps the attention scores in memory; else a fused kernel.
    """
    dtype = traced_dtype(member.dtype)
    model = build_on_meta(member, depth, dtype, "eager" if stores_scores else PLANNED)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    meter = TensorMeter()
    log = OperationLog(meter)
    with fake_weights(model), ExitStack() as stack:
        stack.enter_context(_without_garbage_collection())
        if checkpointing:
            checkpoint_trainable_layers(model)
        model.train(training)
        if member.quantise != "none":
            quantise_layers(model, member.quantise)
        else:
            FusedLora(model)
        LastTokens(model, pad_id=0)
        if member.fused_layers == "auto":
            fuse_layers(model)
        trained = [p for p in model.parameters() if p.requires_grad] if training else []
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        for tensor in (*model.parameters(), *model.buffers()):
            meter.add(tensor)
        weights = meter.now
        for parameter in trained:
            meter.add(parameter.grad)
        ids = torch.ones(batch, tokens, dtype=torch.long)
        stack.enter_context(log.inside(model))
        with log, torch.set_grad_enabled(training):
            with emulated_autocast(dtype):
                logits = model(input_ids=ids).logits
            if training:
                with log.as_kind(HEAD):
                    loss = logits.float().logsumexp(dim=-1).sum()
                loss.backward()
        del logits
        if training:
            _trace_optimizer(trained, log)
        model.zero_grad(set_to_none=True)
    return PassTrace(
        parameters=sum(n for n, _ in sizes),
        trainable=sum(n for n, each in sizes if each),
        weight_bytes=weights,
        peak_bytes=meter.peak,
        operations=tuple(log.operations),
    )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the collector: it would look at every module a hundred times, and fake tensors end without it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _trace_optimizer(trained: list[Any], log: OperationLog) -> None:
    """Record one optimizer step with gradient clipping; the step before it makes the moments."""
    optimizer = torch.optim.AdamW(trained, fused=True)
    optimizer.step()
    with log, log.as_kind(OPTIMIZER):
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def build_on_meta(member: Member, depth: int, dtype: torch.dtype, attention: str) -> Any:
    """Return a member's classifier with adapters and ``depth`` layers on the meta device.

    Args:
        member: checkpoint and adapters.
        depth: layers.
        dtype: of the base; adapters and head are float32.
        attention: registered name of the implementation; all but "eager" stand for kernels that cap by themselves.
    """
    config = base_config(member.checkpoint, member.revision)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = depth
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:depth]
    config.num_labels, text_config.pad_token_id, config.use_cache = len(CLASSES), 0, False
    with torch.device("meta"), sdpa_allowed(config, attention):
        model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=attention, dtype=dtype
        )
        model.score = Float32Head(text_config.hidden_size, len(CLASSES), bias=False, dtype=torch.float32)
        return add_adapters(model, member.lora, 0)
