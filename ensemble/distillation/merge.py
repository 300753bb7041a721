"""Merging of LoRA adapters into plain weights: one adapter, or the exact average of several.

The average of K models has the average of the adapters' *products* B A. Averaging the factors A and B separately, as is
often done, adds cross terms: mean(B) mean(A) differs from mean(B A) unless the adapters share a factor.

A quantised base is dequantised first: merged into 4-bit weights, an adapter's small updates would be rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from oof.config import Member
from oof.model.classifier import load_base, load_classifier, with_adapter
from oof.model.lora import saved_classes
from oof.model.precision import resolve_dtype
from oof.model.quantization import dequantise


def merge(model: Any, temperature: float) -> Any:
    """Return the stock classifier on the CPU: adapter merged, bias-free head in the model's precision.

    Args:
        model: a trained classifier, with or without an adapter.
        temperature: divides the logits; folded into the head.
    """
    plain: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain = plain.cpu().eval()
    head = nn.Linear(plain.score.in_features, plain.score.out_features, bias=False)
    with torch.no_grad():
        head.weight.copy_(plain.score.weight.float() / temperature)
    plain.score = head.to(plain.dtype)
    plain.config.problem_type = "single_label_classification"
    plain.config.use_cache = True
    return plain


def load_to_merge(member: Member, folder: Path, tokenizer: Any) -> Any:
    """Return the trained classifier in ``folder`` with plain weights, into which its adapter can be merged."""
    if member.quantise == "none":
        return load_classifier(member, folder, tokenizer, seed=0)
    return with_adapter(_plain_base(member, tokenizer, folder), folder)


def _plain_base(member: Member, tokenizer: Any, adapter: Path) -> Any:
    base = load_base(member, tokenizer, 0, saved_classes(adapter))
    return dequantise(base, resolve_dtype(member.dtype))


def fold_average(member: Member, folders: Sequence[Path], tokenizer: Any) -> Any:
    """Return one classifier whose weights are the average of the trained ones in ``folders``.

    Args:
        member: the recipe that all of them share.
        folders: as :func:`oof.model.lora.save_classifier` writes them: adapters (plain LoRA), or whole models.
        tokenizer: of the member.
    """
    if not (folders[0] / "adapter_config.json").is_file():
        return _average_whole(member, folders, tokenizer)
    names = [f"fold_{i}" for i in range(len(folders))]
    model: Any = PeftModel.from_pretrained(
        _plain_base(member, tokenizer, folders[0]), str(folders[0]), adapter_name=names[0]
    )
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    wrapper: Any = model.base_model.model.score
    heads = torch.stack([wrapper.modules_to_save[name].weight.detach().float() for name in names])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                layer: Any = module  # get_delta_weight is not declared by peft's base class
                product = sum(layer.get_delta_weight(name).float() for name in names)
                weight: Any = layer.get_base_layer().weight
                weight.copy_(weight.float() + product / len(names))  # rounded once, also in 16 bits
        plain: Any = model.unload()
        plain.score.weight.copy_(heads.mean(dim=0))
    return plain


def _average_whole(member: Member, folders: Sequence[Path], tokenizer: Any) -> Any:
    """Return the average of fully trained models; one of them at a time is in memory beside the sum."""
    average = load_classifier(member, folders[0], tokenizer, seed=0)
    total = {name: value.detach().double() for name, value in average.named_parameters()}
    for folder in folders[1:]:
        for name, value in load_classifier(member, folder, tokenizer, seed=0).named_parameters():
            total[name] += value.detach()
    with torch.no_grad():
        for name, value in average.named_parameters():
            value.copy_(total[name] / len(folders))
    return average
