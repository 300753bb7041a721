"""Audit of pretraining: a sound run passes, and each fault is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from oof.audit.run import audit_run
from oof.common.atomic_files import sealed, write_json
from oof.common.digests import file_digest
from tests.fixtures.pretrain_runs import finished, overrides_in


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run (do not write to it)."""
    folder = tmp_path_factory.mktemp("runs")
    return finished(overrides_in(folder), folder / "whole")


@pytest.mark.slow
def test_a_sound_run_passes(whole: Path) -> None:
    findings = {finding.check: finding for finding in audit_run(whole)}
    assert not [check for check, finding in findings.items() if finding.status == "violated"]
    assert "3 left out for a scored battle's prompt" in findings["pretraining pairs"].message
    assert "0 pairs are near" in findings["pretraining pairs near scored prompts"].message
    assert "2 fold jobs started from it" in findings["pretraining of llama3_1"].message


def plant(pairs: pl.DataFrame, prompt: list[str]) -> pl.DataFrame:
    return pl.concat([pairs[:-1], pairs[-1:].with_columns(prompt=pl.Series([prompt]))])


def with_a_scored_prompt(run: Path) -> None:
    """A pair gets a scored battle's prompt, slightly edited; every checksum is made to agree."""
    folder = run / "pretrain"
    prompt = pl.read_parquet(run / "battles.parquet").filter(pl.col("role") == "train")["prompt"][0].to_list()
    pairs = plant(pl.read_parquet(folder / "battles.parquet"), [prompt[0] + " thanks", *prompt[1:]])
    pairs.write_parquet(folder / "battles.parquet")
    record = json.loads((folder / "battles.json").read_text())
    record["files"]["battles.parquet"] = file_digest(folder / "battles.parquet")
    write_json(folder / "battles.json", sealed(record))


def with_a_test_prompt(run: Path) -> None:
    folder = run / "pretrain"
    prompt = pl.read_parquet(folder / "test.parquet")["prompt"][2].to_list()
    plant(pl.read_parquet(folder / "battles.parquet"), prompt).write_parquet(folder / "battles.parquet")


def with_other_pairs(run: Path) -> None:
    path = run / "pretrain" / "member-llama3_1" / "trained.parquet"
    pl.read_parquet(path)[1:].write_parquet(path)


def with_a_job_from_another_pretraining(run: Path) -> None:
    path = run / "oof" / "llama3_1" / "fold-1" / "job.json"
    write_json(path, sealed(json.loads(path.read_text()) | {"pretrain": "0" * 64}))


def without_pretraining(run: Path) -> None:
    shutil.rmtree(run / "pretrain")


@pytest.mark.parametrize(
    ("damage", "check", "message"),
    [
        (with_a_scored_prompt, "pretraining pairs near scored prompts", "1 pairs are near a scored prompt"),
        (with_a_test_prompt, "pretraining pairs near scored prompts", "1 have an equal one"),
        (with_other_pairs, "pretraining of llama3_1", "other pairs"),
        (with_a_job_from_another_pretraining, "pretraining of llama3_1", "fold-1 did not start from this pretraining"),
        (without_pretraining, "pretraining", "battles.json: no such file"),
    ],
)
def test_each_fault_is_found(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], check: str, message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run)
    finding = {finding.check: finding for finding in audit_run(run)}[check]
    assert finding.status == "violated"
    assert message in finding.message
