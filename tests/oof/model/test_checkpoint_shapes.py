"""Shapes of known checkpoints have the published numbers of weights."""

from __future__ import annotations

import pytest
from torch import bfloat16

from oof.common.errors import UserError
from oof.config import Lora, Member
from oof.model.checkpoint_shapes import KNOWN_SHAPES, base_config
from oof.model.pass_trace import build_on_meta

# In billions. Source: the hub's model cards; an untied output layer, which a classifier lacks, is subtracted.
PUBLISHED = {
    "google/gemma-2-2b-it": 2.61,
    "google/gemma-2-9b-it": 9.24,
    "google/gemma-2-27b-it": 27.23,
    "Skywork/Skywork-Reward-Gemma-2-27B": 27.23,
    "meta-llama/Llama-3.2-1B-Instruct": 1.24,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03 - 0.525,
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": 7.50,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B-Instruct": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.62 - 0.545,
    "Qwen/Qwen2.5-14B-Instruct": 14.77 - 0.779,
}


@pytest.mark.parametrize("checkpoint", KNOWN_SHAPES)
def test_known_shapes_have_the_published_number_of_weights(checkpoint: str) -> None:
    member = Member(checkpoint, lora=Lora(rank=0))
    model = build_on_meta(member, base_config(checkpoint).num_hidden_layers, bfloat16, "eager")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PUBLISHED[checkpoint], abs=0.01)


def test_an_unknown_checkpoint_is_an_error_of_one_sentence() -> None:
    with pytest.raises(UserError, match="nobody/nothing"):
        base_config("nobody/nothing")
