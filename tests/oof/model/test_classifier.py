"""Classifier logits equal those of plain transformers and peft on one unpadded row in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from oof.classes import with_tie, without_ties
from oof.common.errors import UserError
from oof.config import Lora, Member, Prompts, Train
from oof.encoding.batches import collate
from oof.encoding.encode import encode_battles
from oof.model.attention import resolve_attention
from oof.model.classifier import load_base, load_classifier, load_tokenizer, load_trainable
from oof.model.lora import add_adapters, save_classifier, saved_classes
from oof.model.shared_base import release_base, saved_classifier
from oof.training.inference import predict_logits
from tests.fixtures.demo_run import BASES
from tests.fixtures.small_tables import table
from tests.fixtures.tiny_classifiers import logits_of, save_random_adapter
from tests.fixtures.tiny_models import FAMILIES, save_tiny

NAMES = ["tiny-gemma2", "tiny-llama"]


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Path]:
    """A classifier whose adapter is not the identity, saved."""
    member = Member(checkpoint=str(BASES / request.param), dtype="float32", lora=Lora(rank=4, alpha=8))
    return member, save_random_adapter(member, tmp_path_factory.mktemp("adapter") / request.param, 0.05)


def plain_logits(member: Member, folder: Path, sequences: list[np.ndarray], classes: int = 3) -> np.ndarray:
    """Return (n, classes) reference logits from transformers and peft alone, one unpadded sequence at a time."""
    base = AutoModelForSequenceClassification.from_pretrained(
        member.checkpoint, num_labels=classes, dtype=torch.float32, pad_token_id=0, attn_implementation="eager"
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
    logits = predict_logits(model, scored, encoded, tokenizer.pad_token_id, "test")
    assert logits.shape == (6, 2, 3)
    ab = plain_logits(member, folder, [encoded.sequence(i, 0) for i in range(6)])
    ba = plain_logits(member, folder, [encoded.sequence(i, 1) for i in range(6)])
    np.testing.assert_allclose(logits[:, 0], ab, atol=1e-4)
    np.testing.assert_allclose(logits[:, 1], ba[:, [1, 0, 2]], atol=1e-4)


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
def test_the_parity_test_would_notice_a_lost_soft_cap_or_window(key: str, value: object) -> None:
    """Both change the logits of the demo's Gemma2, which the parity test above relies on."""
    # With eager, which computes without a cap; blockwise attention refuses to (test_blockwise_attention.py).
    member = Member(checkpoint=str(BASES / "tiny-gemma2"), dtype="float32", attn="eager")
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
    assert resolve_attention(gemma, "auto") in ("blockwise", "flash_attention_2")
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


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_head_gives_equal_classes_at_first_and_learns(name: str) -> None:
    member = Member(checkpoint=str(BASES / name), dtype="float32", train=Train(head_init="zero"))
    tokenizer = load_tokenizer(member.checkpoint)
    model = load_trainable(member, None, tokenizer, 0)
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(logits, torch.zeros(1, 3))
    torch.nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
    (head,) = (p for n, p in model.named_parameters() if p.requires_grad and "score" in n)
    assert head.grad is not None
    assert head.grad.abs().sum() > 0


def test_a_missing_checkpoint_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for checkpoint in (str(tmp_path / "empty"), ""):
        with pytest.raises(UserError) as caught:
            load_tokenizer(checkpoint)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Path]:
    """A random classifier of each family whose adapter is not the identity."""
    folder = tmp_path_factory.mktemp(request.param)
    lora = Lora(rank=4, alpha=8)
    member = Member(checkpoint=save_tiny(request.param, folder / "base", scale=2.0), dtype="float32", lora=lora)
    return member, save_random_adapter(member, folder / "adapter", 0.05)


@pytest.mark.parametrize("attn", ["eager", "blockwise", "sdpa"])
def test_every_family_and_attention_gives_the_reference_s_logits(family: tuple[Member, Path], attn: str) -> None:
    member, folder = family
    if attn == "sdpa" and "gemma2" in member.checkpoint:
        pytest.skip("sdpa drops the soft-capping and is refused")
    if attn == "blockwise" and "gemma2" not in member.checkpoint:
        pytest.skip("families without soft-capping run on sdpa")
    encoded = encode_battles(table(4), load_tokenizer(member.checkpoint), Prompts(max_tokens=200), 200)
    pad = load_tokenizer(member.checkpoint).pad_token_id
    base = AutoModelForSequenceClassification.from_pretrained(
        member.checkpoint, num_labels=3, dtype=torch.float32, pad_token_id=pad, attn_implementation="eager"
    )
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.inference_mode():
        rows = [
            [plain(input_ids=torch.tensor(encoded.sequence(i, o)[None].astype(np.int64))).logits[0] for o in (0, 1)]
            for i in range(4)
        ]
    expected = torch.stack([torch.stack(pair) for pair in rows]).numpy()
    expected[:, 1] = expected[:, 1][:, [1, 0, 2]]
    np.testing.assert_allclose(logits_of(replace(member, attn=attn), folder), expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("auto", 0.1)])
def test_lower_precision_gives_similar_logits(family: tuple[Member, Path], precision: str, tolerance: float) -> None:
    member, folder = family
    assert np.abs(logits_of(replace(member, dtype=precision), folder) - logits_of(member, folder)).max() < tolerance


def test_soft_capping_is_recorded_and_never_mixed(tmp_path: Path) -> None:
    checkpoint = save_tiny("gemma2", tmp_path / "base", scale=30.0)
    uncapped = Member(checkpoint=checkpoint, dtype="float32", attn_softcap="off", lora=Lora(rank=4))
    tokenizer = load_tokenizer(checkpoint)
    model = add_adapters(load_base(uncapped, tokenizer, 0), uncapped.lora, 0)
    assert model.config._attn_implementation == "sdpa"
    save_classifier(model, tmp_path / "adapter", uncapped)
    capped = replace(uncapped, attn_softcap="on")
    with pytest.raises(UserError, match="attn_softcap=off, now it is on"):
        load_classifier(capped, tmp_path / "adapter", tokenizer, 0)
    eager = logits_of(replace(uncapped, attn="eager"), tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(uncapped, tmp_path / "adapter"), eager, atol=1e-4)
    (tmp_path / "adapter" / "arena.json").unlink()  # an adapter without the record is not refused
    assert np.abs(logits_of(capped, tmp_path / "adapter") - eager).max() > 1e-3


def test_a_reward_model_s_head_is_replaced_and_our_own_head_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = save_tiny("llama", tmp_path / "base")
    reward = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    load_tokenizer(checkpoint).save_pretrained(tmp_path / "reward")
    tokenizer = load_tokenizer(str(tmp_path / "reward"))
    with caplog.at_level("INFO"):
        fresh = load_base(Member(checkpoint=str(tmp_path / "reward"), dtype="float32"), tokenizer, 0)
    assert [r.getMessage().split(": ")[1] for r in caplog.records if r.name.startswith("oof.")] == [
        "its head of size 1 is replaced by a fresh one of size 3"
    ]
    trunk = {name: weight for name, weight in reward.state_dict().items() if name != "score.weight"}
    assert all(torch.equal(fresh.state_dict()[name], weight) for name, weight in trunk.items())
    assert fresh.score.weight.shape == (3, 32)
    fresh.score.weight.data.fill_(0.25)
    fresh.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    again = load_base(Member(checkpoint=str(tmp_path / "ours"), dtype="float32"), tokenizer, 1)
    assert (again.score.weight == 0.25).all()


def test_a_classifier_of_two_classes_is_saved_and_scored_with_a_pinned_tie(tmp_path: Path) -> None:
    member = Member(checkpoint=str(BASES / "tiny-llama"), dtype="float32", lora=Lora(rank=4, alpha=8))
    tokenizer = load_tokenizer(member.checkpoint)
    model = load_trainable(member, None, tokenizer, 0, n_classes=2)
    assert model.score.weight.shape[0] == 2
    save_classifier(model, tmp_path / "two", member)
    assert not (tmp_path / "two" / "README.md").exists()  # peft's, of empty headings
    three = save_random_adapter(member, tmp_path / "three", 0.05)
    encoded = encode_battles(table(), tokenizer, Prompts(max_tokens=200), 200)
    plain = plain_logits(member, tmp_path / "two", [encoded.sequence(i, 1) for i in range(6)], classes=2)
    scored = []
    for folder in (tmp_path / "two", three, tmp_path / "two"):  # one base after another in a process
        with saved_classifier(member, folder, tokenizer) as saved:
            scored.append(predict_logits(saved, member, encoded, tokenizer.pad_token_id, "test"))
    release_base()
    np.testing.assert_array_equal(scored[0], scored[2])
    np.testing.assert_allclose(scored[0][:, 1, :2], plain[:, ::-1], atol=1e-4)
    np.testing.assert_array_equal(scored[0], with_tie(scored[0][..., :2]))
    assert not without_ties(scored[1])
    (tmp_path / "two" / "arena.json").write_text('{"classes": "many"}', encoding="utf-8")
    with pytest.raises(UserError, match="classes is 'many', not 2 or 3"):
        saved_classes(tmp_path / "two")


def test_float16_scoring_is_checked_before_it_is_used(family: tuple[Member, Path]) -> None:
    member, folder = family
    half = replace(member, score_dtype="float16")
    np.testing.assert_allclose(logits_of(half, folder), logits_of(member, folder), atol=0.05)


def test_float16_overflow_is_refused_with_the_module_s_name(tmp_path: Path) -> None:
    member = Member(checkpoint=save_tiny("llama", tmp_path / "base"), dtype="float32", score_dtype="float16")
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(4), tokenizer, Prompts(max_tokens=200), 200)
    model = load_base(member, tokenizer, 0)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(100)
    model.model.layers[1].mlp.down_proj.weight.data.mul_(1e6)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj"):
        predict_logits(model, member, encoded, tokenizer.pad_token_id, "test")
