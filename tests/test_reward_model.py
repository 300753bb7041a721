"""The recipe that starts from a reward model: a fold job keeps the model's layers and trains a fresh head of three."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from oof import config as configuration
from oof.__main__ import main
from oof.encoding.encode import encode_battles
from oof.jobs.dataset import load_battles
from oof.model.classifier import load_tokenizer
from tests.fixtures.demo_run import BASES, ROOT


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    """Return a classifier of one output with a tiny base's layers."""
    folder = tmp_path / "reward"
    base = AutoModelForSequenceClassification.from_pretrained(BASES / "tiny-llama", num_labels=1, dtype="float32")
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASES / "tiny-llama").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_fold_job_trains_on_the_layers_of_a_reward_model_with_a_fresh_head(
    reward_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    settings = (f"checkpoint={reward_model}", "dtype=float32", "train.lr=2e-3", "train.epochs=0.5")
    overrides = [
        f"run={run}", "data.synth.battles=80", "folds.k=2", "prompts.max_tokens=320", "prompts.score_max_tokens=320",
        *(f"members.skywork.{setting}" for setting in settings),
    ]  # fmt: skip
    given = [str(ROOT / "configs" / "reward-model.yaml"), *overrides]
    caplog.set_level("INFO")
    assert main(["prepare", *given]) == 0
    assert main(["job", *given, "--member", "skywork", "--fold", "0"]) == 0
    assert caplog.text.count("its head of size 1 is replaced by a fresh one of size 3") == 1

    config, table = configuration.load(given[0], given[1:]), load_battles(run)
    stored = pl.read_parquet(run / "oof" / "skywork" / "fold-0" / "logits.parquet").row(0, named=True)
    row = table["id"].to_list().index(stored["id"])
    encoded = encode_battles(table[[row]], load_tokenizer(str(reward_model)), config.prompts, 320)
    plain = AutoModelForSequenceClassification.from_pretrained(
        reward_model, num_labels=3, ignore_mismatched_sizes=True, dtype="float32", attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(plain, str(run / "oof" / "skywork" / "fold-0" / "adapter")).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(encoded.sequence(0, 0)[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose([stored[f"ab_{name}"] for name in ("a", "b", "tie")], logits, atol=1e-4)
