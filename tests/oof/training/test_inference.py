"""Scoring: logits that are not numbers are refused, in one process and in several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oof.common.errors import UserError
from oof.config import Member, Prompts
from oof.distributed import process_group
from oof.encoding.encode import Encoded, encode_battles
from oof.model.classifier import load_base, load_tokenizer
from oof.training.inference import predict_logits
from tests.fixtures.small_tables import table
from tests.fixtures.tiny_models import save_tiny


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Member, Encoded, int]:
    """Return a classifier, its member, four encoded battles of different lengths and the pad id."""
    checkpoint = save_tiny("llama", tmp_path_factory.mktemp("base"))
    member = Member(checkpoint=checkpoint, dtype="float32", score_tokens_per_batch=1)  # a sequence in each pass
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table(4), tokenizer, Prompts(max_tokens=200), 200)
    return load_base(member, tokenizer, 0), member, encoded, tokenizer.pad_token_id


def two_processes(monkeypatch: pytest.MonkeyPatch, rank: int, others: list[torch.Tensor]) -> None:
    """Let this process be one of two, and add ``others`` to its sums; it appends what it would send."""
    monkeypatch.setattr(process_group, "ranks", lambda: 2)
    monkeypatch.setattr(process_group, "rank", lambda: rank)

    def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
        total = torch.stack([tensor, *others]).sum(dim=0)
        others.append(tensor)
        return total

    monkeypatch.setattr(process_group, "sum_over_processes", sum_over_processes)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_logit_that_is_not_a_number_is_refused_by_every_process(
    scored: tuple[torch.nn.Module, Member, Encoded, int], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, member, encoded, pad_id = scored
    passes = 0

    def broken_once(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return output * torch.nan if passes == 2 else output

    hook = model.score.register_forward_hook(broken_once)  # type: ignore[union-attr]
    try:
        two_processes(monkeypatch, rank, [])
        with pytest.raises(UserError, match="test: 1 rows have non-finite logits"):
            predict_logits(model, member, encoded, pad_id, "test")
    finally:
        hook.remove()


def test_two_processes_score_each_sequence_once_and_agree_with_one(
    scored: tuple[torch.nn.Module, Member, Encoded, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, member, encoded, pad_id = scored
    alone = predict_logits(model, member, encoded, pad_id, "test")
    sums: list[torch.Tensor] = []
    two_processes(monkeypatch, 0, sums)
    predict_logits(model, member, encoded, pad_id, "test")
    monkeypatch.setattr(process_group, "rank", lambda: 1)
    together = predict_logits(model, member, encoded, pad_id, "test")
    first, second = (part.abs().sum(dim=1) > 0 for part in sums)
    assert (first ^ second).all()
    np.testing.assert_array_equal(together, alone)
