"""LoRA training speed of transformers' own Trainer with peft, on the same shapes, lengths and card.

bfloat16, ``train_sampling_strategy="group_by_length"``, and the attention that our own ``auto`` takes. Where that is
not part of transformers, or fails on padded batches, it is eager for Gemma2 and sdpa for others. The batch is the
largest one that trains without running out of memory; gradients accumulate to the same sequences per optimizer step.
Where one sequence does not fit, Trainer's activation checkpointing is switched on, with the largest batch again.
Seconds are those inside ``Trainer.train``.
"""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.common import timed
from benchmarks.gpu.parts import OUT_OF_MEMORY, PROBLEM, Case, Context, Row, Size
from benchmarks.gpu.random_classifier import (
    PAD,
    SEED,
    TOKENIZER,
    begin_peak,
    build,
    free_memory,
    member_of,
    model_flops,
    peak_memory_gb,
    random_battles,
    resolved,
    sequence_lengths,
    vocabulary_of,
)
from benchmarks.speed.fold_jobs import Rows
from oof.config import Member
from oof.distributed.gpus import train_on_one_gpu
from oof.model import blockwise_attention
from oof.model.attention import model_attention
from oof.model.checkpoint_shapes import base_config
from oof.model.classifier import load_tokenizer


def measure(case: Case, context: Context) -> Row:
    """Return tokens per second, memory and batch of one case.

    Raises:
        UserError: no attention can run here.
    """
    shape, kind = case
    member = member_of(shape, context)
    *faster, last = stock_attentions(member)
    failures: list[str] = []
    for attention in faster:
        try:
            return measure_attention(member, attention, kind, context.size)
        except Exception as error:
            failures.append(f"{attention}: {type(error).__name__}")
    return measure_attention(member, last, kind, context.size) | {"failures": failures}


def stock_attentions(member: Member) -> list[str]:
    """Return the attentions of transformers to try, the fastest first."""
    best = resolved(member)
    slower = "eager" if model_attention(base_config(member.checkpoint), member.attn_softcap).capped else "sdpa"
    return list(dict.fromkeys([slower if best == blockwise_attention.NAME else best, slower]))


def measure_attention(member: Member, attention: str, kind: str, size: Size) -> Row:
    """Return the row of the largest batch that fits; or, if none does, one that says so."""
    lengths = sequence_lengths(kind, size.step_sequences * size.lengths[kind], size)
    labels = np.random.default_rng(SEED).integers(3, size=len(lengths))
    data = Rows(random_battles(lengths, vocabulary_of(member)), labels)
    n = size.step_sequences
    longest = Rows(random_battles(np.sort(lengths)[-n:], vocabulary_of(member)), labels[:n])
    free_memory()
    base = build(member, attention, adapters=False)
    adapters = LoraConfig(task_type=TaskType.SEQ_CLS, r=size.rank, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(base, adapters)
    for checkpointing in (False, True):
        at_once = size.step_sequences
        while at_once:
            free_memory()
            begin_peak()
            settings = arguments(at_once, size.step_sequences, checkpointing)
            if train(model, longest, settings) and (seconds := train(model, data, settings)):
                tokens = int(lengths.sum())
                return {
                    "attention": attention,
                    "batch": at_once,
                    "checkpointing": checkpointing,
                    "tokens": tokens,
                    "seconds": seconds,
                    "tokens_per_second": tokens / seconds,
                    "flops_per_second": model_flops(member, lengths, True) / seconds,
                    "peak_gb": peak_memory_gb(),
                }
            at_once //= 2
    return {PROBLEM: OUT_OF_MEMORY}


def arguments(at_once: int, step_sequences: int, checkpointing: bool) -> dict[str, Any]:
    """Return the settings of one epoch."""
    return {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": step_sequences // at_once,
        "num_train_epochs": 1,
        "train_sampling_strategy": "group_by_length",
        "bf16": True,
        "activation_checkpointing": checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
        "seed": SEED,
    }


def train(model: Any, data: Rows, settings: dict[str, Any]) -> float:
    """Return the seconds of an epoch, or 0 if the memory does not suffice."""
    tokenizer = load_tokenizer(str(TOKENIZER))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=train_on_one_gpu(TrainingArguments(output_dir=folder, **settings)),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        seconds = 0.0
        try:
            seconds = timed(trainer.train)[1]
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
    model.zero_grad(set_to_none=True)
    del trainer
    gc.collect()
    return seconds
