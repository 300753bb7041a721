"""Scoring with a quantised base after training on a plain one: by setting only, and with a measured drift."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ensemble.distillation.plan import plan_student
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common.errors import UserError
from oof.config import Config, Lora, Member, Prompts
from oof.encoding.encode import encode_battles
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import FoldJob, fold_jobs
from oof.model.classifier import load_classifier, load_tokenizer
from oof.model.lora import scored_member
from oof.model.shared_base import release_base, saved_classifier
from oof.training import quantised_scoring
from oof.training.inference import predict_logits
from oof.training.quantised_scoring import drift, quantised_for_scoring
from tests.fixtures.demo_run import only_llama
from tests.fixtures.small_tables import table
from tests.fixtures.tiny_classifiers import save_random_adapter
from tests.fixtures.tiny_models import save_tiny

pytest.importorskip("bitsandbytes")

WIDTHS = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes' CPU kernel of nf4 takes multiples of 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny("llama", tmp_path_factory.mktemp("base"), **WIDTHS)


def member_of(checkpoint: str, kind: str, **more: Any) -> Member:
    settings: dict[str, Any] = {"dtype": "float32", "lora": Lora(rank=4, alpha=8)} | more
    return Member(checkpoint, score_quantise=kind, **settings)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("rank", [4, 0])
def test_the_drift_is_that_between_the_trained_and_the_quantised_model(
    kind: str, rank: int, checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = replace(member_of(checkpoint, kind), lora=Lora(rank=rank, alpha=8))
    folder = save_random_adapter(member, tmp_path / "adapter", 0.05)
    tokenizer = load_tokenizer(checkpoint)
    encoded = encode_battles(table(4), tokenizer, Prompts(max_tokens=200), 200)
    plain, quantised = (
        predict_logits(load_classifier(m, folder, tokenizer, 0), m, encoded, tokenizer.pad_token_id, "test")
        for m in (member, scored_member(member))
    )
    trained = load_classifier(member, folder, tokenizer, seed=0)
    with caplog.at_level("INFO"):
        scorer, facts = quantised_for_scoring(trained, member, folder, tokenizer, encoded, "job")
    assert all(parameter.device.type == "meta" for parameter in trained.parameters())  # one base at a time in memory
    assert facts == {"score_drift": {"quantise": kind, "tolerance": 0.02, **drift(plain, quantised)}}
    measured: Any = facts["score_drift"]
    assert 0 < measured["mean_logit"] < measured["max_logit"]
    assert measured["max_logit"] == pytest.approx(np.abs(quantised - plain).max())
    assert f"scored in {kind}; on 4 battles" in caplog.text
    np.testing.assert_array_equal(predict_logits(scorer, member, encoded, tokenizer.pad_token_id, "test"), quantised)


def test_drift_of_known_logits() -> None:
    trained = np.zeros((2, 2, 3))
    quantised = trained.copy()
    quantised[0, 0, 0] = np.log(4)  # probabilities (4, 1, 1) / 6 in place of thirds
    assert drift(trained, quantised) == {
        "max_logit": pytest.approx(np.log(4)),
        "mean_logit": pytest.approx(np.log(4) / 12),
        "mean_probability": pytest.approx((1 / 3 + 1 / 6 + 1 / 6) / 12),
        "battles": 2,
    }


def test_a_drift_above_the_tolerance_is_a_warning(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, tokenizer = member_of(checkpoint, "nf4"), load_tokenizer(checkpoint)
    folder = save_random_adapter(member, tmp_path / "adapter", 0.05)
    encoded = encode_battles(table(4), tokenizer, Prompts(max_tokens=200), 200)
    for tolerance, warned in ((1.0, False), (0.0, True)):
        monkeypatch.setattr(quantised_scoring, "TOLERANCE", tolerance)
        caplog.clear()
        quantised_for_scoring(load_classifier(member, folder, tokenizer, 0), member, folder, tokenizer, encoded, "job")
        assert any(record.levelname == "WARNING" and "nf4" in record.message for record in caplog.records) == warned


def test_without_the_setting_the_trained_model_scores_and_another_quantisation_is_refused(
    checkpoint: str, tmp_path: Path
) -> None:
    member, tokenizer = member_of(checkpoint, "same"), load_tokenizer(checkpoint)
    folder = save_random_adapter(member, tmp_path / "adapter", 0.05)
    encoded = encode_battles(table(2), tokenizer, Prompts(max_tokens=200), 200)
    model = torch.nn.Linear(1, 1)
    assert quantised_for_scoring(model, member, folder, tokenizer, encoded, "job") == (model, {})
    for kind in ("same", "int8"):
        with pytest.raises(UserError, match="trained with quantise=none, now it is nf4"):
            load_classifier(replace(member_of(checkpoint, kind), quantise="nf4"), folder, tokenizer, seed=0)


def test_settings_that_contradict_each_other_are_refused(checkpoint: str, tmp_path: Path) -> None:
    rows = pl.DataFrame({"id": ["1"], "role": ["train"]})

    def jobs(**settings: Any) -> list[FoldJob]:
        return fold_jobs(Config(run=str(tmp_path), members={"m": member_of(checkpoint, "int8", **settings)}), rows)

    with pytest.raises(UserError, match=r"members\.m\.score_quantise=int8 needs quantise=none, not nf4"):
        jobs(quantise="nf4")
    with pytest.raises(UserError, match=r"frozen=stored cannot be combined with members\.m\.score_quantise=int8"):
        jobs(frozen="stored", lora=Lora(layers="upper_half"))
    student = replace(Config().distill, student=member_of(checkpoint, "int8"))
    with pytest.raises(UserError, match=r"set distill\.variants=\[int8\]"):
        plan_student(Config(run=str(tmp_path), distill=student))


@pytest.mark.slow
def test_a_run_scores_held_out_and_test_battles_with_the_quantised_base_and_records_the_drift(
    checkpoint: str, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", only_llama(tmp_path)
    overrides = [f"run={run}", "data.synth.battles=60", "data.synth.test_battles=6", "folds.k=2", "jobs.workers=1"]
    overrides += ["members.llama3_1.train.epochs=0.3", f"members.llama3_1.checkpoint={checkpoint}"]
    overrides += ["members.llama3_1.lora.layers=all"]
    assert oof_main(["oof", str(path), *overrides, "members.llama3_1.score_quantise=int8"]) == 0
    manifest = json.loads((run / "oof" / "llama3_1" / "fold-0" / "job.json").read_text())
    assert manifest["score_drift"]["quantise"] == "int8"
    assert manifest["score_drift"]["max_logit"] > 0
    config = configuration.load(path, [*overrides, "members.llama3_1.score_quantise=int8"])
    job = fold_jobs(config, load_battles(run))[0]
    assert "score_quantise" in job.depends
    plain = fold_jobs(configuration.load(path, overrides), load_battles(run))[0]
    assert "score_quantise" not in plain.depends
    assert plain.step.key != job.step.key
    stored = pl.read_parquet(run / "oof" / "llama3_1" / "fold-0" / "logits.parquet")
    test = pl.read_parquet(next((run / "oof" / "llama3_1" / "test").glob("*/fold-0.parquet")))
    assert (stored.height, test.height) == (30, 6)
    release_base()
    with saved_classifier(job.member, job.folder / "adapter", load_tokenizer(checkpoint)) as model:
        assert model.quantization_method == "bitsandbytes"
    release_base()
