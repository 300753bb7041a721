"""Adapters into plain weights: one adapter, or the exact average of several.

The average of K adapters is the average of their *products* B A, which is what their models' weights average to.
Averaging the factors A and B apart, as is often done, adds cross terms: mean(B) mean(A) is not mean(B A) unless the
adapters share a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from oof.classes import CLASSES
from oof.config import Member
from oof.model.classifier import load_base, load_classifier


def merge(model: Any, temperature: float) -> Any:
    """Return the stock classifier: adapter merged, plain bias-free head in the model's precision, logits over T."""
    plain: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain = plain.cpu().eval()
    head = nn.Linear(plain.score.in_features, len(CLASSES), bias=False)
    with torch.no_grad():
        head.weight.copy_(plain.score.weight.float() / temperature)
    plain.score = head.to(plain.dtype)
    plain.config.problem_type = "single_label_classification"
    plain.config.use_cache = True
    return plain


def fold_average(member: Member, folders: Sequence[Path], tokenizer: Any) -> Any:
    """Return one classifier whose weights are the average of the trained ones in ``folders``.

    Args:
        member: the recipe that all of them share.
        folders: what ``oof.model.classifier.save_classifier`` wrote: adapters (plain LoRA), or whole models.
        tokenizer: the member's.
    """
    if not (folders[0] / "adapter_config.json").is_file():
        return _average_whole(member, folders, tokenizer)
    names = [f"fold_{i}" for i in range(len(folders))]
    model: Any = PeftModel.from_pretrained(load_base(member, tokenizer, seed=0), str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    wrapper: Any = model.base_model.model.score
    heads = torch.stack([wrapper.modules_to_save[name].weight.detach().float() for name in names])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                layer: Any = module  # every kind of LoRA layer has it, their base class only by convention
                product = sum(layer.get_delta_weight(name).float() for name in names)
                weight: Any = layer.get_base_layer().weight
                weight.copy_(weight.float() + product / len(names))  # one rounding, whatever the base's precision
        plain: Any = model.unload()
        plain.score.weight.copy_(heads.mean(dim=0))
    return plain


def _average_whole(member: Member, folders: Sequence[Path], tokenizer: Any) -> Any:
    """Return the average of fully trained models, one of them in memory at a time beside the sum."""
    average = load_classifier(member, folders[0], tokenizer, seed=0)
    total = {name: value.detach().double() for name, value in average.named_parameters()}
    for folder in folders[1:]:
        for name, value in load_classifier(member, folder, tokenizer, seed=0).named_parameters():
            total[name] += value.detach()
    with torch.no_grad():
        for name, value in average.named_parameters():
            value.copy_(total[name] / len(folders))
    return average
