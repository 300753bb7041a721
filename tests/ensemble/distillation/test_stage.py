"""Stage three on a real run: resumed after kills it makes identical files, and every teacher mode runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from huggingface_hub import constants

from ensemble.__main__ import main as ensemble_main
from ensemble.distillation import export, train
from ensemble.distillation.plan import plan_student
from ensemble.distillation.stage import student_metrics
from ensemble.report.make import collect
from ensemble.report.run_data import load_run
from ensemble.statistics.interval_words import in_words
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.audit.extra_battles import HELD_OUT, TEACHER
from oof.audit.run import audit_run
from oof.data.synth import write_arena
from oof.encoding.batches import TrainingSteps
from oof.jobs.dataset import load_battles
from oof.metrics import log_loss, softmax
from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import small_arguments
from tests.fixtures.hub_cache import MODEL, NEW, OLD, move_branch, write_hub_cache


def without_times(folder: Path) -> dict[str, object]:
    """Return every file's content, but of metrics.jsonl; without seconds and checksums in the manifests."""
    contents: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "metrics.jsonl":
            content: object = path.read_bytes()
            if path.name in ("job.json", "manifest.json"):
                content = {
                    k: v for k, v in json.loads(path.read_text()).items() if k not in ("seconds", "files", "checksum")
                }
            contents[str(path.relative_to(folder))] = content
    return contents


@pytest.mark.slow
def test_a_killed_stage_three_resumes_and_makes_identical_files(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "killed"
    shutil.copytree(small_run, run)
    shutil.rmtree(run / "distill")
    trained: list[int] = []
    get, check = TrainingSteps.__getitem__, export.self_check
    stops = {2, 5, 11}  # training steps: of the first fold student, the second and the final one

    def stopping_get(self: TrainingSteps, index: int) -> object:
        trained.append(index)
        if len(trained) in stops:
            raise KeyboardInterrupt
        return get(self, index)

    def stopping_check(*arguments: object) -> None:
        monkeypatch.setattr(export, "self_check", check)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingSteps, "__getitem__", stopping_get)
    monkeypatch.setattr(export, "self_check", stopping_check)
    statuses = [ensemble_main(["distill", *small_arguments(run)]) for _ in range(5)]
    assert statuses == [130, 130, 130, 130, 0]  # three times in training, once in the export
    # A fold student takes two steps, the final one three; interrupted students restart, finished ones do not.
    assert len(trained) == 3 * 2 + 3 + (2 + 1 + 2)
    files = without_times(run / "distill")
    assert files == without_times(small_run / "distill")
    assert "student/model.safetensors" in files


@pytest.mark.slow
def test_students_of_other_settings_are_kept_and_come_back_with_them(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = digests(run / "distill")
    assert (
        ensemble_main(["distill", f"run={run}", "distill.losses.cosine=0.5", "distill.student.train.epochs=0.1"]) == 0
    )
    [kept] = (run / "earlier").iterdir()
    assert digests(kept) == before
    assert digests(run / "distill")["student/model.safetensors"] != before["student/model.safetensors"]
    monkeypatch.setattr(train, "train_students", lambda *_, **__: pytest.fail("trained again"))
    assert ensemble_main(["distill", f"run={run}"]) == 0  # these settings were stored
    assert "up to date" in capsys.readouterr().out
    assert ensemble_main(["distill", *small_arguments(run)]) == 0
    assert digests(run / "distill") == before
    assert kept.name not in [path.name for path in (run / "earlier").iterdir()]
    assert ensemble_main(["predict", f"run={run}"]) == 0


def test_students_are_not_replaced_because_of_a_configuration(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", tmp_path / "other.yaml"
    shutil.copytree(small_run, run)
    tree = yaml.safe_load((small_run / "config.yaml").read_text("utf-8"))
    tree["distill"]["temperature"] = 3.0
    config.write_text(yaml.safe_dump(tree), "utf-8")
    before = digests(run)
    assert ensemble_main(["distill", str(config), f"run={run}"]) == 2
    message = capsys.readouterr().err
    assert "student, all folds" in message
    assert "changed: distill.temperature" in message
    assert "distill.temperature: 1.0 before, 3.0 now" in message
    assert digests(run) == before


@pytest.mark.slow
def test_finished_nested_teachers_are_not_replaced_unasked(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_students", stop)  # the teachers are finished before the first student
    nested = ["distill", f"run={run}", "distill.teacher=nested", "distill.teachers=gemma2"]
    assert ensemble_main(nested) == 130
    assert oof_main(["oof", f"run={run}", "--redo", "members.gemma2.train.lr=5e-4"]) == 0
    assert ensemble_main(["stack", f"run={run}"]) == 0
    before = digests(run)
    capsys.readouterr()
    assert ensemble_main(nested) == 2  # though it names other students, which may then go
    message = capsys.readouterr().err
    assert "teacher gemma2, without folds 0 and 1, without folds 0 and 2, without folds 1 and 2: " in message
    assert "REDO=1" in message
    assert digests(run) == before
    assert ensemble_main([*nested, "--redo"]) == 130
    manifests = [f"teacher/nested/gemma2/without-{pair}/manifest.json" for pair in ("0-1", "0-2", "1-2")]
    assert all(digests(run)[manifest] != before[manifest] for manifest in manifests)


def test_the_model_card_has_the_numbers_of_the_manifest(small_run: Path) -> None:
    folder = small_run / "distill"
    manifest = json.loads((folder / "manifest.json").read_text())
    card = (folder / "student" / "README.md").read_text()
    for key in ("interval", "calibrated", "student_minus_calibrated"):
        assert all(f"{manifest[key][end]:.4f}".lstrip("-") in card for end in ("value", "low", "high"))
    assert f"temperature ({manifest['temperature']:.4f})" in card
    assert "120 battles" in card
    for heading in ("Data", "Recipe", "Metrics", "Limits", "Licence"):
        assert f"## {heading}" in card
    assert card.isascii() or "nats" in card


def test_card_table_and_report_have_one_number_under_one_name(small_run: Path) -> None:
    card = (small_run / "distill" / "student" / "README.md").read_text("utf-8")
    metrics = json.loads((small_run / "metrics.json").read_text())
    summary = collect(load_run(small_run))["summary"]
    losses = {row["predictor"]: row["log_loss"] for row in summary["table"]}
    paired = {f"{row['first']}_minus_{row['second']}": row["difference"] for row in summary["paired"]}
    difference = metrics["paired"]["student_minus_calibrated"]
    for name, row in {"log loss (nats)": "student", "log loss of calibrated, the ensemble": "calibrated"}.items():
        assert losses[row] == pytest.approx(metrics["log_loss"][row])
        assert f"| {name} | {in_words(metrics['log_loss'][row], '.4f')} |" in card
    assert paired["student_minus_calibrated"] == pytest.approx(difference)
    assert f"| student - calibrated | {in_words(difference)} |" in card


def test_the_student_is_compared_with_calibrated_and_not_with_its_teacher(small_run: Path) -> None:
    """They differ where stage two models a position bias: the teacher is without it, the table's row is with it."""
    path, *overrides = small_arguments(small_run)
    plan = plan_student(configuration.load(path, overrides))
    labels, teacher = plan.inputs.labels, plan.teacher_probs[:, 0]
    biased = softmax(np.log(teacher) + np.array([0.4, -0.4, 0.0]))
    metrics = student_metrics(plan, teacher, biased)
    assert metrics["calibrated"]["value"] == pytest.approx(log_loss(biased, labels))
    expected = log_loss(teacher, labels) - log_loss(biased, labels)
    assert abs(expected) > 1e-4
    assert metrics["student_minus_calibrated"]["value"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_variant_is_added_without_training(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    monkeypatch.setattr(train, "train_students", lambda *_, **__: pytest.fail("trained again"))
    arguments = small_arguments(run, "distill.variants=[int8]")
    assert ensemble_main(["distill", *arguments]) == 0
    card = (run / "distill" / "student-int8" / "README.md").read_text()
    assert "## int8" in card
    drift = json.loads((run / "distill" / "student-int8" / "manifest.json").read_text())["drift"]
    assert f"{drift['kl']:.2e}" in card
    before = {path: path.stat().st_mtime_ns for path in (run / "distill").rglob("*")}
    assert ensemble_main(["distill", *arguments]) == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "distill").rglob("*")} == before


@pytest.mark.slow
def test_every_teacher_mode_runs_with_extra_and_unlabelled_battles(tmp_path: Path) -> None:
    files = {}
    for i, role in enumerate(("extra", "unlabelled")):
        path = write_arena(tmp_path / role, 40, 10 + i, 2)["train"]
        frame = pl.read_csv(path, glob=False).with_columns(pl.col("id") + 10_000 * (i + 1))
        frame = frame if role == "extra" else frame.drop("winner_model_a", "winner_model_b", "winner_tie")
        frame.write_csv(path)
        files[role] = path
    data = [f"data.{role}=[{path}]" for role, path in files.items()]
    train = write_arena(tmp_path / "train", 120, 0, 2)["train"]
    run = tmp_path / "run"
    base = small_arguments(run, f"data.train=[{train}]", *data)
    assert oof_main(["oof", *base]) == 0
    assert ensemble_main(["stack", *base]) == 0
    folds = load_battles(run)
    assert set(folds.filter(pl.col("role") == "extra")["fold"]) == {0, 1, 2}
    for settings in (
        ["distill.teacher=oof"],
        ["distill.teacher=fold_matched", "distill.teachers=members", "distill.final=fold_average"],
        ["distill.teacher=nested", "distill.losses={ce: 1, kl: 2, cosine: 2}"],
        ["distill.teacher=nested", "distill.teachers=gemma2"],
        ["distill.teacher=nested", "distill.teachers=gemma2", "distill.rounds=2", "distill.pseudo_share=0.5"],
    ):
        assert ensemble_main(["distill", *base, *settings]) == 0
        used = folds.height - (20 if "distill.rounds=2" in settings else 0)  # half of 40 unlabelled battles are not
        for fold in range(3):
            n = json.loads((run / "distill" / f"fold-{fold}" / "job.json").read_text())["n_trained"]
            of_fold = int((folds["fold"] == fold).sum())
            assert used - of_fold <= n <= folds.height - of_fold  # also without extra and unlabelled ones of the fold
            assert n == folds.height - of_fold or used < folds.height
        manifest = json.loads((run / "distill" / "manifest.json").read_text())
        assert ("fold_students_temperature" in manifest) == ("distill.final=fold_average" in settings)
        card = (run / "distill" / "student" / "README.md").read_text("utf-8")
        assert f"The calibration temperature ({manifest['temperature']:.4f})" in card
    findings = audit_run(run)
    assert [finding.check for finding in findings if finding.status == "violated"] == []
    (held_out,) = (finding for finding in findings if finding.check == HELD_OUT)
    assert held_out.message == "each of 40 is held out by one fold job of each member"
    (teacher,) = (finding for finding in findings if finding.check == TEACHER)
    # Each of 2 members scores each battle by its fold job and by 2 jobs without its fold and another one.
    assert teacher.message.startswith("240 scores, each by a model that did not train")


def test_a_student_is_not_trained_on_battles_of_weight_0(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    path, *overrides = small_arguments(run)
    plan = plan_student(configuration.load(path, overrides))
    weights = np.where(np.arange(len(plan.weights)) % 2, plan.weights, 0.0)
    for fold, of_fold in ((0, plan.folds == 0), (train.FINAL, np.zeros(len(weights), dtype=bool))):
        job = train.StudentJob(replace(plan, weights=weights), tmp_path, fold)
        train.run_student_job(job)
        manifest = json.loads((job.folder / "job.json").read_text())
        assert manifest["n_trained"] == int((~of_fold & (weights > 0)).sum()) < int((~of_fold).sum())


@pytest.mark.slow
def test_a_student_of_a_hub_checkpoint_names_its_commit_and_keeps_it_when_the_branch_moves(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    shutil.copytree(small_run, run)
    write_hub_cache(home)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = small_arguments(run, f"distill.student.checkpoint={MODEL}")
    assert ensemble_main(["distill", *arguments]) == 0
    before = without_times(run / "distill")
    for name in ("fold-0", "final"):
        assert json.loads((run / "distill" / name / "job.json").read_text())["commit"] == OLD
    assert f"`{MODEL}` at commit {OLD}" in (run / "distill" / "student" / "README.md").read_text()
    move_branch(home, "main", NEW)
    assert ensemble_main(["distill", *arguments]) == 0
    assert without_times(run / "distill") == before
