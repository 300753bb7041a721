"""Weights that students start from: the member that fits, and a real run whose students start from its fold jobs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemble.distillation.plan import FINAL, StudentPlan, plan_student
from ensemble.distillation.start import start_jobs, start_pretraining
from oof import config as configuration
from oof.audit.run import audit_run
from oof.audit.student_start import NAME
from oof.common.errors import UserError
from oof.encoding.batches import TrainingSteps
from oof.jobs.fold_job import FoldJob
from tests.fixtures.demo_run import ROOT, small_arguments
from tests.fixtures.trained_students import (
    AS_MEMBER,
    DEMO,
    FOLDS,
    LLAMA,
    STILL,
    K,
    N,
    adapter,
    contents,
    plan_of,
    student,
    with_fold_jobs,
)


def chosen(*overrides: str) -> list[tuple[str, int]]:
    config = configuration.load(DEMO, ["run=unused", "distill.start=member", *overrides])
    jobs = [FoldJob(config, name, fold, "key") for name in config.members for fold in range(3)]
    return [(job.name, job.fold) for job in start_jobs(config, jobs)]


def test_students_start_from_the_fold_jobs_of_the_first_member_that_fits() -> None:
    assert chosen(*AS_MEMBER) == [("gemma2", 0), ("gemma2", 1), ("gemma2", 2)]
    assert chosen(*AS_MEMBER, f"distill.student.checkpoint={LLAMA}")[0] == ("llama3_1", 0)
    assert chosen(*AS_MEMBER, "members.llama3_1.checkpoint=" + str(ROOT / "configs" / "bases" / "tiny-gemma2"))[0] == (
        "gemma2", 0
    )  # fmt: skip
    without_adapters = ["members.gemma2.lora.rank=0", "distill.student.lora={rank: 0, alpha: 3}"]
    assert chosen(*AS_MEMBER, *without_adapters)[0] == ("gemma2", 0)
    other_speed = ["distill.student.frozen=stored", "distill.student.train.epochs=3"]
    assert chosen(*AS_MEMBER, *other_speed)[0] == ("gemma2", 0)
    assert chosen("distill.start=base") == []


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("distill.student.lora.rank=32", "members.gemma2 has lora.rank=16, not 32"),
        ("distill.student.lora.layers=all", "members.gemma2 has lora.layers=upper_half, not all"),
        ("distill.student.quantise=nf4", "members.gemma2 has quantise=none, not nf4"),
        ("members.gemma2.attn_softcap=off", "members.gemma2 has attn_softcap=off, not on"),
        ("distill.student.checkpoint=some/model", "members.gemma2 has another checkpoint"),
    ],
)
def test_a_student_that_no_member_fits_is_refused_with_the_setting(override: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        chosen(*AS_MEMBER, override)
    message = str(error.value)
    assert message.startswith("distill.start=member: no member has the base and the LoRA settings of distill.student")
    assert reason in message
    assert "members.llama3_1 has another checkpoint" in message
    assert "set distill.start=base" in message


@pytest.mark.parametrize("override", ["distill.student.lora.rank=32", "distill.student.lora.dora=true"])
def test_by_default_students_start_from_a_member_that_fits_else_from_the_base(override: str) -> None:
    auto = [*AS_MEMBER, "distill.start=auto"]
    assert chosen(*auto) == chosen(*AS_MEMBER)
    dora = [word.replace("distill.student", "members.gemma2") for word in [override] if "dora" in word]
    assert chosen(*auto, override, *dora) == []


def test_the_start_is_part_of_the_students_key_only_where_it_is_a_member(small_run: Path) -> None:
    path, *overrides = small_arguments(small_run)

    def plan(*words: str) -> StudentPlan:
        return plan_student(configuration.load(path, [*overrides, *words]))

    auto, member, base = plan(), plan("distill.start=member"), plan("distill.start=base")
    assert [job.label for job in auto.start] == ["gemma2 fold 0", "gemma2 fold 1", "gemma2 fold 2"]
    assert (auto.key, auto.depends) == (member.key, member.depends)
    assert auto.key == json.loads((small_run / "distill" / "manifest.json").read_text())["key"]
    assert (base.start, base.key == auto.key) == ([], False)
    # Students of older versions, which all started from the base, are still up to date.
    assert auto.depends.keys() - base.depends.keys() == {"distill.start", "the member's fold jobs"}
    other = ["distill.student.lora.rank=32"]
    assert plan(*other).key == plan(*other, "distill.start=base").key


def test_a_start_whose_fold_job_is_gone_is_refused_with_both_ways_out(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / "oof" / "gemma2" / "fold-1" / "job.json").unlink()
    path, *overrides = small_arguments(run)
    remedy = r"fold-1: .* is missing; run 'make oof' with this RUN, or set distill\.start=base"
    with pytest.raises(UserError, match=remedy):
        plan_student(configuration.load(path, overrides))
    assert plan_student(configuration.load(path, [*overrides, "distill.start=base"])).start == []


def test_the_start_from_a_member_s_pretraining_needs_pairs_and_a_member_that_fits(tmp_path: Path) -> None:
    settings = [f"run={tmp_path}", *AS_MEMBER[1:], "distill.start=pretrain"]
    with pytest.raises(UserError, match=r"pretrain\.data is empty.*set distill\.start=base"):
        start_pretraining(configuration.load(DEMO, settings))
    with pytest.raises(UserError, match=r"distill\.start=pretrain: no member has the base"):
        start_pretraining(
            configuration.load(DEMO, [*settings, "pretrain.data=[pairs.csv]", "distill.student.lora.rank=8"])
        )


def test_a_run_whose_students_start_from_a_member_passes_the_audit(small_run: Path) -> None:
    findings = audit_run(small_run)
    assert [finding.check for finding in findings if finding.status == "violated"] == []
    assert next(f for f in findings if f.check == NAME).message.startswith("3 fold students")
    assert "Start: the weights of the member gemma2" in (small_run / "distill" / "student" / "README.md").read_text()
    started = json.loads((small_run / "distill" / "final" / "job.json").read_text())["start"]
    assert [(start["member"], start["fold"]) for start in started] == [("gemma2", fold) for fold in range(3)]


@pytest.mark.slow
def test_fold_students_start_from_their_fold_job_and_the_final_one_from_the_average(tmp_path: Path) -> None:
    plan = with_fold_jobs(plan_of(tmp_path, np.arange(N) % 3, *STILL))  # at a rate of 0, weights stay as they were
    starts = [adapter(job.folder) for job in plan.start]
    assert any((starts[0][name] != value).any() for name, value in starts[1].items())
    ended = adapter(student(plan, 1))
    assert ended.keys() == starts[1].keys()
    assert all(torch.equal(ended[name], value) for name, value in starts[1].items())
    final = adapter(student(plan, FINAL))
    for name, value in final.items():
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            mean = np.mean([(start[other] @ start[name]).double().numpy() for start in starts], axis=0)
            u, s, vh = np.linalg.svd(mean, full_matrices=False)
            np.testing.assert_allclose((final[other] @ value).numpy(), u[:, :16] * s[:16] @ vh[:16], atol=1e-6)
    heads = [start["base_model.model.score.weight"] for start in starts]
    torch.testing.assert_close(final["base_model.model.score.weight"], sum(heads) / K)


@pytest.mark.slow
def test_no_label_of_a_fold_reaches_its_fold_student(tmp_path: Path) -> None:
    """Other labels of fold 0 leave student 0's weights and logits of fold 0 as they were, byte for byte."""
    labels = np.arange(N) % 3
    changed = np.where(FOLDS == 0, (labels + 1) % 3, labels)
    files = {}
    for variant, values in enumerate((labels, changed)):
        plan = with_fold_jobs(plan_of(tmp_path / str(variant), values))
        for fold in (0, 1):
            folder = student(plan, fold)
            names = ("logits.parquet", "adapter/adapter_model.safetensors")
            files[variant, fold] = [(folder / name).read_bytes() for name in names]
    assert files[0, 0] == files[1, 0]
    assert all(before != after for before, after in zip(files[0, 1], files[1, 1], strict=True))


@pytest.mark.slow
def test_a_killed_final_student_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = with_fold_jobs(plan_of(tmp_path, np.arange(N) % 3, "distill.student.train.checkpoint_steps=1"))
    expected = contents(student(plan, FINAL, "whole"))
    get, read = TrainingSteps.__getitem__, []

    def stopping_get(self: TrainingSteps, index: int) -> object:
        read.append(index)
        if len(read) == 3:
            raise KeyboardInterrupt
        return get(self, index)

    monkeypatch.setattr(TrainingSteps, "__getitem__", stopping_get)
    with pytest.raises(KeyboardInterrupt):
        student(plan, FINAL)
    assert (tmp_path / "distill" / "final" / "start").is_dir()
    assert contents(student(plan, FINAL)) == expected
    assert read[0] == 0
    assert 0 not in read[3:]  # it went on from the checkpoint
