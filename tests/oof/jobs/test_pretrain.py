"""Pretraining through the command line: decontamination, the fold jobs that start from it, reruns after changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.audit.run import audit_run
from oof.encoding.batches import TrainingSteps
from oof.jobs import fold_job
from oof.jobs.dataset import load_battles, read_test
from oof.jobs.pretrain import draft_pairs, pretrain_job
from oof.plan import format_plan, make_plan
from oof.plan.lengths import pair_tokens
from tests.fixtures.demo_run import ROOT
from tests.fixtures.pretrain_runs import FRESH, LLAMA, finished, overrides_in, starts, weights
from tests.fixtures.run_files import bytes_of_jobs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the configuration and its overrides, without a run."""
    return overrides_in(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def whole(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run (do not write to it)."""
    return finished(base, tmp_path_factory.mktemp("runs") / "whole")


def config_of(base: list[str], run: Path, *more: str) -> configuration.Config:
    return configuration.load(base[0], [*base[1:], f"run={run}", *more])


@pytest.mark.slow
def test_pairs_with_a_scored_prompt_are_left_out_of_training(whole: Path) -> None:
    pairs = pl.read_parquet(whole / "pretrain" / "battles.parquet")
    assert pairs.height == FRESH
    assert all(prompt[0].startswith("w") for prompt in pairs["prompt"])
    manifest = json.loads((whole / "pretrain" / "battles.json").read_text())
    expected = {"rows_read": FRESH + 3, "bad_rows": 0, "kept": FRESH, "near_train": 2, "near_test": 1}
    assert manifest["counts"] == expected
    dropped = pl.read_csv(whole / "pretrain" / "dropped.csv")
    assert dropped["row"].sort().to_list() == [FRESH + 1, FRESH + 2, FRESH + 3]
    assert dropped["reason"].str.contains("near-duplicate prompt of scored (train|test) ").all()
    trained = pl.read_parquet(whole / "pretrain" / "member-llama3_1" / "trained.parquet")
    assert trained["id"].equals(pairs["id"])


@pytest.mark.slow
def test_a_fold_job_starts_from_the_pretrained_adapter_and_head(whole: Path) -> None:
    start = starts(whole)
    assert any(name.startswith("base_model.model.score") for name in start)
    assert all(value.abs().max() > 0 for name, value in start.items() if "lora_B" in name)  # a fresh B is zero
    for fold in range(2):  # a job whose rate is 0 ends where it started
        ended = weights(whole / "oof" / "llama3_1" / f"fold-{fold}" / "adapter")
        assert ended.keys() == start.keys()
        assert all(torch.equal(ended[name], value) for name, value in start.items())
    history = json.loads((whole / "pretrain" / "member-llama3_1" / "job.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["{rank: 0}", "{rank: 4, dora: true, rslora: true}"])
def test_full_fine_tuning_and_dora_start_from_the_pretrained_weights_too(
    base: list[str], tmp_path: Path, lora: str
) -> None:
    run = tmp_path / "run"
    arguments = [*base, f"run={run}", f"{LLAMA}.lora={lora}", "pretrain.epochs=0.4"]
    assert oof_main(["oof", *arguments]) == 0
    start = starts(run)
    for fold in range(2):
        ended = weights(run / "oof" / "llama3_1" / f"fold-{fold}" / "adapter")
        assert ended.keys() == start.keys()
        assert all(torch.equal(ended[name], value) for name, value in start.items())
    if "rank: 0" in lora:
        fresh = load_file(ROOT / "configs" / "bases" / "tiny-llama" / "model.safetensors")
        moved = [name for name, value in fresh.items() if not torch.equal(start.get(name, value), value)]
        assert len(moved) > len(fresh) / 2
    assert [finding.check for finding in audit_run(run) if finding.status == "violated"] == []


@pytest.mark.slow
def test_an_interrupted_pretraining_continues_to_the_same_bytes(
    base: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, get = tmp_path / "run", TrainingSteps.__getitem__
    requested: list[int] = []

    def stopping(self: TrainingSteps, index: int) -> Any:
        requested.append(index)
        if len(requested) in (3, 4):  # in the last step of pretraining, twice
            raise KeyboardInterrupt
        return get(self, index)

    arguments = [*base, f"run={run}"]
    monkeypatch.setattr(TrainingSteps, "__getitem__", stopping)
    assert oof_main(["oof", *arguments]) == 130
    assert (run / "pretrain" / "member-llama3_1" / "checkpoints" / "checkpoint-2").is_dir()
    assert not (run / "oof" / "llama3_1" / "fold-0").exists()
    assert oof_main(["oof", *arguments]) == 130  # again in the last step
    assert requested == [0, 1, 2, 2]
    assert oof_main(["oof", *arguments]) == 0
    assert requested[4] == 2
    ours, theirs = (bytes_of_jobs(r, ("oof", "pretrain")) for r in (run, whole))
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name] and not name.endswith("member.json")]
    assert not [path for path in (run / "pretrain").rglob("*") if "checkpoint" in path.name or path.suffix == ".pt"]
    steps = len(requested)
    assert oof_main(["oof", *arguments]) == 0
    assert len(requested) == steps


def test_a_changed_setting_reruns_only_the_jobs_that_depend_on_it(base: list[str], whole: Path) -> None:
    table = load_battles(whole)

    def undone(*more: str) -> list[str]:
        jobs = fold_job.fold_jobs(config_of(base, whole, *more), table)
        first = [job for job in [jobs[0].pretrain] if job is not None and not job.step.done]
        return [job.label for job in (*first, *jobs) if not isinstance(job, fold_job.FoldJob) or not job.step.done]

    folds = ["llama3_1 fold 0", "llama3_1 fold 1"]
    assert undone() == []
    assert undone("pretrain.epochs=2") == ["llama3_1 pretraining", *folds]
    assert undone(f"{LLAMA}.lora.rank=8") == ["llama3_1 pretraining", *folds]
    assert undone(f"{LLAMA}.train.lr=1e-3") == folds  # pretrain.lr is set, so pretraining does not depend on it
    assert undone(f"{LLAMA}.train.epochs=2") == folds
    assert undone("prompts.score_max_tokens=64") == folds
    assert undone("pretrain.data=[]") == folds
    assert undone("stack.trials=9", "distill.temperature=3") == []


def test_another_test_file_repeats_only_the_comparison_of_prompts(base: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config = config_of(base, run)
    test = read_test(config)
    stranger = test[:1].with_columns(id=pl.lit("stranger"), prompt=pl.Series([["a prompt unlike all others"]]))
    draft_pairs(config, load_battles(run), pl.concat([test, stranger])).write()
    assert "stranger" in pl.read_parquet(run / "pretrain" / "test.parquet")["id"]
    same = pretrain_job(config, "llama3_1")
    assert same is not None
    assert same.step.done  # the same pairs are left
    prompt = pl.read_parquet(run / "pretrain" / "battles.parquet")["prompt"][5].to_list()
    also = pl.concat([test, test[:1].with_columns(id=pl.lit("new"), prompt=pl.Series([prompt]))])
    draft_pairs(config, load_battles(run), also).write()
    after = pretrain_job(config, "llama3_1")
    assert after is not None
    assert not after.step.done  # one pair less
    assert pl.read_parquet(run / "pretrain" / "battles.parquet").height == FRESH - 1


@pytest.mark.slow
def test_the_plan_includes_pretraining(base: list[str], tmp_path: Path) -> None:
    config = config_of(base, tmp_path / "run", "pretrain.epochs=2", "distill.student.checkpoint=''")
    plan = make_plan(config, ["T4"])
    with_it = plan.members[0]
    rows = [json.loads(line) for line in Path(base_value(base, "pretrain.data")).read_text().splitlines()]
    tokens = [sum(len(row[name]) for name in ("prompt", "chosen", "rejected")) / 4 + 30 for row in rows]
    assert with_it.pretrain_tokens == pytest.approx(2 * 2 * sum(tokens))  # two epochs, both orders
    per_token = with_it.train_flops / with_it.epoch_tokens / 0.3
    assert with_it.pretrain_flops == pytest.approx(with_it.pretrain_tokens * per_token)
    adapters = (with_it.disk_bytes - 2.0 * with_it.cost.parameters) / (4 * with_it.cost.trainable)
    assert adapters == pytest.approx(2 + 1 + 6 + 1)  # folds, student, two checkpoints with their optimizer; its own
    assert len(pair_tokens(config_of(base, tmp_path / "run", "pretrain.data=[]"))) == 0
    card = with_it.fastest["T4"]
    assert card is not None
    assert card.pretrain_hours > 0
    assert f"{with_it.pretrain_tokens / 1e6:.2f} M tokens" in format_plan(plan)


def base_value(base: list[str], key: str) -> str:
    return next(a for a in base if a.startswith(f"{key}=")).split("=", 1)[1].strip("[]")


@pytest.mark.parametrize(
    ("pairs", "more", "message"),
    [
        ('{"prompt": "p", "chosen": "c"}\n', [], "pairs.jsonl: missing columns"),
        (None, [], "no such file"),
        ('{"chosen": "c", "rejected": "d"}\n', ["pretrain.columns={prompt: query}"], "pretrain.columns.prompt=query"),
        ('{"id": 1, "prompt": "x y z", "chosen": "c", "rejected": "d"}\n' * 2, [], "pretrain.on_bad_row=drop"),
    ],
)
def test_bad_pairs_are_one_sentence(
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pairs: str | None,
    more: list[str],
    message: str,
) -> None:
    path = tmp_path / "pairs.jsonl"
    if pairs is not None:
        path.write_text(pairs)
    arguments = [*base, f"run={tmp_path / 'run'}", f"pretrain.data=[{path}]", *more]
    assert oof_main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_pairs_that_all_share_a_scored_prompt_are_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = base_value(base, "data.train")
    assert oof_main(["prepare", *base, f"run={tmp_path / 'run'}", f"pretrain.data=[{scored}]"]) == 2
    assert "none is left" in capsys.readouterr().err


def test_a_fold_job_without_its_pretraining_names_the_command_to_run(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*base, f"run={tmp_path / 'run'}"]
    assert oof_main(["prepare", *arguments]) == 0
    assert oof_main(["job", *arguments, "--member", "llama3_1", "--fold", "0"]) == 2
    assert "--member llama3_1 --pretrain" in capsys.readouterr().err
    assert oof_main(["job", *arguments, "--member", "llama3_1", "--pretrain"]) == 0
    assert "llama3_1 pretraining done" in capsys.readouterr().out
    assert oof_main(["job", *arguments, "--member", "llama3_1", "--pretrain"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert oof_main(["job", *arguments, "pretrain.data=[]", "--member", "llama3_1", "--pretrain"]) == 2
    assert "no pretrain.data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["jobs.nproc=2", "jobs.backend=ray", "jobs.workers=2"])
def test_pretraining_in_other_processes_gives_the_same_weights(
    base: list[str], whole: Path, tmp_path: Path, where: str
) -> None:
    if "ray" in where:
        pytest.importorskip("ray")
    run = tmp_path / "run"
    line = [sys.executable, "-m", "oof", "oof", *base, f"run={run}", where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = starts(run), starts(whole)
    # Two processes sum gradients in another order, and Adam turns a sign changed by rounding into a whole step.
    tolerance = {"atol": 1e-3, "rtol": 0.0} if "nproc" in where else {"atol": 0.0, "rtol": 0.0}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **tolerance)
    ended = weights(run / "oof" / "llama3_1" / "fold-1" / "adapter")
    assert all(torch.equal(ended[name], value) for name, value in ours.items())
