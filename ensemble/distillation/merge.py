"""Merging of LoRA adapters into plain weights: one adapter, or the exact average of several.

The average of K models has the average of the adapters' *products* B A. Averaging the factors A and B separately, as is
often done, adds cross terms: mean(B) mean(A) differs from mean(B A) unless the adapters share a factor.

A quantised base is dequantised first: merged into 4-bit weights, an adapter's small updates would be rounded away.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oof.config import Member
from oof.model.classifier import load_base, load_classifier, with_adapter
from oof.model.lora import save_classifier, saved_classes
from oof.model.precision import resolve_dtype
from oof.model.quantization import dequantise

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))  # in the names of an adapter's tensors


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


def save_average(member: Member, folders: Sequence[Path], tokenizer: Any, folder: Path) -> None:
    """Write a classifier to train on: the average of the trained ones in ``folders``, as one of their own kind.

    The mean of K products B A of rank r has a rank of up to K r. The adapter that is written is the best approximation
    of rank r (Eckart and Young 1936). Its A has orthogonal rows of the size that the rows have in ``folders``, and its
    B the rest, so that training goes on as with a trained adapter.

    Args:
        member: the recipe that all of them share.
        folders: as for :func:`fold_average`.
        tokenizer: of the member.
        folder: of the average; replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not (folders[0] / "adapter_config.json").is_file():
        save_classifier(_average_whole(member, folders, tokenizer), folder, member)
        return
    shutil.copytree(folders[0], folder)
    states = [load_file(path / ADAPTER_WEIGHTS) for path in folders]
    average = {name: torch.stack([state[name].double() for state in states]).mean(dim=0) for name in states[0]}
    pairs = [(name, name.replace(a, b)) for a, b in FACTORS for name in states[0] if a in name]
    for down, up in pairs:
        average[down], average[up] = mean_product([s[down] for s in states], [s[up] for s in states])
    tensors = {name: value.to(states[0][name].dtype).contiguous() for name, value in average.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def mean_product(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return float64 factors A, B of the shapes given whose product B A is closest to the mean of the products.

    Args:
        a: K factors A, (rank, inputs) each.
        b: K factors B, (outputs, rank) each.
    """
    rank, n = a[0].shape[0], len(a)
    # The mean product is [B1 … BK] [A1; …; AK] / K. Its SVD is that of a small matrix between two orthogonal bases.
    left, upper_left = torch.linalg.qr(torch.cat(list(b), dim=1).double())
    right, upper_right = torch.linalg.qr(torch.cat(list(a), dim=0).double().T)
    u, s, vh = torch.linalg.svd(upper_left @ upper_right.T / n, full_matrices=False)
    size = torch.cat(list(a)).double().norm(dim=1).square().mean().sqrt().clamp(min=1e-12)
    down, up = torch.zeros(a[0].shape, dtype=torch.float64), torch.zeros(b[0].shape, dtype=torch.float64)
    kept = min(rank, len(s))  # below the rank only where a layer has fewer inputs or outputs than that
    down[:kept] = size * vh[:kept] @ right.T
    up[:, :kept] = left @ u[:, :kept] * (s[:kept] / size)
    return down, up
