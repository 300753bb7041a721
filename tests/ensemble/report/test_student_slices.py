"""Where the student loses: parts of a planted difference, a real run against an independent computation, the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main as ensemble_main
from ensemble.report.slices import Slice
from ensemble.report.student_slices import print_slices, slice_row, student_slices
from oof import config as configuration
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import COUNT_COLUMNS
from oof.jobs.dataset import load_battles
from tests.fixtures.demo_run import small_arguments


def test_the_parts_of_a_family_add_up_to_the_whole_difference() -> None:
    rng = np.random.default_rng(0)
    student, ensemble, groups = rng.random(200), rng.random(200), np.arange(200) // 2
    several = np.arange(200) >= 150
    student[several] += 0.4
    rows = [
        slice_row(Slice("turns", name, flags), student, ensemble, groups, 0)
        for name, flags in (("one", ~several), ("several", several))
    ]
    assert sum(row["part"] for row in rows) == pytest.approx((student - ensemble).mean())
    assert rows[1]["part"] == pytest.approx(0.25 * (student - ensemble)[150:].mean())
    assert rows[1]["difference"]["low"] > 0.2
    assert (rows[1]["n"], rows[1]["share"]) == (50, 0.25)


def test_the_slices_of_a_run_are_those_of_its_out_of_fold_predictions(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    path, *overrides = small_arguments(run)
    content = student_slices(configuration.load(path, overrides))
    battles = load_battles(run).filter(pl.col("role") == "train")
    losses = {}
    for stage, name in (("distill", "student"), ("stack", "calibrated")):
        frame = pl.read_parquet(run / stage / "predictions.parquet", glob=False)
        own = battles.join(frame, on="id", maintain_order="left").select(f"^{name}\\|.*$").to_numpy()
        losses[name] = -np.log(own[np.arange(battles.height), battles["label"].to_numpy()])
    difference = losses["student"] - losses["calibrated"]
    assert content["overall"]["part"] == pytest.approx(difference.mean())
    tie = next(row for row in content["slices"] if (row["family"], row["slice"]) == ("verdict", "tie"))
    assert tie["difference"]["value"] == pytest.approx(difference[battles["label"].to_numpy() == 2].mean())
    parts = [row["part"] for row in content["slices"]]
    assert parts == sorted(parts, reverse=True)
    assert not any(row["family"] == "read by the student" for row in content["slices"])  # none is cut

    for fold in range(3):  # as if half of the battles had been cut to half
        file = run / "distill" / f"fold-{fold}" / "logits.parquet"
        frame = pl.read_parquet(file, glob=False)
        half = pl.int_range(pl.len()) % 2 == 0
        kept = [pl.when(half).then(pl.col(name) // 2).otherwise(pl.col(name)) for name in COUNT_COLUMNS[3:]]
        write_parquet(file, frame.with_columns(kept))
    rows = student_slices(configuration.load(path, overrides))["slices"]
    cut = {row["slice"]: row["n"] for row in rows if row["family"] == "read by the student"}
    assert cut == {"whole": 60, "under 75%": 60}


def test_the_subcommand_prints_a_table_of_80_columns_and_the_same_as_json(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert ensemble_main(["slices", f"run={run}"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-2])) <= 80  # the last lines name the run's folder
    assert "verdict: tie" in printed
    written = json.loads((run / "student_slices.json").read_text())
    written.pop("checksum")
    assert ensemble_main(["slices", f"run={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written

    shutil.rmtree(run / "distill")
    assert ensemble_main(["slices", f"run={run}"]) == 2
    assert "the student is missing; run 'make distill'" in capsys.readouterr().err


def test_a_slice_without_bounds_has_empty_cells(capsys: pytest.CaptureFixture[str]) -> None:
    row = slice_row(Slice("all", "all battles", np.ones(4, bool)), np.ones(4), np.zeros(4), np.zeros(4, int), 0)
    assert row["difference"]["low"] is None
    print_slices({"overall": row, "slices": []})
    assert "+1.0000 │     │      │ +1.0000" in capsys.readouterr().out
