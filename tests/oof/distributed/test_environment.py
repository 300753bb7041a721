"""Variables of a launcher in the environment, with and without a process group."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import polars as pl
import pytest

from oof.common.errors import UserError
from oof.distributed import process_group
from tests.fixtures.demo_run import ROOT, only_llama
from tests.fixtures.fold_job_calls import call, command, logits

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_without_a_group_the_environment_sets_neither_rank_nor_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (process_group.rank(), process_group.ranks()) == (0, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: unset"),
        ({"RANK": "1"}, "RANK=1 in the environment, but it is 0 in this process group: unset RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number; unset WORLD_SIZE"),
    ],
)
def test_a_job_refuses_an_environment_that_disagrees_with_its_group(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        process_group.start()


def test_a_stray_world_size_is_removed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    process_group.ignore_stray_environment()
    assert "WORLD_SIZE=2 ignored" in caplog.text
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK"} & os.environ.keys()


def test_a_command_that_starts_its_own_processes_refuses_to_run_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"run it without torchrun and set jobs\.nproc"):
        process_group.ignore_stray_environment()


@pytest.mark.slow
def test_a_stray_world_size_changes_no_logit_of_oof_and_is_refused_by_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = only_llama(tmp_path)
    settings = ["members.llama3_1.train.epochs=0.2"]
    assert call(config, tmp_path / "plain", *settings).returncode == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = call(config, tmp_path / "stray", *settings)
    assert done.returncode == 0, done.stderr
    assert "WORLD_SIZE=2 ignored" in done.stderr
    assert logits(tmp_path / "stray").equals(logits(tmp_path / "plain"))
    scores = logits(tmp_path / "stray").select(pl.col("^(ab|ba)_.*$")).to_numpy()
    assert (scores != 0).all()
    job = command(config, tmp_path / "stray", *settings)
    job[job.index("oof", job.index("oof") + 1)] = "job"
    refused = subprocess.run(  # noqa: S603
        [*job, "--member", "llama3_1", "--fold", "0"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert refused.returncode == 2
    assert "error: WORLD_SIZE=2 is set without RANK" in refused.stderr
