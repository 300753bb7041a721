"""Several processes of one job (here two, over gloo) take the steps that one process takes, sharded or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oof.common.errors import UserError
from oof.config import Jobs, Lora, Member
from oof.encoding.batches import score_tokens
from oof.model.cost_model import frozen_bytes, spared_bytes
from oof.model.shards import refuse_unshardable, shards, with_smaller_batches
from tests.fixtures import several_processes
from tests.fixtures.demo_run import ROOT
from tests.fixtures.fold_job_calls import call, logits, only_llama

SCENARIOS = ["ddp", "ddp-short", "fsdp", "fsdp-checkpointed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what one process, and what two, made of the same steps."""
    folder = tmp_path_factory.mktemp("processes")
    big = replace(several_processes.MEMBER.train, tokens_per_batch=10**6)  # one micro-batch a step
    several_processes.run(folder, "one", replace(several_processes.MEMBER, train=big))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(  # noqa: S603
        [*start, "-m", "tests.fixtures.several_processes", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "said.txt").write_text(done.stderr)
    return folder


def facts(folder: Path, name: str, rank: int = 0) -> dict:
    return dict(json.loads((folder / f"{name}-{rank}.json").read_text()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_gradients_of_one_big_batch(folder: Path, name: str) -> None:
    one, two = (np.load(folder / f"{n}.npz") for n in ("one", name))
    assert two["gradients"].shape == one["gradients"].shape
    assert np.abs(one["gradients"]).max() > 0.1
    np.testing.assert_allclose(two["gradients"][0], one["gradients"][0], atol=1e-6)
    np.testing.assert_allclose(two["gradients"], one["gradients"], atol=1e-4)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_end_where_one_does(folder: Path, name: str) -> None:
    one, two = (np.load(folder / f"{n}.npz") for n in ("one", name))
    apart = np.abs(two["trained"] - one["trained"])
    # Adam divides by the gradient's size, so where a gradient is mere rounding its sign, and one step, may differ.
    assert (apart > 2e-5).mean() < 0.01
    assert apart.max() < 1e-3
    np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-3)
    ours, theirs = ([h["loss"] for h in facts(folder, n)["history"]] for n in (name, "one"))
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_stop_asked_of_one_process_stops_both_and_they_go_on_to_the_same_weights(folder: Path, kind: str) -> None:
    whole, stopped = (np.load(folder / f"{n}.npz") for n in (kind, f"{kind}-stopped"))
    assert len(stopped["gradients"]) == 2 < len(whole["gradients"])  # the steps after the stop
    np.testing.assert_array_equal(stopped["trained"], whole["trained"])
    np.testing.assert_array_equal(stopped["logits"], whole["logits"])


def test_when_one_process_runs_out_of_memory_both_halve_the_batch(folder: Path) -> None:
    for rank in (0, 1):
        found = facts(folder, "ddp-short", rank)
        assert (found["oom_halvings"], found["tokens_per_batch"]) == (3, 512)
        assert facts(folder, "ddp", rank)["oom_halvings"] == 0
    assert "out of memory in step 0; going on with 512 tokens per batch" in (folder / "said.txt").read_text()


def test_each_process_holds_half_of_a_sharded_base(folder: Path) -> None:
    whole = facts(folder, "ddp")["frozen_bytes"]
    halves = [facts(folder, "fsdp", rank)["frozen_bytes"] for rank in (0, 1)]
    assert sum(halves) == whole
    assert max(halves) < 0.51 * whole


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_scores_so_far_are_kept_by_the_process_that_owns_them_now(folder: Path, name: str) -> None:
    found = np.load(folder / f"{name}.npz")
    np.testing.assert_allclose(found["again"], found["logits"], atol=1e-6)


def test_a_sharded_job_leaves_the_adapter_that_one_process_leaves(folder: Path) -> None:
    one, two = (folder / name / "adapter" / "adapter_model.safetensors" for name in ("one", "fsdp"))
    assert one.stat().st_size == two.stat().st_size
    kept = folder / "fsdp" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    assert kept.read_bytes() == two.read_bytes()  # a checkpoint holds the adapter and no part of the base


def test_what_cannot_be_sharded_is_refused_in_a_sentence(folder: Path) -> None:
    for rank in (0, 1):
        assert "jobs.parallel=fsdp does not go with quantise=nf4" in (folder / f"refused-{rank}.txt").read_text()
    refuse_unshardable("m", Member())
    lora = (Member(lora=Lora(rank=0)), Member(lora=Lora(dora=True)))
    for member in (*lora, Member(score_dtype="float16"), Member(quantise="int8")):
        with pytest.raises(UserError, match=r"jobs\.parallel=ddp"):
            refuse_unshardable("m", member)


def test_one_process_has_the_whole_base_whatever_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards(Jobs(parallel="fsdp")) == 1
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert shards(Jobs(parallel="fsdp")) == 8
    assert shards(Jobs()) == 1


def test_the_plan_spares_what_other_processes_hold() -> None:
    member = Member(checkpoint="google/gemma-2-9b-it")
    frozen = frozen_bytes(member)
    assert spared_bytes(member, 1) == 0
    assert spared_bytes(member, 8) == pytest.approx(frozen * (7 / 8 - 2 / 42))


def test_halving_reaches_training_and_scoring_and_no_step() -> None:
    member = Member()
    halved = with_smaller_batches(member, 2)
    assert halved.train.tokens_per_batch == member.train.tokens_per_batch // 4
    assert halved.score_tokens_per_batch == score_tokens(member) // 4
    assert halved.train.batch_battles == member.train.batch_battles
    assert with_smaller_batches(member, 99).train.tokens_per_batch == 1


SHORT = """import os
if os.environ.get("RANK") == "1":
    import torch
    from transformers import LlamaModel
    forward = LlamaModel.forward
    def limited(self, input_ids=None, **more):
        if input_ids.numel() > 800:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(self, input_ids, **more)
    LlamaModel.forward = limited
"""


@pytest.mark.slow
def test_a_sharded_job_out_of_memory_goes_on_with_half_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, small = only_llama(tmp_path), "members.llama3_1.train.tokens_per_batch"
    settings = ["jobs.nproc=2", "jobs.parallel=fsdp", "members.llama3_1.score_tokens_per_batch=1500", f"{small}=1500"]
    assert call(config, tmp_path / "whole").returncode == 0
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(SHORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    done = call(config, tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "its processes start again with half the tokens per batch" in done.stderr
    for fold in (0, 1):
        job = json.loads((tmp_path / "run" / "oof" / "llama3_1" / f"fold-{fold}" / "job.json").read_text())
        assert (job["oom_halvings"], job["tokens_per_batch"]) == (1, 750)
    ours, theirs = (logits(tmp_path / name).drop("id", "fold").to_numpy() for name in ("run", "whole"))
    assert np.abs(ours - theirs).max() < 0.02
    assert not list((tmp_path / "run").rglob("halved.json"))


@pytest.mark.slow
def test_a_sharded_run_through_the_command_line_goes_on_after_its_time_limit(tmp_path: Path) -> None:
    config, settings = only_llama(tmp_path), ["jobs.nproc=2", "jobs.parallel=fsdp"]
    assert call(config, tmp_path / "whole").returncode == 0
    assert call(config, tmp_path / "run", *settings, "jobs.time_limit=1").returncode == 75
    for _ in range(6):
        done = call(config, tmp_path / "run", *settings, "jobs.time_limit=30")
        if done.returncode != 75:
            break
    assert done.returncode == 0, done.stderr[-4000:]
    ours, theirs = (logits(tmp_path / name).drop("id", "fold").to_numpy() for name in ("run", "whole"))
    assert np.abs(ours - theirs).max() < 0.02
    refused = call(config, tmp_path / "other", *settings, "members.llama3_1.quantise=nf4")
    assert refused.returncode == 2
    assert "members.llama3_1: jobs.parallel=fsdp does not go with quantise=nf4" in refused.stderr
