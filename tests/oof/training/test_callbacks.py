"""Reports of a running training: metrics.jsonl in any case, and a tracker where one is configured."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oof.common.errors import UserError
from oof.config import Jobs
from oof.config.setting import settings
from oof.model.classifier import load_base
from oof.model.lora import add_adapters
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.tiny_classifiers import training_steps
from tests.fixtures.tiny_models import MEMBER

TRACKERS = [name for name in settings(Jobs)["report_to"].metadata["choices"] if name != "none"]


def train_battles(folder: Path, report_to: str = "none") -> dict[str, Any]:
    """Train a tiny Llama on 32 battles (4 steps) with its checkpoints in ``folder``; return the training's summary."""
    steps, tokenizer = training_steps(MEMBER)
    model = add_adapters(load_base(MEMBER, tokenizer, 1), MEMBER.lora, 1)
    return train_classifier(model, MEMBER, steps, cross_entropy, folder, 3, "fold 0", report_to)


def test_metrics_jsonl_has_every_logged_line_without_any_tracker(tmp_path: Path) -> None:
    summary = train_battles(tmp_path / "checkpoints")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [
        {key: line[key] for key in entry} for line, entry in zip(lines, summary["history"], strict=True)
    ] == summary["history"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(0 < line["loss"] < 5 for line in lines)
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_has_the_same_losses_and_outlives_the_checkpoints(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_battles(tmp_path / "checkpoints", "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    np.testing.assert_allclose([value for _, value in logged], [line["loss"] for line in lines], rtol=1e-5)
    assert not list((tmp_path / "checkpoints").rglob("events.*"))


def test_trackio_is_called_by_its_own_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    train_battles(tmp_path / "checkpoints", "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "arena-distill.db") as database:
        logged = [
            json.loads(row[0]) for row in database.execute("select metrics from metrics where run_name = 'fold 0'")
        ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == [line["loss"] for line in lines]


def test_a_tracker_that_is_not_installed_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    missing = [name for name in TRACKERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    with pytest.raises(UserError, match=f"jobs.report_to={missing[0]}.*pip install {missing[0]}"):
        train_battles(tmp_path / "checkpoints", missing[0])
    assert not (tmp_path / "metrics.jsonl").exists()
