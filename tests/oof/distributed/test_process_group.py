"""Several processes of one job (here two, over gloo) take the same optimizer steps as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import several_processes
from tests.fixtures.demo_run import ROOT, only_llama
from tests.fixtures.fold_job_calls import call, logits

pytestmark = pytest.mark.slow  # two processes on two cores, for all tests here together
SCENARIOS = ["ddp", "ddp-short"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of one process and of two processes for the same steps."""
    folder = tmp_path_factory.mktemp("processes")
    big = replace(several_processes.MEMBER.train, tokens_per_batch=10**6)  # one micro-batch per step
    several_processes.run(folder, "one", replace(several_processes.MEMBER, train=big))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(  # noqa: S603
        [*torchrun, "-m", "tests.fixtures.several_processes", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "log.txt").write_text(done.stderr)
    return folder


def summary(folder: Path, name: str, rank: int = 0) -> dict:
    return dict(json.loads((folder / f"{name}-{rank}.json").read_text()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_gradients_of_one_big_batch(folder: Path, name: str) -> None:
    one, two = (np.load(folder / f"{n}.npz") for n in ("one", name))
    assert two["gradients"].shape == one["gradients"].shape
    assert np.abs(one["gradients"]).max() > 0.1
    np.testing.assert_allclose(two["gradients"][0], one["gradients"][0], atol=1e-6)
    np.testing.assert_allclose(two["gradients"], one["gradients"], atol=1e-4)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_end_with_the_weights_logits_and_losses_of_one(folder: Path, name: str) -> None:
    one, two = (np.load(folder / f"{n}.npz") for n in ("one", name))
    difference = np.abs(two["trained"] - one["trained"])
    # Adam divides by the gradient's size: where a gradient is only rounding, its sign and so one step may differ.
    assert (difference > 2e-5).mean() < 0.01
    assert difference.max() < 1e-3
    np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-3)
    losses, losses_of_one = ([entry["loss"] for entry in summary(folder, n)["history"]] for n in (name, "one"))
    assert losses == pytest.approx(losses_of_one, abs=1e-4)


def test_a_stop_request_to_one_process_stops_both_and_they_resume_to_the_same_weights(folder: Path) -> None:
    whole, stopped = (np.load(folder / f"{n}.npz") for n in ("ddp", "ddp-stopped"))
    assert len(stopped["gradients"]) == 2 < len(whole["gradients"])  # the steps after the stop
    np.testing.assert_array_equal(stopped["trained"], whole["trained"])
    np.testing.assert_array_equal(stopped["logits"], whole["logits"])


def test_checkpoints_by_time_are_written_by_both_processes_together_and_change_nothing(folder: Path) -> None:
    checkpoints = folder / "ddp-timed" / "checkpoints"
    assert {path.parent.name for path in checkpoints.glob("checkpoint-*/whole")} == {"checkpoint-2", "checkpoint-3"}
    assert {path.name for path in checkpoints.glob("checkpoint-3/rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    whole, timed = (np.load(folder / f"{n}.npz") for n in ("ddp", "ddp-timed"))
    np.testing.assert_array_equal(timed["trained"], whole["trained"])


def test_when_one_process_runs_out_of_memory_both_halve_the_batch(folder: Path) -> None:
    for rank in (0, 1):
        short = summary(folder, "ddp-short", rank)
        assert (short["oom_halvings"], short["tokens_per_batch"]) == (3, 512)
        assert summary(folder, "ddp", rank)["oom_halvings"] == 0
    assert "out of memory in step 0; going on with 512 tokens per batch" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "field"),
    [("ddp-nan", "skipped_steps"), ("ddp-nan-loss", "skipped_steps"), ("ddp-float16", "overflow_steps")],
)
def test_when_one_process_has_a_bad_step_both_skip_it_and_keep_equal_weights(
    folder: Path, name: str, field: str
) -> None:
    first, second = (summary(folder, name, rank) for rank in (0, 1))
    assert first[field] == second[field] == [1]
    assert first["weights"] == second["weights"]
    gradients = np.load(folder / f"{name}.npz")["gradients"]
    assert [bool(step.any()) for step in gradients] == [True, False, True, True]
    assert np.isfinite(np.load(folder / f"{name}.npz")["trained"]).all()


def test_an_overflow_in_one_process_lowers_the_scale_in_both(folder: Path) -> None:
    assert [summary(folder, "ddp-float16", rank)["loss_scale"] for rank in (0, 1)] == [2.0**15] * 2


def test_too_many_bad_steps_of_one_process_end_both_in_the_same_sentence(folder: Path) -> None:
    first, second = (summary(folder, "ddp-limit", rank)["error"] for rank in (0, 1))
    assert first == second
    assert "loss nan and gradient norm nan in step 3 of 4; 4 steps were not finite" in first


def test_when_one_process_runs_out_of_memory_at_the_smallest_batch_both_recompute(folder: Path) -> None:
    expected, recomputed = (np.load(folder / f"{name}.npz") for name in ("ddp", "ddp-recompute"))
    np.testing.assert_array_equal(recomputed["trained"], expected["trained"])
    for rank in (0, 1):
        switched = summary(folder, "ddp-recompute", rank)
        assert (switched["oom_checkpointing_step"], switched["checkpointed_layers"]) == (0, 4)
        assert switched["weights"] == summary(folder, "ddp", rank)["weights"]


def test_partial_logits_are_reused_only_by_the_process_that_owns_their_rows(folder: Path) -> None:
    arrays = np.load(folder / "ddp.npz")
    np.testing.assert_allclose(arrays["again"], arrays["logits"], atol=1e-6)


def test_a_job_of_two_processes_saves_the_adapter_once_and_whole(folder: Path) -> None:
    one, two = (folder / name / "adapter" / "adapter_model.safetensors" for name in ("one", "ddp"))
    assert one.stat().st_size == two.stat().st_size
    checkpointed = folder / "ddp" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    assert checkpointed.read_bytes() == two.read_bytes()  # a checkpoint holds the adapter and no part of the base


@pytest.mark.slow
def test_a_job_of_two_processes_goes_on_after_its_time_limit(tmp_path: Path) -> None:
    config, settings = only_llama(tmp_path), ["jobs.nproc=2"]
    assert call(config, tmp_path / "whole").returncode == 0
    assert call(config, tmp_path / "run", *settings, "jobs.time_limit=1").returncode == 75
    for _ in range(6):
        done = call(config, tmp_path / "run", *settings, "jobs.time_limit=30")
        if done.returncode != 75:
            break
    assert done.returncode == 0, done.stderr[-4000:]
    resumed, whole = (logits(tmp_path / name).drop("id", "fold").to_numpy() for name in ("run", "whole"))
    assert np.abs(resumed - whole).max() < 0.02
