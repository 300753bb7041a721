"""Abstention of a finished run: stored with the student, in its card, and added to older runs without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from ensemble.abstention.stored import ABSTENTION, Abstention
from ensemble.abstention.thresholds import calibrate
from ensemble.distillation import answer_thresholds, train
from ensemble.distillation.answer_thresholds import HEADING, store_abstention
from oof.common.atomic_files import sealed
from oof.common.digests import file_digest
from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import small_arguments


def test_the_thresholds_are_those_of_the_held_out_predictions(small_run: Path) -> None:
    stored = Abstention.read(small_run / "distill" / "student")
    frame = pl.read_parquet(small_run / "distill" / "predictions.parquet", glob=False)
    battles = frame.join(pl.read_parquet(small_run / "battles.parquet", glob=False), on="id", maintain_order="left")
    probs = frame.select("student|a", "student|b", "student|tie").to_numpy()
    groups = battles["group"].to_numpy()
    again = calibrate(probs, battles["label"].to_numpy(), groups, 0)
    np.testing.assert_array_equal(stored.thresholds.answered, again.answered)
    np.testing.assert_array_equal(stored.thresholds.wrong, again.wrong)
    assert stored.thresholds.groups == len(set(groups.tolist()))
    assert stored.ranges.scripts == {"latin": 1.0}
    assert 0 < stored.ranges.tokens["0.5"] <= stored.ranges.tokens["0.995"]


def test_the_card_has_a_row_for_each_level(small_run: Path) -> None:
    card = (small_run / "distill" / "student" / "README.md").read_text("utf-8")
    section = card.split(HEADING)[1].split("\n## Limits")[0]
    assert [line.split(" | ")[0] for line in section.splitlines() if "%" in line and line.startswith("| ")] == [
        "| 5%", "| 10%", "| 20%", "| 30%",
    ]  # fmt: skip
    assert "nothing is promised" in section
    assert "approximate" in section


def test_an_older_run_gets_its_thresholds_without_training(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = digests(run / "distill")
    student, manifest = run / "distill" / "student", run / "distill" / "manifest.json"
    (student / ABSTENTION).unlink()
    card = (student / "README.md").read_text("utf-8")
    start, end = card.index(HEADING), card.index("\n## Limits")
    (student / "README.md").write_text(card[:start].rstrip("\n") + "\n" + card[end:], "utf-8")
    content = json.loads(manifest.read_text())
    del content["files"][f"student/{ABSTENTION}"]
    content["files"]["student/README.md"] = file_digest(student / "README.md")
    manifest.write_text(json.dumps(sealed(content)))
    variant = run / "distill" / "student-int8"
    shutil.copytree(student, variant)
    monkeypatch.setattr(train, "train_students", lambda *_, **__: pytest.fail("trained again"))

    def killed_after(*arguments: Any) -> None:
        store_abstention(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_thresholds, "store_abstention", killed_after)
        assert ensemble_main(["distill", *small_arguments(run)]) == 130
    assert ensemble_main(["distill", *small_arguments(run)]) == 0
    assert (variant / ABSTENTION).read_bytes() == (student / ABSTENTION).read_bytes()
    shutil.rmtree(variant)
    assert digests(run / "distill") == before
    assert ensemble_main(["distill", *small_arguments(run)]) == 0
    assert "up to date" in capsys.readouterr().out
    assert ensemble_main(["predict", f"run={run}"]) == 0  # the submission is still this student's
    assert Judge.from_pretrained(student).compare("p", "a", "b", max_error=0.01).answered is False
