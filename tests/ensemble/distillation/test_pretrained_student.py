"""Students and nested members that start from their pretraining, with a cosine term: real runs."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.plan import plan_student
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.audit.run import audit_run
from oof.data.synth import write_arena
from tests.fixtures.demo_run import only_llama, small_arguments
from tests.fixtures.trained_students import LLAMA

STUDENT = "distill.student"


def arguments_of(folder: Path) -> list[str]:
    """Return arguments of one member on 60 battles and 30 pairs, with learning rates of 0 after pretraining."""
    path = only_llama(folder)
    train, pairs = (write_arena(folder / name, n, seed, 4) for name, n, seed in (("train", 60, 0), ("pairs", 30, 9)))
    frame = pl.read_csv(pairs["train"])
    frame.with_columns(prompt="[" + '"' + pl.format("question {} of nobody", "id") + '"' + "]").filter(
        ~pl.col("response_a").str.contains('", "') & ~pl.col("response_b").str.contains('", "')
    ).write_csv(folder / "pairs.csv")
    small = [a for a in small_arguments(Path("unused"))[2:] if "gemma2" not in a and "synth" not in a]
    data = [f"data.train=[{train['train']}]", f"data.test=[{train['test']}]"]
    data += [f"pretrain.data=[{folder / 'pairs.csv'}]", "pretrain.on_bad_row=drop"]
    moving = ["pretrain.lr=2e-3", "pretrain.head_lr=5e-3", "pretrain.batch_battles=8"]
    still = [f"{part}.train.{rate}=0" for part in (STUDENT, "members.llama3_1") for rate in ("lr", "head_lr")]
    return [str(path), *small, *data, *moving, *still, f"run={folder / 'run'}"]


@pytest.mark.slow
def test_every_student_starts_from_its_pretraining_and_nested_teachers_from_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*arguments_of(tmp_path), "distill.losses={kl: 1, cosine: 0.5}", "distill.teacher=nested"]
    assert oof_main(["oof", *arguments]) == 0
    assert ensemble_main(["stack", *arguments]) == 0
    run = tmp_path / "run"
    oof = pl.read_parquet(run / "oof" / "llama3_1" / "logits.parquet")
    assert ensemble_main(["distill", *arguments]) == 0
    start = load_file(run / "pretrain" / "student" / "adapter" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in start.items() if "lora_B" in name)
    for name in ("fold-0", "fold-1", "fold-2", "final"):  # at a learning rate of 0, weights stay as pretrained
        ended = load_file(run / "distill" / name / "adapter" / "adapter_model.safetensors")
        assert ended.keys() == start.keys()
        assert all(torch.equal(ended[key], value) for key, value in start.items())
    # The members' learning rate is 0 too, so nested members give the same logits as the fold jobs.
    nested = pl.concat(
        [
            pl.read_parquet(run / "teacher" / "nested" / "llama3_1" / f"without-{pair}" / "logits.parquet")
            for pair in ("0-1", "0-2", "1-2")
        ]
    )
    both = nested.join(oof, on="id", suffix="_oof")
    assert both.height == 120
    assert (both["ab_a"] - both["ab_a_oof"]).abs().max() < 1e-4
    assert [finding.check for finding in audit_run(run) if finding.status == "violated"] == []
    card = (run / "distill" / "student" / "README.md").read_text()
    assert "`pairs.csv`" in card
    assert "cosine 0.5" in card
    config = configuration.load(arguments[0], arguments[1:])
    key = plan_student(config).key
    assert plan_student(configuration.load(arguments[0], [*arguments[1:], "jobs.workers=2"])).key == key
    first = json.loads((run / "pretrain" / "student" / "job.json").read_text())["key"]
    assert ensemble_main(["distill", *arguments, "distill.losses={kl: 1}", "distill.teacher=oof"]) == 0
    assert json.loads((run / "pretrain" / "student" / "job.json").read_text())["key"] == first  # not trained again


@pytest.mark.slow
def test_students_start_from_the_pretraining_of_the_member_with_their_base(tmp_path: Path) -> None:
    student = [f"{STUDENT}.checkpoint={LLAMA}", f"{STUDENT}.lora.rank=16", f"{STUDENT}.lora.alpha=32"]
    arguments = [*arguments_of(tmp_path), *student, "distill.start=pretrain"]
    assert oof_main(["oof", *arguments]) == 0
    assert ensemble_main(["stack", *arguments]) == 0
    assert ensemble_main(["distill", *arguments]) == 0
    run = tmp_path / "run"
    assert [path.name for path in sorted((run / "pretrain").glob("*/"))] == ["member-llama3_1"]
    start = load_file(run / "pretrain" / "member-llama3_1" / "adapter" / "adapter_model.safetensors")
    for name in ("fold-0", "final"):  # at a learning rate of 0, weights stay as pretrained
        ended = load_file(run / "distill" / name / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(ended[key], value) for key, value in start.items())
    assert "* Pretraining by the member llama3_1" in (run / "distill" / "student" / "README.md").read_text()
