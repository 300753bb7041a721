"""Exact optimizations of a forward and backward pass: the same numbers with less work and memory.

* Sequences are padded on the right and attention is causal, so no real token ever sees padding: no attention mask
  is needed, and the fast causal kernels run.
* Only the last token of a sequence is pooled, so the last layer computes everything but keys and values for that
  token alone (:class:`LastTokens`).
* A LoRA update is one ``addmm`` (:class:`FusedLora`), where peft casts the input to float32, multiplies, scales and
  adds in four passes over the activations.
* Activation checkpointing recomputes only the layers with trainable weights. Below the lowest of them there is no
  backward pass, so there is nothing to store.
* A float32 adapter is merged into its float32 base before scoring. Merging into a bf16 or quantised base would round.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.utils.checkpoint import checkpoint


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers of a classifier, with or without adapters, lowest first."""
    stacks = [list(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n.endswith("layers")]
    return max(stacks, key=len, default=[])


class LastTokens:
    """Computes a classifier's last layer for the pooled tokens only; its keys and values for all tokens.

    Hooks gather the pooled positions before each projection of the last layer except keys and values, and put the
    result back at its position, with zeros elsewhere. The other positions of the layer's output are then wrong, but
    nothing reads them: the final norm works position by position, and pooling takes the last token.
    """

    PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self.pad_id = pad_id
        self.rows = torch.zeros(0, dtype=torch.long)
        self.shape = torch.Size((0, 0))
        self.handles = [model.register_forward_pre_hook(self._locate, with_kwargs=True)]
        for module in self._projections(model):
            self.handles.append(module.register_forward_pre_hook(self._gather))
            self.handles.append(module.register_forward_hook(self._scatter))

    def _projections(self, model: nn.Module) -> list[nn.Module]:
        layers = decoder_layers(model)
        modules = dict(layers[-1].named_modules()) if layers else {}
        projections = [modules[name] for name in self.PROJECTIONS if name in modules]
        # A mixture of experts returns more than its hidden states.
        return [module for module in projections if "Moe" not in type(module).__name__]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _locate(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        position = torch.arange(ids.shape[1], device=ids.device)
        last = (position * (ids != self.pad_id)).argmax(dim=1)
        self.rows = torch.arange(len(ids), device=ids.device) * ids.shape[1] + last

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]
        self.shape = hidden.shape[:2]
        return (hidden.reshape(-1, hidden.shape[-1])[self.rows].unsqueeze(1), *args[1:])

    def _scatter(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        zeros = output.new_zeros(self.shape[0] * self.shape[1], output.shape[-1])
        return zeros.index_copy(0, self.rows, output.squeeze(1)).reshape(*self.shape, -1)


class FusedLora:
    """Computes ``W x + s B A x`` of plain LoRA layers as ``addmm(W x, A x, B, alpha=s)``, in the dtype of ``W x``.

    The product's accumulator scales and adds, so neither takes a pass over the activations, and the result is rounded
    once less than peft's. Any other layer (DoRA and other variants, dropout, several adapters, quantised, merged,
    biased) keeps peft's own forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in model.modules() if _is_plain_lora(layer)]
        for layer in self.layers:
            layer.forward = MethodType(_fused_forward, layer)

    def remove(self) -> None:
        for layer in self.layers:
            del layer.forward  # the class's own forward is used again


def _is_plain_lora(layer: nn.Module) -> bool:
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    if layer.disable_adapters or layer.merged or name not in layer.lora_A or name in layer.lora_variant:
        return False
    return isinstance(layer.lora_dropout[name], nn.Identity) and layer.lora_B[name].bias is None


def _fused_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    name = layer.active_adapters[0]
    if x.dtype != layer.lora_A[name].weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return LoraLinear.forward(layer, x, *args, **kwargs)  # it casts the input
    result: torch.Tensor = layer.base_layer(x, *args, **kwargs)
    low = layer.lora_A[name](x).to(result.dtype)
    up = layer.lora_B[name].weight.to(result.dtype).t()
    # In place: a linear layer's backward pass does not read its output.
    flat = result.view(-1, result.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up, alpha=layer.scaling[name])
    return flat.view_as(result)


def checkpoint_trainable_layers(model: nn.Module) -> int:
    """Switch activation checkpointing on for the layers with trainable weights; return their number."""
    chosen = [layer for layer in decoder_layers(model) if any(p.requires_grad for p in layer.parameters())]
    for layer in chosen:
        flagged: Any = layer
        flagged._gradient_checkpointing_func = _checkpointed
        flagged.gradient_checkpointing = True
    return len(chosen)


def checkpointed_layers(model: nn.Module) -> int:
    """Return how many layers recompute their activations in the backward pass."""
    return sum(bool(getattr(layer, "gradient_checkpointing", False)) for layer in decoder_layers(model))


def _checkpointed(function: Any, *args: Any) -> Any:
    # Non-reentrant, because the input of the lowest trainable layer does not require a gradient.
    return checkpoint(function, *args, use_reentrant=False)


def merged_where_exact(model: Any) -> Any:
    """Return the model for scoring, with its float32 adapter merged into its float32 base, else as it is."""
    return model.merge_and_unload() if merges_exactly(model) else model


def merges_exactly(model: Any) -> bool:
    """Return whether the model has an adapter and a float32 base that is not quantised."""
    quantised = getattr(model, "quantization_method", None) is not None
    base = [p for n, p in model.named_parameters() if "lora_" not in n and "score" not in n]
    inexact = quantised or any(p.dtype != torch.float32 for p in base)
    return hasattr(model, "merge_and_unload") and not inexact
