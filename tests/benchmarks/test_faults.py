"""Kills, damage, full and unwritable disks, two starts: the short version of benchmarks.robustness.faults."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.robustness import corruptions, fault_conditions, fault_processes, fault_runs
from benchmarks.robustness.fault_table import failures_of, kinds_table
from ensemble.__main__ import main as ensemble_main
from oof.__main__ import main as oof_main
from oof.common.atomic_files import write_json
from oof.common.errors import UserError, disk_problem
from oof.common.steps import TRAINED, locked
from oof.jobs.process_pool import failure
from tests.fixtures.demo_run import ROOT, small_arguments

LATER_STAGES = ("stack", "distill", "predict", "table")


def chain(run: Path) -> list[list[str]]:
    """Return the commands of every stage and the report with the small run's settings."""
    python, settings = [sys.executable, "-m"], small_arguments(run)
    stages = [[*python, "ensemble", stage, *settings] for stage in LATER_STAGES]
    return [[*python, "oof", "oof", *settings], *stages, [*python, "ensemble", "report", str(run)]]


def call_all(run: Path) -> list[int]:
    """Run every stage in this process; return the exit statuses."""
    arguments = small_arguments(run)
    return [oof_main(["oof", *arguments]), *(ensemble_main([stage, *arguments]) for stage in LATER_STAGES)]


def results(run: Path) -> dict[str, bytes]:
    """Return the files that hold no times and no paths."""
    skipped = (".log", ".jsonl", ".html")
    paths = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name[0] != "." and p.suffix not in skipped]
    with_paths = (
        *fault_runs.MANIFESTS,
        "config.yaml",
        "run.json",
        "report.json",
        "battles.parquet",
    )  # the last has a column file
    return {str(p.relative_to(run)): p.read_bytes() for p in paths if p.name not in with_paths}


@pytest.fixture
def copied(small_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the small run, updated for its new path."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert call_all(run) == [0] * 5
    return run


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fault_processes, "_preloaded", [])
    fault_processes.preload()
    yield
    fault_processes.server().process.stdin.close()


def kill_twice(run: Path, seconds: float, seed: int) -> None:
    """Start the chain and kill it at a random instant, twice; then run it to its end."""
    for i, at in enumerate(fault_conditions.shares(seed, 2, 0.05 * seconds, seconds)):
        fault_runs.run_chain(chain(run), fault_conditions.after(at), whole_group=i == 0)
        assert fault_runs.half_written(run) == []
    assert fault_runs.run_chain(chain(run)).status == 0


@pytest.mark.slow
def test_a_run_that_is_killed_at_two_instants_ends_with_the_same_bytes(
    small_run: Path, copied: Path, preloaded: None
) -> None:
    """Parts of stages one and two and the outputs are missing; the slow test below starts from nothing."""
    for name in ("oof/gemma2/fold-1", "oof/gemma2/test", "stack", "submission.json", "metrics.json"):
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kill_twice(copied, 6.0, seed=3)
    left, whole = results(copied), results(small_run)
    assert left.keys() == whole.keys()
    assert [name for name in whole if left[name] != whole[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_run_that_is_killed_ends_with_the_same_bytes(
    small_run: Path, tmp_path: Path, preloaded: None, seed: int
) -> None:
    run = tmp_path / "run"
    kill_twice(run, 30.0, seed)
    left, whole = results(run), results(small_run)
    assert left.keys() == whole.keys()
    assert [name for name in whole if left[name] != whole[name]] == []


DAMAGED = (  # a kind of file of each stage that is quick to make again
    "synth/test.csv",
    "folds.parquet",
    "oof/MEMBER/logits.parquet",
    "oof/MEMBER/member.json",
    "stack/scores.json",
    "stack/model/combiner.json",
    "distill/student/model.safetensors",
    "submission.csv",
    "metrics.json",
    "run.json",
)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_file_is_named_and_rebuilt(copied: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    rng, kinds = np.random.default_rng(0), corruptions.kinds(copied)
    paths = [kinds[kind][-1 if kind.endswith("member.json") else 0] for kind in DAMAGED]
    whole = {path: corruptions.content(path) for path in paths}
    students = {path: path.stat().st_mtime_ns for path in (copied / "distill").glob("*/adapter/*")}
    for path in paths:
        corruptions.damage(path, how, rng)
    caplog.clear()
    assert call_all(copied) == [0] * 5
    named = [line for line in caplog.messages if "damaged" in line]
    assert [str(path) for path in paths if not any(str(path) in line for line in named)] == []
    assert [str(path) for path in paths if corruptions.content(path) != whole[path]] == []
    assert {path: path.stat().st_mtime_ns for path in (copied / "distill").glob("*/adapter/*")} == students
    caplog.clear()
    assert call_all(copied) == [0] * 5
    assert not [line for line in caplog.messages if "damaged" in line]


def test_each_kind_of_file_is_in_exactly_one_batch_of_the_benchmark(small_run: Path) -> None:
    batches = [set(corruptions.batch(small_run, name)) for name in corruptions.BATCHES]
    assert set().union(*batches) == set(corruptions.kinds(small_run))
    assert sum(map(len, batches)) == len(corruptions.kinds(small_run))
    assert {"oof/MEMBER/fold-K/adapter/adapter_model.safetensors", "tokens/DIGEST/DIGEST.npz"} <= set().union(*batches)


def test_only_a_file_that_is_read_has_to_be_named() -> None:
    kinds = {
        "config.yaml": {"named": None, "same": True},
        "run.json": {"named": False, "same": True},
        "folds.parquet": {"named": True, "same": False},
    }
    entry = {"fault": "damage: cut", "identical": True, "half_written": [], "kinds": kinds}
    assert failures_of(entry) == ["run.json not named", "folds.parquet not rebuilt"]
    rows = {line.split(" | ")[0].strip("| `"): line.split(" | ")[1].strip(" |") for line in kinds_table([entry])[2:]}
    assert rows == {
        "config.yaml": "not read, rebuilt",
        "folds.parquet": "named, NOT REBUILT",
        "run.json": "NOT NAMED, rebuilt",
    }


@pytest.mark.slow
def test_later_stages_refuse_damaged_inputs(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, rng = small_arguments(copied), np.random.default_rng(1)
    student, logits = copied / "distill/student/model.safetensors", copied / "oof/gemma2/logits.parquet"
    corruptions.damage(student, "flipped", rng)
    (copied / "submission.json").unlink()
    assert ensemble_main(["predict", *arguments]) == 2
    assert "make distill" in capsys.readouterr().err.splitlines()[-1]
    corruptions.damage(logits, "flipped", rng)
    for call in (["stack", *arguments], ["table", *arguments], ["report", str(copied)]):
        assert ensemble_main(call) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert str(logits) in message
        assert "make oof" in message


@pytest.mark.slow
def test_a_kill_after_training_leaves_no_checkpoint_in_the_finished_job(copied: Path) -> None:
    folder = copied / "oof" / "gemma2" / "fold-1"
    manifest, logits = json.loads((folder / "job.json").read_text()), (folder / "logits.parquet").read_bytes()
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"pickle")
    write_json(folder / TRAINED, manifest)
    (folder / ".unfinished").write_text(manifest["key"])
    (folder / ".logits.parquet.x.tmp").write_bytes(b"half")
    for name in ("job.json", "logits.parquet"):
        (folder / name).unlink()
    assert oof_main(["oof", *small_arguments(copied)]) == 0
    assert (folder / "logits.parquet").read_bytes() == logits
    left = [path.name for path in folder.rglob("*")]
    assert not [name for name in left if "checkpoint" in name or name.startswith(".") or name.endswith(".pt")]


def test_adapter_settings_are_written_in_one_order(small_run: Path) -> None:
    for path in small_run.rglob("adapter_config.json"):
        modules = json.loads(path.read_text())["target_modules"]
        assert modules == sorted(modules)
        assert len(modules) == 7


def test_a_second_start_is_refused_and_names_the_running_process(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "run"):
        statuses = [oof_main(["oof", *small_arguments(tmp_path / "run")])]
        statuses += [ensemble_main([stage, *small_arguments(tmp_path / "run")]) for stage in LATER_STAGES]
    assert statuses == [2] * 5
    lines = capsys.readouterr().err.splitlines()
    assert all(f"in use by process {os.getpid()}" in line for line in lines)
    assert len(lines) == 5


def test_an_unwritable_run_folder_is_an_error_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for main, stage in ((oof_main, "oof"), *((ensemble_main, stage) for stage in LATER_STAGES)):
        assert main([stage, *small_arguments(tmp_path / "file" / "run")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "cannot write the run folder" in lines[0]


def test_a_full_disk_is_an_error_of_one_sentence_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Files are limited to 8 kB here: the first larger one fails as on a full disk."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "oof", "prepare", *small_arguments(run)]
    done = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert os.strerror(errno.EFBIG) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert fault_runs.half_written(run) == []
    assert oof_main(["prepare", *small_arguments(run)]) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_library_s_message_of_a_full_disk_is_recognised(number: int) -> None:
    """As safetensors and polars report it, and as the cause of an exception that does not mention it."""
    words = os.strerror(number)
    theirs = RuntimeError(f"Error while serializing: I/O error: {words} (os error {number})")
    ours = ValueError("cannot save")
    ours.__cause__ = theirs
    assert disk_problem(theirs) == disk_problem(ours) == words
    assert disk_problem(ValueError("cannot save")) == ""
    assert "disk full?" in disk_problem(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64"))
    assert str(failure("gemma2 fold 0", ours)).startswith(f"gemma2 fold 0: {words}; make room")
    assert isinstance(failure("gemma2 fold 0", ValueError("x")), UserError)
