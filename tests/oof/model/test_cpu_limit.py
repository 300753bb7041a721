"""A base that is too large for a CPU is refused before its weights are read, unless a setting allows it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from oof.common.errors import UserError
from oof.config import Jobs, Member
from oof.model import cpu_limit
from oof.model.checkpoint_shapes import base_config
from oof.model.cpu_limit import count_parameters, refuse_too_large_for_cpu
from tests.fixtures.demo_run import BASES, only_llama
from tests.fixtures.fold_job_calls import call

GEMMA2_9B = Member("google/gemma-2-9b-it")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder with the configuration and tokenizer of a 9B base, and without weights."""
    folder = tmp_path / "large"
    shutil.copytree(BASES / "tiny-gemma2", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    base_config(GEMMA2_9B.checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "memory"),
    [({"dtype": "bfloat16"}, "18 GB"), ({"dtype": "float32"}, "37 GB"), ({"quantise": "nf4"}, "5 GB")],
)
def test_the_error_names_parameters_memory_and_remedies(settings: dict[str, str], memory: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_too_large_for_cpu(replace(GEMMA2_9B, **settings), Jobs(), "gemma2 fold 0")
    message = str(caught.value)
    for words in ("gemma2 fold 0", GEMMA2_9B.checkpoint, "9.2 billion parameters", memory, "jobs.device=cpu"):
        assert words in message


def test_a_small_base_a_gpu_and_the_setting_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_too_large_for_cpu(Member(str(BASES / "tiny-llama")), Jobs(), "job")
    refuse_too_large_for_cpu(GEMMA2_9B, Jobs(device="cpu"), "job")
    monkeypatch.setattr(cpu_limit, "device", lambda: torch.device("cuda"))
    refuse_too_large_for_cpu(GEMMA2_9B, Jobs(), "job")


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-llama"])
def test_parameters_are_those_of_the_real_classifier_and_no_random_number_is_drawn(name: str) -> None:
    real = AutoModelForSequenceClassification.from_pretrained(BASES / name)
    before = torch.get_rng_state()
    assert count_parameters(str(BASES / name)) == sum(parameter.numel() for parameter in real.parameters())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_job_is_refused_before_weights_are_read_and_the_setting_lets_it_go_on(large: Path, tmp_path: Path) -> None:
    config, run = only_llama(tmp_path), tmp_path / "run"
    refused = call(config, run, f"members.llama3_1.checkpoint={large}")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"error: llama3_1: {large} has 9.2 billion parameters")
    assert not run.exists()
    allowed = call(config, run, f"members.llama3_1.checkpoint={large}", "jobs.device=cpu")
    assert allowed.returncode == 2
    assert "no file named model.safetensors" in allowed.stderr.splitlines()[-1]
