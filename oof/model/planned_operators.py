"""Operators that stand in a traced pass for kernels that do not run on fake tensors.

``planned_attention`` has the shapes and the saved tensors of FlashAttention, so a trace sees its memory; its arithmetic
and bytes depend on the implementation and are priced by :mod:`oof.model.attention_cost`. ``dequantised`` unpacks int8
or nf4 weights for one matrix product, in the forward and again in the backward pass, as bitsandbytes does.
``fused_norm`` and ``fused_gate`` read and save what liger-kernel's do (:mod:`oof.model.fused_layers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from oof.model.fused_layers import Kernels, fuse

BYTES_PER_WEIGHT = {"nf4": 0.516, "int8": 1.0}  # nf4 with double quantisation: 4 bits and 8.1 / 512 of a constant
PLANNED = "planned_attention"


def operator(mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: a function on fake tensors becomes a torch operator of its name, which real tensors refuse.

    Args:
        mutates_args: names of the arguments that the kernel overwrites.
    """

    def register(on_fake_tensors: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(on_fake_tensors, mutates_args=mutates_args)
        name = f"oof::{on_fake_tensors.__name__}"
        registered: Any = torch.library.custom_op(name, _refuse, mutates_args=mutates_args, schema=schema)
        registered.register_fake(on_fake_tensors)
        return registered

    return register


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("for traces on fake tensors only")


@operator()
def planned_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return (b, t, h, d) outputs and (b, h, t) float32 statistics of (b, h, t, d) queries."""
    batch, heads, tokens, size = query.shape
    statistics = query.new_empty((batch, heads, tokens), dtype=torch.float32)
    return query.new_empty((batch, tokens, heads, size)), statistics


@operator()
def planned_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    statistics: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values."""
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, gradient: torch.Tensor, _: Any) -> Any:
    return planned_attention_backward(gradient, *ctx.saved_tensors)


planned_attention.register_autograd(_backward, setup_context=_save)


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    out, _statistics = planned_attention(query, key, value)
    return out, None


AttentionInterface.register(PLANNED, _attention)
AttentionMaskInterface.register(PLANNED, lambda *_, **__: None)


@operator()
def dequantised(weight: torch.Tensor, bytes_per_weight: float) -> torch.Tensor:
    """Return a quantised weight in the dtype of the products."""
    return torch.empty_like(weight)


class _QuantisedProduct(torch.autograd.Function):
    """x @ W^T with a weight that is dequantised in both passes and never kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bytes_per_weight: float) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.bytes_per_weight = bytes_per_weight
        dequantised_weight: torch.Tensor = dequantised(weight, bytes_per_weight)
        return x @ dequantised_weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ dequantised(weight, ctx.bytes_per_weight), None, None


def quantise_layers(model: nn.Module, kind: str) -> None:
    """Let the frozen linear layers of a traced model compute as bitsandbytes and peft compute "int8" or "nf4" ones."""
    for name, module in model.named_modules():
        layer: Any = module
        if type(layer) is nn.Linear and ".layers." in name and not layer.weight.requires_grad:
            layer.forward = MethodType(_product(BYTES_PER_WEIGHT[kind]), layer)  # type: ignore[method-assign]
        elif type(layer) is LoraLinear:
            layer.forward = MethodType(_lora_forward, layer)  # type: ignore[method-assign]


def _product(bytes_per_weight: float) -> Any:
    def forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _QuantisedProduct.apply(x, layer.weight, bytes_per_weight)  # type: ignore[no-untyped-call]
        return out if layer.bias is None else out + layer.bias

    return forward


def _lora_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of peft's layers for bitsandbytes (peft 0.21, tuners/lora/bnb.py), under autocast."""
    result = layer.base_layer(x).clone()
    name = layer.active_adapters[0]
    update = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x))) * layer.scaling[name]
    return torch.add(result, update)


@operator()
def fused_norm(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised x and one float32 statistic of each row."""
    return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


@operator()
def fused_norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, statistic: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of x."""
    return torch.empty_like(x)


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out, statistic = fused_norm(x, weight)
        ctx.save_for_backward(x, weight, statistic)
        result: torch.Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, weight, statistic = ctx.saved_tensors
        out = fused_norm_backward(gradients[0], x, weight, statistic)
        return out, torch.empty_like(weight) if ctx.needs_input_grad[1] else None


@operator()
def fused_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return activation(gate) * up."""
    return torch.empty_like(gate)


@operator(("gate", "up"))
def fused_gate_backward(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    """Write the gradients of gate and up over them."""
    return None


class _FusedGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        out: torch.Tensor = fused_gate(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = (tensor.detach() for tensor in ctx.saved_tensors)
        fused_gate_backward(gradients[0], gate, up)
        return gate, up


def _norm(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    out: torch.Tensor = _FusedNorm.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def _gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _FusedGate.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def fuse_layers(model: nn.Module) -> None:
    """Let every known norm and gated activation of a traced model compute by one planned kernel."""
    kernels = Kernels(_norm, _gate, _gate)
    for layer in model.modules():
        fuse(layer, kernels, frozenset({torch.float32, torch.bfloat16}))
