"""Average of fold students: equal to the average of their merged weights for every kind of adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.distillation.merge import fold_average, load_to_merge, mean_product, merge, save_average
from oof.config import Lora, Member, Prompts
from oof.encoding.encode import encode_battles
from oof.model.classifier import load_base, load_classifier, load_tokenizer, load_trainable
from oof.model.lora import add_adapters, save_classifier
from oof.training.inference import predict_logits
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import table_of
from tests.fixtures.tiny_models import save_tiny

MEMBER = Member(checkpoint=str(ROOT / "configs" / "bases" / "tiny-gemma2"), dtype="float32", lora=Lora(rank=4, alpha=8))

TOLERANCE = 0.02  # of a logit: bitsandbytes multiplies in another order, and int8 rounds the inputs


def trained(member: Member, folder: Path, seed: int) -> Path:
    """Save a classifier with noise on every trainable weight."""
    tokenizer = load_tokenizer(member.checkpoint)
    model = add_adapters(load_base(member, tokenizer, seed), member.lora, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_classifier(model, folder, member)
    return folder


@pytest.mark.parametrize(
    "lora", [Lora(rank=4, alpha=8), Lora(rank=4, alpha=8, rslora=True, layers="upper_half"), Lora(rank=0)]
)
def test_the_fold_average_is_the_mean_of_the_merged_weights(tmp_path: Path, lora: Lora) -> None:
    member, tokenizer = replace(MEMBER, lora=lora), load_tokenizer(MEMBER.checkpoint)
    folders = [trained(member, tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    ours = merge(fold_average(member, folders, tokenizer), 1.0).state_dict()
    merged = [merge(load_classifier(member, folder, tokenizer, seed=0), 1.0).state_dict() for folder in folders]
    assert set(ours) == set(merged[0])
    for name, value in ours.items():
        torch.testing.assert_close(
            value, torch.stack([state[name] for state in merged]).mean(dim=0), atol=1e-6, rtol=1e-5
        )
    largest_difference = max((merged[0][name] - merged[1][name]).abs().max().item() for name in ours)
    assert largest_difference > 1e-3


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_adapters_of_a_quantised_base_are_merged_into_plain_weights(tmp_path: Path, quantise: str) -> None:
    pytest.importorskip("bitsandbytes")
    checkpoint = save_tiny("gemma2", tmp_path / "base", scale=1.0, hidden_size=64, head_dim=16)  # whole nf4 blocks
    member = replace(MEMBER, checkpoint=checkpoint, quantise=quantise)
    tokenizer = load_tokenizer(checkpoint)
    folders = [trained(member, tmp_path / str(seed), seed) for seed in (1, 2)]
    encoded = encode_battles(
        table_of(["why is the sky blue", "a castle of orange butter"]), tokenizer, Prompts(max_tokens=64), 64
    )

    def logits(model: Any) -> Any:
        return predict_logits(model, member, encoded, tokenizer.pad_token_id, "")

    adapted = logits(load_classifier(member, folders[0], tokenizer, seed=0))
    merged = merge(load_to_merge(member, folders[0], tokenizer), 1.0)
    assert not getattr(merged, "is_quantized", False)
    assert not hasattr(merged.config, "quantization_config")
    np.testing.assert_allclose(logits(merged), adapted, atol=TOLERANCE)
    without = load_base(member, tokenizer, seed=0)
    assert np.abs(logits(without) - adapted).max() > 4 * TOLERANCE

    average = merge(fold_average(member, folders, tokenizer), 1.0).state_dict()
    each = [merge(load_to_merge(member, folder, tokenizer), 1.0).state_dict() for folder in folders]
    for name, value in average.items():
        torch.testing.assert_close(value, sum(state[name] for state in each) / 2, atol=1e-6, rtol=1e-5)


def test_the_fold_average_is_not_the_product_of_averaged_factors(tmp_path: Path) -> None:
    """The mean of B times the mean of A is far from the mean of B A."""
    tokenizer = load_tokenizer(MEMBER.checkpoint)
    folders = [trained(MEMBER, tmp_path / str(seed), seed) for seed in (1, 2)]
    models = [load_classifier(MEMBER, folder, tokenizer, seed=0) for folder in folders]
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = ([model.get_submodule(f"{name}.lora_{x}.default").weight for model in models] for x in "AB")
    scale = MEMBER.lora.alpha / MEMBER.lora.rank
    product_of_means = scale * (sum(b) / 2) @ (sum(a) / 2)
    mean_of_products = scale * sum(y @ x for x, y in zip(a, b, strict=True)) / 2
    plain = merge(fold_average(MEMBER, folders, tokenizer), 1.0)
    base = load_base(MEMBER, tokenizer, 0)
    layer = name.removeprefix("base_model.model.")
    delta = plain.get_submodule(layer).weight - base.get_submodule(layer).weight
    torch.testing.assert_close(delta, mean_of_products, atol=1e-6, rtol=1e-4)
    assert (product_of_means - mean_of_products).norm() > 0.5 * mean_of_products.norm()


@pytest.mark.parametrize(("outputs", "inputs"), [(30, 40), (40, 5), (3, 30)])
def test_the_averaged_factors_are_the_best_approximation_of_their_rank(outputs: int, inputs: int) -> None:
    rank, k = 4, 3
    torch.manual_seed(0)
    a, b = [torch.randn(rank, inputs) for _ in range(k)], [torch.randn(outputs, rank) for _ in range(k)]
    down, up = mean_product(a, b)
    u, s, vh = np.linalg.svd(np.mean([(y @ x).double().numpy() for x, y in zip(a, b, strict=True)], axis=0))
    kept = min(rank, outputs, inputs)
    best = u[:, :kept] * s[:kept] @ vh[:kept]
    np.testing.assert_allclose((up @ down).numpy(), best, atol=1e-5)
    size = np.sqrt(np.mean([x.norm(dim=1).square().mean().item() for x in a]))
    np.testing.assert_allclose((down @ down.T).numpy()[:kept, :kept], size**2 * np.eye(kept), atol=1e-9)


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), Lora(rank=0)])
def test_training_goes_on_from_the_saved_average(tmp_path: Path, lora: Lora) -> None:
    """Of equal models it is that model; the head of different ones is the mean; every weight can be trained."""
    member, tokenizer = replace(MEMBER, lora=lora), load_tokenizer(MEMBER.checkpoint)
    one, other = (trained(member, tmp_path / str(seed), seed) for seed in (1, 2))
    save_average(member, [one, one, one], tokenizer, tmp_path / "same")
    assert sorted(path.name for path in (tmp_path / "same").iterdir()) == sorted(path.name for path in one.iterdir())
    same, first = (merge(load_classifier(member, folder, tokenizer, 0), 1.0) for folder in (tmp_path / "same", one))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    save_average(member, [one, other], tokenizer, tmp_path / "mean")
    model = load_trainable(member, tmp_path / "mean", tokenizer, seed=0)
    fresh = load_trainable(member, None, tokenizer, seed=0)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in fresh.named_parameters() if p.requires_grad
    }
    heads = [merge(load_classifier(member, folder, tokenizer, 0), 1.0).score.weight for folder in (one, other)]
    torch.testing.assert_close(merge(model, 1.0).score.weight, (heads[0] + heads[1]) / 2)
