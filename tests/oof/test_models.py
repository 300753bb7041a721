"""Our logits are those of plain transformers + peft on one unpadded row in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from oof.adapters import add_adapters, save_classifier
from oof.attention import resolve_attention
from oof.batches import collate
from oof.config import Lora, Member, Prompts
from oof.errors import UserError
from oof.models import load_base, load_classifier, load_tokenizer
from oof.predict import predict_logits
from oof.prompts import encode_battles

BASES = Path(__file__).resolve().parents[2] / "configs" / "bases"
NAMES = ["tiny-gemma2", "tiny-llama"]


def table(n: int = 6) -> pl.DataFrame:
    long = "The oven goes with the flour. A good piano helps every drum. " * 4
    return pl.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "prompt": [["How do I choose a oven and a whisk?"]] * n,
            "response_a": [[long[: 30 + 35 * i]] for i in range(n)],
            "response_b": [["Keep the rope close to a mast."], [""]] * (n // 2),
        }
    )


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Path]:
    """A classifier whose adapter is not the identity, saved."""
    member = Member(checkpoint=str(BASES / request.param), dtype="float32", lora=Lora(rank=4, alpha=8))
    tokenizer = load_tokenizer(member.checkpoint)
    model = add_adapters(load_base(member, tokenizer, 0), member.lora, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("adapter") / request.param
    save_classifier(model, folder, member)
    return member, folder


def plain_logits(member: Member, folder: Path, sequences: list[np.ndarray]) -> np.ndarray:
    """Reference: nothing of ours."""
    base = AutoModelForSequenceClassification.from_pretrained(
        member.checkpoint, num_labels=3, dtype=torch.float32, pad_token_id=0, attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.inference_mode():
        return np.array([model(input_ids=torch.tensor(s[None].astype(np.int64))).logits[0].tolist() for s in sequences])


@pytest.mark.parametrize("budget", [1, 400, 100_000])
def test_logits_equal_plain_peft_whatever_the_batch(trained: tuple[Member, Path], budget: int) -> None:
    member, folder = trained
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(), tokenizer, Prompts(max_tokens=200), 200)
    model = load_classifier(member, folder, tokenizer, seed=5)
    scored = replace(member, score_tokens_per_batch=budget)
    ours = predict_logits(model, scored, encoded, tokenizer.pad_token_id, "test")
    assert ours.shape == (6, 2, 3)
    ab = plain_logits(member, folder, [encoded.sequence(i, 0) for i in range(6)])
    ba = plain_logits(member, folder, [encoded.sequence(i, 1) for i in range(6)])
    np.testing.assert_allclose(ours[:, 0], ab, atol=1e-4)
    np.testing.assert_allclose(ours[:, 1], ba[:, [1, 0, 2]], atol=1e-4)


def test_left_and_right_padding_give_the_same_logits(trained: tuple[Member, Path]) -> None:
    member, folder = trained
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(), tokenizer, Prompts(max_tokens=200), 200, orders=("ab",))
    model = load_classifier(member, folder, tokenizer, seed=5)
    right = collate([encoded.sequence(i, 0) for i in range(6)], tokenizer.pad_token_id)
    mask = (right["input_ids"] != tokenizer.pad_token_id).long()
    left = {
        name: torch.stack(
            [torch.roll(row, int(n)) for row, n in zip(value, mask.shape[1] - mask.sum(dim=1), strict=True)]
        )
        for name, value in {**right, "attention_mask": mask}.items()
    }
    with torch.inference_mode():
        torch.testing.assert_close(model(**right).logits, model(**left).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("key", "value"), [("attn_logit_softcapping", None), ("sliding_window", 4)])
def test_a_lost_soft_cap_or_window_would_be_seen(key: str, value: object) -> None:
    """The parity test above can only catch what changes the logits: both do, on the demo's Gemma2."""
    member = Member(checkpoint=str(BASES / "tiny-gemma2"), dtype="float32")
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(2), tokenizer, Prompts(max_tokens=200), 200, orders=("ab",))
    batch = collate([encoded.sequence(0, 0)], tokenizer.pad_token_id)
    logits = []
    for change in ({}, {key: value}):
        model = load_base(member, tokenizer, 0)
        if key == "attn_logit_softcapping" and change:
            for layer in model.model.layers:
                layer.self_attn.attn_logit_softcapping = None
        elif change:
            changed = AutoModelForSequenceClassification.from_pretrained(
                member.checkpoint,
                num_labels=3,
                dtype=torch.float32,
                attn_implementation="eager",
                pad_token_id=0,
                **change,
            )
            changed.score = model.score
            model = changed
        for parameter in model.model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(1.5)  # far enough from zero for a cap at 50 to bite
        with torch.inference_mode():
            logits.append(model.eval()(**batch).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_gemma2_never_runs_on_sdpa() -> None:
    gemma, llama = (AutoConfig.from_pretrained(BASES / name) for name in NAMES)
    with pytest.raises(UserError, match="soft-capping"):
        resolve_attention(gemma, "sdpa")
    assert resolve_attention(gemma, "auto") in ("eager", "flash_attention_2", "flex_attention")
    assert resolve_attention(gemma, "auto", softcap="off") == "sdpa"
    assert resolve_attention(llama, "auto") == "sdpa"


@pytest.mark.parametrize("name", NAMES)
def test_upper_half_trains_no_layer_below_and_the_embedding_needs_no_gradient(name: str) -> None:
    member = Member(checkpoint=str(BASES / name), dtype="float32")
    tokenizer = load_tokenizer(member.checkpoint)
    model = add_adapters(load_base(member, tokenizer, 0), Lora(rank=2, layers="upper_half"), 0)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("layers.2." in n for n in names)
    assert any("layers.3." in n for n in names)
    assert any("score" in n for n in names)
    assert not any("layers.0." in n or "layers.1." in n or "embed" in n for n in names)


@pytest.mark.parametrize("name", NAMES)
def test_the_fresh_head_and_adapters_depend_on_the_seed_alone(name: str) -> None:
    member = Member(checkpoint=str(BASES / name), dtype="float32", lora=Lora(rank=2))
    tokenizer = load_tokenizer(member.checkpoint)

    def weights(seed: int) -> torch.Tensor:
        model = add_adapters(load_base(member, tokenizer, seed), member.lora, seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    first = weights(3)
    torch.randn(17)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for checkpoint in (str(tmp_path / "empty"), ""):
        with pytest.raises(UserError) as caught:
            load_tokenizer(checkpoint)
        assert "\n" not in str(caught.value)
