"""Audit of extra battles: each is held out by one job of a member, and no teacher scores what it trained on."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from oof.audit.extra_battles import HELD_OUT, TEACHER
from oof.audit.run import Finding, audit_run, format_findings
from tests.fixtures.audit_runs import K, N, change_table, in_fold, violated, write_job

OWN = f"b{N + 2}"  # the extra battle whose group has no scored battle


def own_fold(run: Path) -> int:
    return int(pl.read_parquet(run / "battles.parquet").filter(pl.col("id") == OWN)["fold"].item())


def finding(run: Path, check: str) -> Finding:
    (found,) = (finding for finding in audit_run(run) if finding.check == check)
    return found


def test_a_job_that_trained_on_an_extra_battle_of_its_fold_is_caught(run: Path) -> None:
    job = run / "oof" / "two" / f"fold-{own_fold(run)}"
    logits, trained = pl.read_parquet(job / "logits.parquet"), pl.read_parquet(job / "trained.parquet")["id"]
    write_job(job, logits, pl.concat([trained, pl.Series([OWN])]))
    assert violated(audit_run(run)) == {HELD_OUT}
    assert f"trained on {OWN}, which it should hold out" in format_findings(audit_run(run))


def test_an_extra_battle_that_two_jobs_hold_out_is_caught(run: Path) -> None:
    job = run / "oof" / "two" / f"fold-{(own_fold(run) + 1) % K}"
    logits, trained = pl.read_parquet(job / "logits.parquet"), pl.read_parquet(job / "trained.parquet")["id"]
    write_job(job, logits, trained.filter(trained != OWN))
    assert violated(audit_run(run)) == {HELD_OUT}


def test_extra_battles_in_no_fold_are_a_warning(run: Path) -> None:
    change_table(run, in_fold(OWN, pl.lit(-1)))
    assert not violated(audit_run(run))
    assert finding(run, HELD_OUT).status == "warning"
    assert finding(run, HELD_OUT).message.startswith("1 of 3 are in no fold")


@pytest.mark.parametrize(
    ("folder", "trained_on", "manifest", "expected"),
    [
        ("one/fold-{held_out}-abcdef12", None, {"teacher": "oof", "fold_job": "k"}, "ok"),
        ("one/fold-{other}-abcdef12", None, {"teacher": "oof", "fold_job": "k"}, "violated"),
        ("one/fold-{other}-abcdef12", None, {"teacher": "fold_matched", "fold_job": "k"}, "ok"),
        ("one/fold-{other}-abcdef12", None, {"teacher": "oof", "fold_job": "of an earlier version"}, "ok"),
        ("nested/one/without-0-1", ["b5"], {"teacher": "nested", "fold_job": "k"}, "ok"),
        ("nested/one/without-0-1", ["b5", OWN], {"teacher": "nested", "fold_job": "k"}, "violated"),
    ],
)
def test_scores_of_a_teacher_that_trained_on_the_extra_battle_are_caught(
    run: Path, folder: str, trained_on: list[str] | None, manifest: dict[str, str], expected: str
) -> None:
    held_out = own_fold(run)
    path = run / "teacher" / folder.format(held_out=held_out, other=(held_out + 1) % K)
    path.mkdir(parents=True)
    pl.DataFrame({"id": [OWN]}).write_parquet(path / "logits.parquet")
    if trained_on is not None:
        pl.DataFrame({"id": trained_on}).write_parquet(path / "trained.parquet")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert finding(run, TEACHER).status == expected
    assert violated(audit_run(run)) == ({TEACHER} if expected == "violated" else set())
