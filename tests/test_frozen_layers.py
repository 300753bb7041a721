"""benchmarks/frozen_layers.py gives the logits of whole passes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT

from oof.adapters import add_adapters
from oof.config import Lora, Member, Prompts
from oof.models import load_base, load_tokenizer
from oof.predict import predict_logits
from oof.prompts import encode_battles

sys.path.append(str(ROOT / "benchmarks"))
import frozen_layers


@pytest.mark.parametrize("base", ["tiny-gemma2", "tiny-llama"])
def test_stored_states_give_the_logits_of_whole_passes(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = Lora(rank=4, alpha=8, layers="upper_half")
    member = Member(checkpoint=str(ROOT / "configs" / "bases" / base), dtype="float32", lora=lora)
    texts = [["The oven goes with the flour. A good piano helps every drum. " * n] for n in range(1, 7)]
    table = pl.DataFrame({"id": [str(i) for i in range(6)], "prompt": [["How?"]] * 6, "response_a": texts})
    table = table.with_columns(response_b=pl.col("response_a").reverse())
    tokenizer = load_tokenizer(member.checkpoint)
    encoded = encode_battles(table, tokenizer, Prompts(max_tokens=120), 120)

    def student(seed: int) -> torch.nn.Module:
        model = add_adapters(load_base(member, tokenizer, 0), member.lora, 0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        return model

    pad, rest = tokenizer.pad_token_id, ("test", tmp_path / "partial", tmp_path / "states")
    for seed in (1, 2):  # the second reads what the first has stored
        whole = predict_logits(student(seed), member, encoded, pad, "test")
        ours = frozen_layers.predict_from_states(student(seed), member, encoded, pad, *rest)
        np.testing.assert_allclose(ours, whole, atol=1e-5)
        assert np.abs(whole[0] - whole[-1]).max() > 1e-3  # the texts do matter
        monkeypatch.setattr(frozen_layers, "_states", None)
