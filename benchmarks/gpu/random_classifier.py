"""Three-class classifiers of real shapes with random weights, made on the card from a configuration alone.

Speed and memory do not depend on the weights' values. Attention, head, adapters and quantisation are those of a fold
job: only :func:`oof.model.classifier.load_base`, which reads a checkpoint, is replaced.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from benchmarks.common import ROOT, peak_gb
from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, Context, Size
from benchmarks.speed.token_sequences import arena_lengths
from oof.classes import CLASSES
from oof.config import Lora, Member, Train
from oof.encoding.encode import Encoded
from oof.model.attention import resolve_attention, sdpa_allowed
from oof.model.checkpoint_shapes import base_config
from oof.model.cost_model import USABLE_MEMORY, Cost, as_installed, trace, traced_attention
from oof.model.lora import add_adapters
from oof.model.precision import device, resolve_dtype
from oof.model.quantization import UNQUANTISED, quantization_config
from oof.model.score_head import fresh_head

PAD, FIRST_TOKEN = 0, 10  # random texts hold no special tokens
TOKENIZER = ROOT / "configs" / "bases" / "tiny-llama"
SEED = 0


def checkpoint_of(shape: str, size: Size) -> str:
    """Return the checkpoint of a shape; one of this repository as a path that works in any folder."""
    name = size.shapes[shape]
    return str(ROOT / name) if (ROOT / name).is_dir() else name


def member_of(shape: str, context: Context, attention: str = "auto", option: str = "none") -> Member:
    """Return the member of a shape: LoRA on all linear layers, bfloat16, one order of each battle in a step.

    Args:
        shape: of ``Size.shapes``.
        context: options of the call.
        attention: implementation, or "auto" for that of the call.
        option: quantisation of the base, or ``EAGER_LAYERS``.
    """
    size = context.size
    train = Train(batch_battles=size.step_sequences, swap="none", warmup_share=0.0, tokens_per_batch=size.budgets[0])
    return Member(
        checkpoint_of(shape, size),
        dtype="bfloat16",
        quantise="none" if option == EAGER_LAYERS else option,
        attn=context.attention if attention == "auto" else attention,
        fused_layers="off" if option == EAGER_LAYERS else "auto",
        score_tokens_per_batch=size.score_budget,
        lora=Lora(rank=size.rank, alpha=16),
        train=train,
    )


def build(member: Member, attention: str, adapters: bool = True) -> Any:
    """Return a random classifier on this device, the same for the same seed.

    Args:
        member: shape, precision, quantisation and adapters.
        attention: implementation, already resolved.
        adapters: add the member's.
    """
    config = copy.deepcopy(base_config(member.checkpoint))
    config.num_labels, config.use_cache = len(CLASSES), False
    config.pad_token_id = config.get_text_config().pad_token_id = PAD
    dtype = resolve_dtype(member.dtype)
    torch.manual_seed(SEED)
    with device(), sdpa_allowed(config, attention):
        model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=attention, dtype=dtype
        )
    model.score = fresh_head(model.score.in_features, config.get_text_config().initializer_range, SEED).to(device())
    if member.quantise != "none":
        quantise_in_place(model, member.quantise, dtype)
    return add_adapters(model, member.lora, SEED).to(device()) if adapters else model


def quantise_in_place(model: Any, kind: str, dtype: torch.dtype) -> None:
    """Quantise every linear layer but the head, with the settings of a checkpoint that is loaded quantised."""
    import bitsandbytes as bnb

    config = quantization_config(kind, dtype)

    def quantised(linear: nn.Linear) -> nn.Module:
        weight, shape = linear.weight.data, (linear.in_features, linear.out_features)
        new: Any
        if kind == "int8":
            new = bnb.nn.Linear8bitLt(
                *shape, bias=False, has_fp16_weights=False, threshold=config.llm_int8_threshold, device="meta"
            )
            # It is quantised on its way from the CPU to any device.
            new.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(weight.device)
        else:
            options = {
                "compress_statistics": config.bnb_4bit_use_double_quant,
                "quant_type": config.bnb_4bit_quant_type,
            }
            new = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=dtype, device="meta", **options)
            parameter = bnb.nn.Params4bit(weight, requires_grad=False, module=new, **options)
            new.weight = parameter.to(weight.device)
        return new

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in UNQUANTISED:
                setattr(parent, name, quantised(child))
    # As from_pretrained marks it, for peft and for our own checks.
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    model.quantization_method = "bitsandbytes"


def random_battles(lengths: np.ndarray, vocabulary: int, orders: int = 1) -> Encoded:
    """Return random texts of (n,) given lengths, in one order or in two."""
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(FIRST_TOKEN, vocabulary, size=int(lengths.sum()) * orders)
    offsets, none = np.concatenate([[0], np.cumsum(np.repeat(lengths, orders))]), np.zeros((len(lengths), 3), np.int32)
    return Encoded(tokens.astype(np.int32), offsets, orders, none, none)


def sequence_lengths(kind: str, n: int, size: Size) -> np.ndarray:
    """Return (n,) tokens of each sequence of one kind of lengths."""
    return arena_lengths(n, size.max_tokens) if kind == ARENA else np.full(n, size.max_tokens)


def vocabulary_of(member: Member) -> int:
    """Return the tokens that random texts may hold."""
    return min(int(base_config(member.checkpoint).get_text_config().vocab_size), 8000)


def resolved(member: Member) -> str:
    """Return the attention implementation that the member runs on this machine.

    Raises:
        UserError: it cannot run the one that it names.
    """
    config = base_config(member.checkpoint)
    return resolve_attention(config, member.attn, member.attn_softcap, resolve_dtype(member.dtype))


def planned(member: Member, attention: str, tokens: int, budget: int, training: bool, checkpointing: bool) -> Cost:
    """Return the planned cost of the largest pass: ``budget`` padded tokens in sequences of ``tokens``."""
    kind = traced_attention(attention, base_config(member.checkpoint), resolve_dtype(member.dtype))
    return trace(as_installed(member), max(1, budget // tokens), tokens, training, checkpointing, kind)


def largest_budget(member: Member, attention: str, tokens: int, size: Size) -> tuple[int, bool]:
    """Return the padded tokens of one training pass that the plan fits into the memory, and whether it recomputes."""
    memory = usable_memory()
    for checkpointing in (False, True):
        for budget in size.budgets:
            if planned(member, attention, tokens, budget, True, checkpointing).peak_bytes <= memory:
                return budget, checkpointing
    return size.budgets[-1], True


def usable_memory() -> float:
    """Return the bytes that a plan may fill; unlimited on a CPU."""
    return torch.cuda.mem_get_info()[1] * USABLE_MEMORY if torch.cuda.is_available() else float("inf")


def model_flops(member: Member, lengths: np.ndarray, training: bool) -> float:
    """Return the arithmetic that sequences of these (n,) lengths need, without padding and recomputation."""
    tokens = max(8, round(float(lengths.mean())))
    return trace(member, 1, tokens, training, False, "sdpa").flops / tokens * float(lengths.sum())


def free_memory() -> None:
    """Give all freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin_peak() -> None:
    """Begin a new measurement of the peak; building a quantised model takes more memory than training it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Return the peak since :func:`begin_peak` on a GPU, else this process's."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak_gb()
