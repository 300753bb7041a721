"""Choice between blockwise and eager attention: the faster by the plan, if its memory suffices, on simulated GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oof.config import Member, Train
from oof.model import attention_choice
from oof.model.attention_choice import faster_attention, with_attention_for
from oof.model.cards import CARDS
from oof.model.predicted_time import Prediction, attentions_on, seconds, training_batches
from tests.fixtures.demo_run import ROOT
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

GEMMA = Member("google/gemma-2-2b-it", dtype="bfloat16", train=Train(tokens_per_batch=4096))
BATCHES = training_batches(np.full(64, 600), GEMMA.train, 4096)
LONGEST = 6, 600
PLENTY = 1e15


def chosen(member: Member, card: str, usable: float = PLENTY, attention: str = "blockwise") -> str:
    prediction = Prediction(member, CARDS[card], attention)
    return faster_attention(prediction, BATCHES, LONGEST, False, usable).attention


@pytest.mark.slow
def test_the_faster_of_the_two_is_chosen_if_its_memory_suffices() -> None:
    times = {
        name: seconds(Prediction(GEMMA, CARDS["A100-80"], name).training(BATCHES, False))
        for name in ("blockwise", "eager")
    }
    assert chosen(GEMMA, "A100-80") == min(times, key=lambda name: times[name]) == "eager"
    assert chosen(GEMMA, "A100-80", usable=1e9) == "blockwise"


def test_a_setting_and_any_other_attention_stay() -> None:
    assert chosen(replace(GEMMA, attn="blockwise"), "A100-80") == "blockwise"
    assert chosen(GEMMA, "H100", attention="flash_attention_4") == "flash_attention_4"


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["google/gemma-2-2b-it", "meta-llama/Llama-3.2-1B-Instruct"])
@pytest.mark.parametrize("card", CARDS)
def test_every_attention_but_blockwise_is_predicted_to_be_at_least_as_fast_as_those_behind_it(
    checkpoint: str, card: str
) -> None:
    member = replace(GEMMA, checkpoint=checkpoint)
    times = [
        seconds(Prediction(member, CARDS[card], name).training(BATCHES, False))
        for name in attentions_on(CARDS[card], member)
        if name != "blockwise"
    ]
    assert times == sorted(times)


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Simulate an A100; the list's one item is its memory."""
    memory = [80e9]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, memory[0]))
    monkeypatch.setattr(attention_choice, "resolve_attention", lambda *_: "blockwise")
    return memory


@pytest.mark.slow
def test_a_training_takes_the_faster_one_where_it_fits(a100: list[float]) -> None:
    member = replace(MEMBER, checkpoint=str(ROOT / "configs" / "bases" / "tiny-gemma2"))
    steps, _ = training_steps(MEMBER)
    assert with_attention_for(member, steps) == replace(member, attn="eager")
    a100[0] = 1e3
    assert with_attention_for(member, steps) == member


def test_a_cpu_and_an_unknown_gpu_keep_the_attention_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = training_steps(MEMBER)
    assert with_attention_for(MEMBER, steps) is MEMBER
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another GPU")
    assert with_attention_for(MEMBER, steps) is MEMBER
