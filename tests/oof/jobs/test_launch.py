"""Launch of fold jobs through the command line: stopped, in several processes, under torchrun, on Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from oof import config as configuration
from oof.common.logits_format import logits_of
from oof.jobs import fold_job
from oof.jobs.dataset import load_battles
from oof.jobs.score_test_battles import score_test_battles
from tests.fixtures.demo_run import ROOT, only_llama
from tests.fixtures.fold_job_calls import call, command, logits
from tests.fixtures.run_files import bytes_of_jobs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_llama(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = call(config, run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_stopped_in_training_resumes_to_the_same_bytes(
    config: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(config, run), stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)  # noqa: S603
    checkpoint = run / "oof" / "llama3_1" / "fold-0" / "checkpoints" / "checkpoint-2"
    deadline = time.monotonic() + 120
    while not checkpoint.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    if number == signal.SIGTERM:
        assert process.returncode == 75, stderr
        assert "run the same command again" in stderr
    assert not (run / "oof" / "llama3_1" / "logits.parquet").exists()
    assert call(config, run).returncode == 0
    resumed, uninterrupted = bytes_of_jobs(run), bytes_of_jobs(whole)
    assert resumed.keys() == uninterrupted.keys()
    assert not [name for name in resumed if resumed[name] != uninterrupted[name] and not name.endswith("member.json")]
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".bin", ".npy") or "checkpoint" in p.name]


@pytest.mark.slow
def test_workers_score_new_battles_as_one_process_does(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = load_battles(whole)[:7].select("id", "prompt", "response_a", "response_b")
    logits_by_workers = []
    for workers, least in ((1, 1000), (2, 1)):
        run = tmp_path / str(workers)
        shutil.copytree(whole, run)
        overrides = [*command(config, run)[5:], f"jobs.workers={workers}"]
        settings = configuration.load(str(config), overrides)
        monkeypatch.setattr("oof.jobs.score_test_battles.MIN_BATTLES_FOR_WORKERS", least)
        jobs = fold_job.fold_jobs(settings, load_battles(run))
        score_test_battles(settings, jobs, new)
        logits_by_workers.append(logits_of(fold_job.test_frames(jobs, new)["llama3_1"]))
    one, two = logits_by_workers
    assert one.shape == (7, 2, 3)
    np.testing.assert_allclose(two, one, atol=1e-5)


@pytest.mark.slow
def test_workers_of_a_killed_call_end_and_the_next_call_runs_their_jobs(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = command(config, run, "jobs.workers=2")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)  # noqa: S603
    workers: list[Any] = []
    deadline = time.monotonic() + 120
    while len(workers) < 2 and time.monotonic() < deadline:  # they are still importing and do not yet know their parent
        workers = [p for p in psutil.Process(process.pid).children() if "multiprocessing-fork" in _title(p)]
    process.kill()
    process.communicate()
    assert len(workers) == 2
    done = call(config, run, "jobs.workers=2")  # at once, while the workers are still alive
    assert done.returncode == 0, done.stderr
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    resumed, uninterrupted = bytes_of_jobs(run), bytes_of_jobs(whole)
    changed = [name for name in uninterrupted if resumed.get(name) != uninterrupted[name]]
    assert not set(changed) - {"oof/llama3_1/member.json"}


@pytest.mark.slow
def test_a_time_limit_stops_between_two_steps_and_the_next_call_resumes(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert call(config, run, "jobs.time_limit=1").returncode == 75
    assert call(config, run, "jobs.time_limit=14").returncode in (0, 75)  # 75 on all but the fastest machine
    assert list(run.glob("oof/*/fold-*/checkpoints/checkpoint-*")) or list(run.glob("oof/*/fold-*/job.json"))
    done = call(config, run)
    assert done.returncode == 0, done.stderr
    assert logits(run).equals(logits(whole))


@pytest.mark.slow
def test_two_processes_of_one_job_take_the_same_steps(config: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = call(config, run, "jobs.nproc=2")
    assert done.returncode == 0, done.stderr[-2000:]
    of_two, of_one = (frame.select(pl.exclude("id", "fold")).to_numpy() for frame in (logits(run), logits(whole)))
    assert abs(of_two - of_one).max() < 0.02
    one, two = (json.loads((r / "oof/llama3_1/fold-1/job.json").read_text()) for r in (whole, run))
    assert [round(h["loss"], 2) for h in one["history"]] == pytest.approx([h["loss"] for h in two["history"]], abs=0.02)


@pytest.mark.slow
def test_ray_retries_a_killed_worker_and_gives_the_logits_of_a_local_run(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    run = tmp_path / "run"
    arguments = command(config, run, "jobs.backend=ray", "jobs.cpus_per_job=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)  # noqa: S603
    checkpoint = run / "oof" / "llama3_1" / "fold-0" / "checkpoints" / "checkpoint-1"
    deadline = time.monotonic() + 120
    while not checkpoint.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::_in_worker" in _title(p)]
    assert workers, "no worker of Ray is training"
    for worker in workers:
        worker.kill()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-2000:]
    assert logits(run).equals(logits(whole))


def _title(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except OSError:  # the process has ended
        return ""


@pytest.mark.slow
def test_jobs_run_by_name_give_the_logits_of_one_call(config: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = command(config, run)
    for fold in ("prepare", "0", "1", "oof"):
        subcommand = ["job", "--member", "llama3_1", "--fold", fold] if fold.isdigit() else [fold]
        line = [*arguments[:3], subcommand[0], *arguments[4:], *subcommand[1:]]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603
        assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    assert logits(run)["id"].equals(logits(whole)["id"])
    line = [*arguments[:3], "job", *arguments[4:], "--member", "nobody", "--fold", "0"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603
    assert done.returncode == 2
    assert "there are members llama3_1" in done.stderr
