"""One GPU per process, shown on a machine without any: torch is told that it has several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from oof.common.errors import UserError
from oof.config import Jobs
from oof.distributed import gpus
from oof.jobs.ray_cluster import gpus_of_a_job
from tests.fixtures.demo_run import ROOT


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", *gpus.ALLOCATOR_NAMES):
        monkeypatch.setenv(name, "")  # so that a value set by the function is undone, too
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("visible", "index", "card"), [("", 1, "1"), ("", 6, "2"), ("5,7", 1, "7"), ("3", 2, "3")])
def test_each_process_sees_one_card(monkeypatch: pytest.MonkeyPatch, visible: str, index: int, card: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus.see_one_gpu(index)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == card
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("name", gpus.ALLOCATOR_NAMES)
def test_the_users_allocator_settings_are_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64")
    gpus.see_one_gpu(0)
    assert {n: os.environ.get(n) for n in gpus.ALLOCATOR_NAMES if n in os.environ} == {name: "max_split_size_mb:64"}


@pytest.mark.parametrize("jobs", [Jobs(workers=2), Jobs(nproc=2), Jobs(backend="ray")])
def test_a_process_that_starts_others_keeps_every_card_visible(jobs: Jobs) -> None:
    gpus.prepare_gpu(jobs)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    gpus.prepare_gpu(Jobs())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_on_a_cpu_by_choice_no_card_is_visible_to_this_process_or_to_its_workers() -> None:
    gpus.prepare_gpu(Jobs(device="cpu", workers=2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_trainer_counts_one_gpu_where_it_sees_several(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert gpus.train_on_one_gpu(arguments).n_gpu == 0  # a CPU stays one
    arguments._n_gpu = 2
    assert gpus.train_on_one_gpu(arguments).n_gpu == 1


@pytest.mark.slow
def test_the_card_is_chosen_before_a_module_that_initialises_cuda_is_imported() -> None:
    code = """
import sys, json
from oof.distributed import gpus
chosen_without = {}
choose = gpus.see_one_gpu
def recorded(index):
    chosen_without.setdefault("modules", [m for m in ("peft", "bitsandbytes", "transformers") if m in sys.modules])
    choose(index)
gpus.see_one_gpu = recorded
import oof.__main__ as cli
from oof.jobs import dataset, fold_job, pretrain
from oof.config import Jobs
import oof.jobs.process_pool
gpus.prepare_gpu(Jobs())
print(json.dumps(chosen_without["modules"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("requested", "available", "reserved"), [(None, 8, 1), (None, 0, 0), (0, 0, 0), (2, 8, 2)])
def test_ray_reserves_one_gpu_per_job_where_there_are_gpus(
    requested: float | None, available: float, reserved: float
) -> None:
    assert gpus_of_a_job(requested, available) == reserved


def test_ray_without_a_reservation_on_a_gpu_cluster_is_refused() -> None:
    with pytest.raises(UserError, match=r"jobs\.gpus_per_job=0, but the Ray cluster has 8 GPUs"):
        gpus_of_a_job(0, 8)
