"""One base for several adapters: read once, and logits with the bytes that a freshly read base gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from oof.common.errors import UserError
from oof.config import Lora, Member, Prompts
from oof.encoding.encode import encode_battles
from oof.model import classifier
from oof.model.classifier import load_classifier, load_tokenizer
from oof.model.lora import save_classifier, scored_member
from oof.model.shared_base import release_base, saved_classifier
from oof.training.inference import predict_logits
from tests.fixtures.small_tables import table
from tests.fixtures.tiny_classifiers import with_random_adapter
from tests.fixtures.tiny_models import save_tiny

KINDS: dict[str, dict[str, Any]] = {
    "float32, merged": {},
    "upper half": {"lora": Lora(rank=4, alpha=8, layers="upper_half")},
    "DoRA": {"lora": Lora(rank=4, alpha=8, dora=True)},
    "bfloat16": {"dtype": "bfloat16"},
    "float16 scoring": {"score_dtype": "float16"},
    "float16 scoring of bfloat16": {"score_dtype": "float16", "dtype": "bfloat16"},
    "int8": {"quantise": "int8"},
    "nf4": {"quantise": "nf4"},
    "int8 in scoring alone": {"score_quantise": "int8"},
    "int8 in scoring alone, in float16": {"score_quantise": "int8", "score_dtype": "float16"},
}
CPU = torch.backends.cpu.get_cpu_capability()


@pytest.fixture(autouse=True)
def _no_base_from_another_test() -> Iterator[None]:
    release_base()
    yield
    release_base()


@pytest.fixture
def bases_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints whose weights were read so far."""
    read: list[str] = []
    original = AutoModelForSequenceClassification.from_pretrained

    def counting(checkpoint: str, *arguments: Any, **options: Any) -> Any:
        read.append(checkpoint)
        return original(checkpoint, *arguments, **options)

    monkeypatch.setattr(classifier.AutoModelForSequenceClassification, "from_pretrained", counting)
    return read


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    # bitsandbytes' CPU kernel of nf4 takes widths that are multiples of 64.
    return save_tiny("llama", tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128)


def scorer(member: Member) -> Callable[[Any], np.ndarray]:
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(4), tokenizer, Prompts(max_tokens=200), 200)
    return lambda model: predict_logits(model, member, encoded, tokenizer.pad_token_id, "test")


def save_adapters(member: Member, folder: Path) -> list[Path]:
    """Save three adapters of different values and heads."""
    folders = [folder / str(i) for i in range(3)]
    for i, path in enumerate(folders):
        model = with_random_adapter(member, 0.05 * (i + 1))
        with torch.no_grad():
            model.base_model.model.score.weight.mul_(i + 1)
        save_classifier(model, path, member)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_is_read_once_and_logits_have_the_bytes_of_fresh_ones(
    kind: str, checkpoint: str, tmp_path: Path, bases_read: list[str]
) -> None:
    if {"quantise", "score_quantise"} & KINDS[kind].keys():
        pytest.importorskip("bitsandbytes")
    if KINDS[kind] == {"score_quantise": "int8", "score_dtype": "float16"} and "AVX512" not in CPU:
        pytest.skip("bitsandbytes takes another int8 kernel on this processor, which overflows in float16")
    member = replace(Member(checkpoint, dtype="float32", lora=Lora(rank=4, alpha=8)), **KINDS[kind])
    score, tokenizer = scorer(member), load_tokenizer(checkpoint)
    folders = save_adapters(member, tmp_path)
    fresh = [score(load_classifier(scored_member(member), folder, tokenizer, seed=0)) for folder in folders]
    assert not np.array_equal(fresh[0], fresh[1])
    bases_read.clear()
    shared = []
    for folder in [*folders, folders[0]]:
        with saved_classifier(member, folder, tokenizer) as model:
            shared.append(score(model))
    assert [logits.tobytes() for logits in shared] == [logits.tobytes() for logits in [*fresh, fresh[0]]]
    assert bases_read == [checkpoint]


def test_another_member_s_base_replaces_the_first(checkpoint: str, tmp_path: Path, bases_read: list[str]) -> None:
    member = Member(checkpoint, dtype="float32", lora=Lora(rank=4))
    folder = save_adapters(member, tmp_path)[0]
    bases_read.clear()
    for one in (member, member, replace(member, attn="eager"), member):
        with saved_classifier(one, folder, load_tokenizer(checkpoint)):
            pass
    assert len(bases_read) == 3


def test_classifiers_that_are_trained_as_a_whole_are_read_one_by_one(
    checkpoint: str, tmp_path: Path, bases_read: list[str]
) -> None:
    member = Member(checkpoint, dtype="float32", lora=Lora(rank=0))
    tokenizer = load_tokenizer(checkpoint)
    folders = [tmp_path / str(i) for i in range(2)]
    for i, folder in enumerate(folders):
        save_classifier(classifier.load_base(member, tokenizer, seed=i), folder, member)
    bases_read.clear()
    for folder in folders:
        with saved_classifier(member, folder, tokenizer) as model:
            shared = scorer(member)(model)
        assert shared.tobytes() == scorer(member)(load_classifier(member, folder, tokenizer, seed=0)).tobytes()
    assert bases_read == [str(folder) for folder in folders for _ in range(2)]


def test_after_a_damaged_adapter_the_base_is_read_again(checkpoint: str, tmp_path: Path, bases_read: list[str]) -> None:
    member = Member(checkpoint, dtype="float32", lora=Lora(rank=4, alpha=8))
    tokenizer = load_tokenizer(checkpoint)
    good, bad, _ = save_adapters(member, tmp_path)
    expected = scorer(member)(load_classifier(member, good, tokenizer, seed=0))
    (bad / "adapter_model.safetensors").write_bytes(b"damaged")
    bases_read.clear()
    with pytest.raises(UserError, match="cannot be opened"), saved_classifier(member, bad, tokenizer):
        pytest.fail("opened")
    with saved_classifier(member, good, tokenizer) as model:
        assert scorer(member)(model).tobytes() == expected.tobytes()
    assert len(bases_read) == 2
