"""A model without its weights: parameters, memory and arithmetic of one step, traced on tensors that hold no data.

The stock classifier is built on the meta device, given its adapters, and run forward and backward on fake tensors:
a dispatch mode adds up the live storages and, by PyTorch's own formulas, the arithmetic. So soft-capping,
frozen layers and activation checkpointing cost here what they cost in earnest. Deep models are traced at two small
depths and extrapolated: every further pair of layers costs the same.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface, AutoConfig, AutoModelForSequenceClassification, Gemma2Config, LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from oof.classes import CLASSES
from oof.config import Lora, Member
from oof.model.attention import sdpa_allowed
from oof.model.classifier import readable_errors, resolve_dtype
from oof.model.lora import add_adapters
from oof.model.optimizations import FusedLora, LastTokens, checkpoint_trainable_layers

DEPTHS = (2, 4)  # even, for families whose layers alternate, and for adapters in the upper half
BYTES_PER_WEIGHT = {"nf4": 0.516, "int8": 1.0}  # nf4 with double quantisation: 4 bits and 8.1 / 512 of a constant
ADAM_BYTES = 12  # per trainable weight beside itself: gradient and two moments in float32

# Shapes of the checkpoints that our configurations name, so that they can be planned without a network.
# Source: the config.json of each on the Hugging Face hub.
_GEMMA2 = {"vocab_size": 256000, "head_dim": 256, "sliding_window": 4096}
_LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8}
KNOWN: dict[str, tuple[type[Any], dict[str, Any]]] = {
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
    "meta-llama/Llama-3.2-3B-Instruct": (
        LlamaConfig,
        _LLAMA3
        | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
        | {"num_attention_heads": 24, "head_dim": 128},
    ),
}


IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}  # the formula of
# A model on fake tensors is handed a mask that it is not handed in a fold job, and sdpa with a mask is another kernel.
UNMASKED = "unmasked_sdpa"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)


@dataclass(frozen=True)
class Cost:
    """Of one forward (and backward) pass of a batch.

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


def base_config(checkpoint: str) -> Any:
    """Return a checkpoint's configuration; no weights are downloaded, and for known ones nothing at all.

    Raises:
        UserError: it can be found neither here nor on the hub.
    """
    if checkpoint in KNOWN:
        kind, shape = KNOWN[checkpoint]
        return kind(**shape)
    with readable_errors(checkpoint):
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


def kind_of_attention(attention: str, config: Any, dtype: torch.dtype) -> str:
    """Return which of the two traced kinds an attention is on a GPU: "eager" stores the scores, "sdpa" none.

    Of sdpa's kernels only one, which stores them, takes float32 with fewer key heads than query heads (seen with
    PyTorch 2.11 on an H200).
    """
    text = config.get_text_config()
    grouped = text.num_key_value_heads != text.num_attention_heads
    return "eager" if attention == "eager" or (attention == "sdpa" and grouped and dtype == torch.float32) else "sdpa"


def trace(member: Member, batch: int, tokens: int, training: bool, checkpointing: bool, attention: str) -> Cost:
    """Return the cost of one pass over ``batch`` sequences of ``tokens`` tokens.

    Args:
        member: checkpoint, precision, quantisation, adapters.
        batch: sequences.
        tokens: of each, padding included.
        training: forward and backward; else forward alone.
        checkpointing: activation checkpointing of the layers with trainable weights.
        attention: "eager" or "sdpa"; FlashAttention and blockwise attention use as much memory as sdpa.
    """
    config = base_config(member.checkpoint).get_text_config()
    depth, recipe = int(config.num_hidden_layers), Member(member.checkpoint, dtype=member.dtype, lora=member.lora)
    softcap = replace(recipe, attn_softcap=member.attn_softcap)

    def at(layers: int, sequences: int) -> Cost:
        return _trace(softcap, layers, sequences, tokens, training, checkpointing, attention)

    def deep(sequences: int) -> Cost:
        if depth <= DEPTHS[1]:
            return at(depth, sequences)
        few, more = at(DEPTHS[0], sequences), at(DEPTHS[1], sequences)
        return _line(few, more, (depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]))

    cost = deep(batch) if batch <= 2 else _line(deep(1), deep(2), batch - 1)
    if member.quantise == "none":
        return cost
    saved = _frozen_weights(softcap, depth) * (resolve_dtype(member.dtype).itemsize - BYTES_PER_WEIGHT[member.quantise])
    return replace(cost, weight_bytes=cost.weight_bytes - saved, peak_bytes=cost.peak_bytes - saved)


def _line(first: Cost, second: Cost, at: float) -> Cost:
    """Return what lies on the line through two costs, at 0 and at 1."""
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
    spent = Spending()
    with _fake(model):
        if checkpointing:
            checkpoint_trainable_layers(model)
        model.train(training)
        shortcuts = (LastTokens(model, pad_id=0), FusedLora(model))
        for tensor in (*model.parameters(), *model.buffers()):
            spent.add(tensor)
        weights = spent.now
        ids = torch.ones(batch, tokens, dtype=torch.long)
        with spent, torch.set_grad_enabled(training), _autocast(dtype):
            logits = model(input_ids=ids).logits
            if training:
                logits.float().sum().backward()
        model.zero_grad(set_to_none=True)
        for shortcut in shortcuts:
            shortcut.remove()
    optimizer = (ADAM_BYTES - 4) * trainable if training else 0  # this pass's gradients are in the peak
    return Cost(
        parameters=sum(n for n, _ in sizes.values()),
        trainable=trainable,
        weight_bytes=weights,
        peak_bytes=spent.peak + optimizer,
        flops=spent.flops,
    )


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)


def frozen_bytes(member: Member) -> float:
    """Return the bytes of a member's frozen layers: what cannot be cut any smaller."""
    recipe = Member(member.checkpoint, lora=member.lora)
    depth = int(base_config(member.checkpoint).get_text_config().num_hidden_layers)
    width = BYTES_PER_WEIGHT.get(member.quantise, float(resolve_dtype(member.dtype).itemsize))
    return _frozen_weights(recipe, depth) * width


@cache
def _frozen_weights(member: Member, depth: int) -> int:
    """Return how many weights of the layers' frozen matrices quantisation would shrink."""
    model = _build(member, depth, torch.bfloat16, "eager")
    named = model.named_parameters()
    return sum(p.numel() for n, p in named if p.ndim == 2 and ".layers." in n and not p.requires_grad)


def _build(member: Member, depth: int, dtype: torch.dtype, attention: str) -> Any:
    config = copy.deepcopy(base_config(member.checkpoint))
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    config.num_labels, text.pad_token_id, config.use_cache = len(CLASSES), 0, False
    if attention == "sdpa" and hasattr(text, "attn_logit_softcapping"):
        text.attn_logit_softcapping = None  # stands for the kernels that cap without storing the scores
    with torch.device("meta"), sdpa_allowed(config, attention):
        model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=UNMASKED if attention == "sdpa" else attention, dtype=dtype
        )
    with torch.device("meta"):
        model.score = nn.Linear(text.hidden_size, len(CLASSES), bias=False, dtype=torch.float32)
        return add_adapters(model, member.lora if member.lora.rank else Lora(rank=0), 0)


class _fake:  # noqa: N801  # reads as a verb: with _fake(model)
    """Gives a meta model fake CPU tensors: shapes and dtypes without data, on which autocast works."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.mode = model, FakeTensorMode()

    def __enter__(self) -> None:
        self.mode.__enter__()
        for module in self.model.modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    module._parameters[name] = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)


class Spending(TorchDispatchMode):
    """Adds up the live storages of all tensors made inside: ``peak`` is the most bytes at any moment; and ``flops``.

    ``FlopCounterMode`` reads the same formulas, but takes a second pass: it keeps tensors alive that count here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self.live: dict[int, tuple[Any, int]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live:
            size = storage.nbytes()
            self.live[key] = weakref.ref(storage, lambda _: self._drop(key)), size
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key)[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(IN_PLACE.get(func._overloadpacket, func._overloadpacket))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out
