"""Quantised variants of a student: they open, the head is not quantised, the drift is small and recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ensemble.distillation import quantize
from ensemble.distillation.quantize import load_quantised, measure_drift
from ensemble.serving.judge import Judge
from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.data.battles import read_file
from oof.data.synth import write_arena

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Path:
    """Return a random Gemma2 classifier with layers of whole nf4 blocks, and the small run's tokenizer."""
    folder = tmp_path_factory.mktemp("wide") / "student"
    source = small_run / "distill" / "student"
    config = AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size, config.head_dim, config.num_labels = 128, 256, 32, len(WINNER_COLUMNS)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    shutil.copy2(source / "prompts.json", folder / "prompts.json")
    return folder


@pytest.mark.parametrize(("name", "largest", "share"), [("int8", 1e-2, 0.6), ("nf4", 1e-1, 0.45)])
def test_a_variant_is_smaller_and_nearly_the_same(
    student: Path, tmp_path: Path, name: str, largest: float, share: float
) -> None:
    variant = tmp_path / f"student-{name}"
    load_quantised(student, name).save_pretrained(variant)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "prompts.json"):
        shutil.copy2(student / file, variant / file)
    paths = write_arena(tmp_path / "arena", 40, 0, 2)
    table = read_file(paths["train"], "train").table
    drift = measure_drift(student, variant, table, table["label"].to_numpy().astype(np.int64))
    assert 0 < drift["kl"] <= drift["kl_max"] < largest
    # In the change of the logits, the divergence is of second order, the log loss of 40 labels of first order.
    assert abs(drift["log_loss"]) < 3 * largest
    assert drift["size"] < share
    with (
        safe_open(variant / "model.safetensors", "pt") as quantised,
        safe_open(student / "model.safetensors", "pt") as full,
    ):
        torch.testing.assert_close(quantised.get_tensor("score.weight"), full.get_tensor("score.weight"))
        assert quantised.get_tensor("model.layers.0.self_attn.q_proj.weight").dtype in (torch.int8, torch.uint8)
    assert sum(Judge.from_pretrained(variant).compare("p", "a", "b")) == pytest.approx(1)


def test_a_student_and_its_nf4_variant_score_in_float16_as_a_t4_needs(student: Path, tmp_path: Path) -> None:
    """The precision of the machine that quantised is in the variant's configuration; a T4 only emulates bfloat16."""
    variant = tmp_path / "student-nf4"
    load_quantised(student, "nf4").save_pretrained(variant)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "prompts.json"):
        shutil.copy2(student / file, variant / file)
    assert AutoConfig.from_pretrained(variant).quantization_config["bnb_4bit_compute_dtype"] == "float32"
    for folder in (student, variant):
        probs = {}
        for dtype in ("float32", "float16"):
            judge = Judge.from_pretrained(folder, dtype=dtype)
            layers = [m for name, m in judge.model.named_modules() if "_proj" in name]
            computing = {m.compute_dtype if folder == variant else m.weight.dtype for m in layers}
            assert computing == {getattr(torch, dtype)}
            probs[dtype] = judge.compare("How do I choose an oven?", "A good oven helps every cake.", "Keep the rope.")
        np.testing.assert_allclose(probs["float16"], probs["float32"], atol=5e-3)
        assert probs["float16"] != probs["float32"]


def test_nf4_on_a_cpu_refuses_widths_that_are_not_whole_blocks(small_run: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("only the CPU kernel needs whole blocks")
    with pytest.raises(UserError, match="multiples of 64, not 96"):
        load_quantised(small_run / "distill" / "student", "nf4")


def test_without_bitsandbytes_a_variant_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, small_run: Path
) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    step = Step(small_run / "distill" / "student-int8", "key")
    with pytest.raises(UserError, match="needs bitsandbytes"):
        quantize.export_variant(None, small_run, step)  # type: ignore[arg-type]
    assert not step.folder.exists()
