"""Scores of test battles: each member's base is read once, and logits are those of freshly read classifiers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import AutoModelForSequenceClassification

from oof import config as configuration
from oof.common.logits_format import logits_of
from oof.jobs import fold_job
from oof.jobs.dataset import load_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import FoldJob, by_member, fold_jobs
from oof.jobs.score_test_battles import score_test_battles
from oof.model import classifier, shared_base
from oof.model.classifier import load_classifier
from tests.fixtures.demo_run import small_arguments


def average_of_fresh_classifiers(jobs: list[FoldJob], battles: pl.DataFrame, folder: Path) -> np.ndarray:
    """Return (n, 2, 3) logits, averaged over a member's fold jobs, each read from the disk as a whole."""
    encoded = EncodedBattles(replace(jobs[0].member, frozen="recompute"), battles, jobs[0].config)
    rows, logits = np.arange(battles.height), []
    for job in jobs:
        model = load_classifier(job.member, job.folder / "adapter", encoded.tokenizer, seed=0)
        logits.append(encoded.logits(model, rows, "fresh", folder / "partial"))
    return np.mean(logits, axis=0, dtype=np.float64).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["recompute", "stored"])
def test_each_member_s_base_is_read_once_and_logits_are_those_of_fresh_classifiers(
    frozen: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    path, *overrides = small_arguments(run, *(f"members.{n}.frozen={frozen}" for n in ("gemma2", "llama3_1")))
    config = configuration.load(path, overrides)
    jobs = fold_jobs(config, load_battles(run))
    battles = load_battles(run)[:5].select("id", "prompt", "response_a", "response_b")
    expected = {
        n: average_of_fresh_classifiers(of_member, battles, tmp_path) for n, of_member in by_member(jobs).items()
    }
    read: list[str] = []
    original = AutoModelForSequenceClassification.from_pretrained

    def counting(checkpoint: str, *arguments: Any, **options: Any) -> Any:
        read.append(Path(checkpoint).name)
        return original(checkpoint, *arguments, **options)

    monkeypatch.setattr(classifier.AutoModelForSequenceClassification, "from_pretrained", counting)
    score_test_battles(config, jobs, battles)
    frames = fold_job.test_frames(jobs, battles)
    assert frames is not None
    assert {name: logits_of(frame).tobytes() for name, frame in frames.items()} == {
        n: e.tobytes() for n, e in expected.items()
    }
    assert read == ["tiny-gemma2", "tiny-llama"]
    assert not shared_base._LATEST  # the memory is free again
