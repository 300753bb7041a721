"""All stages on one small run: files of the subcommands, checked with plain libraries, and what a rerun redoes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from ensemble.__main__ import main as ensemble_main
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.audit.run import audit_run
from oof.encoding.encode import encode_battles
from oof.jobs import fold_job
from oof.jobs.dataset import load_battles
from oof.model.classifier import load_tokenizer
from tests.fixtures.chat_template import chat_text
from tests.fixtures.demo_run import ROOT, small_arguments


def config_of(run: Path) -> configuration.Config:
    path, *overrides = small_arguments(run)
    return configuration.load(path, overrides)


def test_metrics_have_the_promised_shape(small_run: Path) -> None:
    metrics = json.loads((small_run / "metrics.json").read_text())
    losses = metrics["log_loss"]
    assert metrics["n"] == 120
    promised = {"prior", "length_only", "members", "mean", "stack", "calibrated", "student", "bayes"}
    assert set(losses) >= promised | {"text", "combiner:lightgbm", "combiner:log_pool"}
    assert set(losses["members"]) == {"gemma2", "llama3_1"}
    for interval in (*losses["members"].values(), *(v for k, v in losses.items() if k != "members")):
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert set(metrics["paired"]) >= {"calibrated_minus_best_member", "student_minus_calibrated"}


def test_the_submission_has_the_competition_s_format(small_run: Path) -> None:
    frame = pl.read_csv(small_run / "submission.csv", glob=False)
    assert frame.columns == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert frame["id"].to_list() == pl.read_csv(small_run / "synth" / "test.csv", glob=False)["id"].to_list()
    np.testing.assert_allclose(frame.drop("id").to_numpy().sum(axis=1), 1, atol=1e-9)


@pytest.mark.parametrize("member", ["gemma2", "llama3_1"])
def test_oof_rows_equal_a_forward_by_hand(small_run: Path, member: str) -> None:
    config, table = config_of(small_run), load_battles(small_run)
    recipe = config.members[member]
    tokenizer = load_tokenizer(recipe.checkpoint)
    frame = pl.read_parquet(small_run / "oof" / member / "logits.parquet", glob=False)
    rows = [0, 50, 119]
    encoded = encode_battles(table[rows], tokenizer, config.prompts, config.prompts.max_tokens)
    for i, row in enumerate(rows):
        base = AutoModelForSequenceClassification.from_pretrained(
            recipe.checkpoint, num_labels=3, dtype=torch.float32, attn_implementation="eager"
        )
        adapter = small_run / "oof" / member / f"fold-{table['fold'][row]}" / "adapter"
        model = PeftModel.from_pretrained(base, str(adapter)).eval()
        stored = frame.filter(pl.col("id") == table["id"][row])
        for order, swap in (("ab", [0, 1, 2]), ("ba", [1, 0, 2])):
            ids = torch.tensor(encoded.sequence(i, int(order == "ba"))[None].astype(np.int64))
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0].numpy()[swap]
            np.testing.assert_allclose(
                stored.select(f"{order}_{c}" for c in ("a", "b", "tie")).row(0), logits, atol=1e-4
            )


def test_the_finished_run_passes_its_audit(small_run: Path) -> None:
    assert [finding.check for finding in audit_run(small_run) if finding.status == "violated"] == []


def test_no_pickle_and_no_checkpoint_is_left(small_run: Path) -> None:
    names = [path.name for path in small_run.rglob("*") if path.is_file()]
    assert not [
        name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth", ".tmp")) or "checkpoint" in name
    ]


@pytest.mark.slow
def test_the_student_opens_in_a_program_without_our_packages(small_run: Path) -> None:
    """AutoModel and pipeline in a fresh process: scores sum to 1 and equal ours."""
    folder, table = small_run / "distill" / "student", load_battles(small_run)
    tokenizer = load_tokenizer(str(folder))
    columns = ("prompt", "response_a", "response_b")
    texts = [chat_text(*(table[c][i].to_list() for c in columns), tokenizer, "responses") for i in range(3)]
    code = (
        "import json, sys\nfrom transformers import pipeline\n"
        "p = pipeline('text-classification', model=sys.argv[1], top_k=None)\n"
        "rows = p(json.load(sys.stdin), add_special_tokens=False)\n"
        "print(json.dumps([{s['label']: s['score'] for s in row} for row in rows]))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-c", code, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    config = config_of(small_run)
    encoded = encode_battles(table[:3], tokenizer, config.prompts, 320, orders=("ab",))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for i, scores in enumerate(theirs):
        with torch.inference_mode():
            ours = model(input_ids=torch.tensor(encoded.sequence(i, 0)[None].astype(np.int64))).logits[0].softmax(-1)
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        labels = ("winner_model_a", "winner_model_b", "winner_tie")
        np.testing.assert_allclose([scores[label] for label in labels], ours.numpy(), atol=1e-5)


SPEED_ONLY = [
    "members.gemma2.train.activation_checkpointing=on",
    "members.gemma2.frozen=stored",
    "members.llama3_1.score_tokens_per_batch=512",
    "distill.student.train.activation_checkpointing=on",
    "distill.student.score_tokens_per_batch=512",
    "stack.workers=1",
    "jobs.retries=0",
]


def test_a_rerun_skips_finished_work(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*.parquet")}
    arguments = small_arguments(small_run)
    assert oof_main(["oof", *arguments]) == 0
    for subcommand in ("stack", "distill", "predict"):
        assert ensemble_main([subcommand, *arguments]) == 0
    assert capsys.readouterr().out.count("up to date, nothing to do") == 4
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*.parquet")} == before


def test_settings_that_change_speed_only_rerun_nothing(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    for settings in (SPEED_ONLY, []):  # both ways: run.json then holds the other values
        arguments = small_arguments(run, *settings)
        assert ensemble_main(["stack", *arguments]) == 0
        assert oof_main(["oof", *arguments]) == 0
        assert ensemble_main(["distill", *arguments]) == 0
    assert capsys.readouterr().out.count("up to date, nothing to do") == 6


def test_a_changed_setting_reruns_exactly_the_jobs_that_depend_on_it(small_run: Path) -> None:
    config, table = config_of(small_run), load_battles(small_run)

    def undone(changed: configuration.Config) -> set[str]:
        return {job.label for job in fold_job.fold_jobs(changed, table) if not job.step.done}

    llama = config.members["llama3_1"]
    slower = replace(llama, train=replace(llama.train, lr=1e-5))
    assert undone(config) == set()
    assert undone(replace(config, stack=replace(config.stack, trials=5))) == set()
    assert undone(replace(config, members={**config.members, "llama3_1": slower})) == {
        f"llama3_1 fold {k}" for k in range(3)
    }
    assert len(undone(replace(config, seed=1))) == 6


def test_the_ensemble_predicts_on_request(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(small_run, run)
    assert ensemble_main(["predict", *small_arguments(run, "predict.model=ensemble")]) == 0
    ensemble, student = (pl.read_csv(folder / "submission.csv", glob=False) for folder in (run, small_run))
    assert ensemble["id"].to_list() == student["id"].to_list()
    assert not ensemble.equals(student)


def test_a_missing_stage_is_named_with_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for subcommand, needs in (
        ("stack", "make oof"),
        ("distill", "make oof"),
        ("predict", "make distill"),
        ("table", "make oof"),
    ):
        assert ensemble_main([subcommand, *small_arguments(tmp_path / "run")]) == 2
        assert needs in capsys.readouterr().err


def test_other_settings_than_stage_one_s_are_refused(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ensemble_main(["stack", *small_arguments(small_run, "members.gemma2.train.lr=0.5")]) == 2
    assert "members.gemma2.train.lr" in capsys.readouterr().err


def test_a_configuration_file_named_distill_yaml_is_no_request_for_another_student(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    stored = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    stored["distill"]["losses"]["ce"] = 0.5
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump({**stored, "run": "run"}), "utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert ensemble_main(["distill", "distill.yaml"]) == 2
    assert "this call would replace finished training" in capsys.readouterr().err


def test_other_members_than_stage_one_s_are_named(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = "members.third.checkpoint=configs/bases/tiny-gemma2"
    assert ensemble_main(["stack", *small_arguments(small_run, added)]) == 2
    refused = capsys.readouterr().err
    assert "it is a setting of oof; leave that out, or apply it there" in refused
    assert f'RUN={small_run} ARGS="{added}"' in refused
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text("utf-8"))
    del demo["members"]["llama3_1"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(demo), "utf-8")
    others = [word for word in small_arguments(small_run)[1:] if "llama3_1" not in word]
    assert ensemble_main(["stack", str(tmp_path / "one.yaml"), *others]) == 2
    assert "a member that the configuration lacks, 'llama3_1'" in capsys.readouterr().err


def test_stage_two_imports_slow_libraries_only_when_there_is_work() -> None:
    slow = "'lightgbm', 'optuna', 'sklearn', 'scipy.optimize', 'scipy.stats'"
    command = [
        sys.executable,
        "-c",
        f"import sys, ensemble.stacking.stage; print([m for m in ({slow}) if m in sys.modules])",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_table_code_starts_without_torch() -> None:
    modules = ", ".join(
        (
            "oof.__main__",
            "oof.jobs.fold_job",
            "ensemble.__main__",
            "ensemble.stacking.stage",
            "ensemble.evaluation.run_table",
            "ensemble.distillation.plan",
            "ensemble.distillation.model_card",
            "ensemble.distillation.targets",
            "ensemble.serving.submission",
            "ensemble.serving.chunks",
        )
    )
    command = [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
    assert done.stdout.strip() == "False"
