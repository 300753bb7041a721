"""Preparation of stage one: what refuses a command does so before its first file is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ensemble.__main__ import main as ensemble_main
from oof.__main__ import main as oof_main
from oof.jobs.dataset import load_battles
from oof.model.checkpoint_shapes import base_config
from tests.fixtures.command_line import call, digests
from tests.fixtures.demo_run import BASES, ROOT, small_arguments
from tests.fixtures.pretrain_runs import LLAMA, finished, overrides_in
from tests.fixtures.working_folder import FILES, write_working_folder


@pytest.fixture
def copied(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.mark.parametrize(
    "setting", ["data.synth.battles=130", "data.synth.seed=4", "folds.k=2", "data.subset=0.5", "seed=1"]
)
def test_other_battles_are_refused_while_the_old_ones_are_as_they_were(
    copied: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    before = digests(copied)
    for subcommand in ("oof", "prepare"):
        assert oof_main([subcommand, f"run={copied}", setting]) == 2
        message = capsys.readouterr().err
        assert f"{setting.split('=')[0]}: " in message
        assert "gemma2, fold 0, fold 1" in message
        assert "REDO=1" in message
        assert digests(copied) == before


def test_redo_prepares_other_battles(copied: Path) -> None:
    assert oof_main(["prepare", f"run={copied}", "data.synth.battles=130", "--redo"]) == 0
    assert load_battles(copied).height == 130


def test_predict_does_not_replace_the_arena(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(copied)
    assert ensemble_main(["predict", f"run={copied}", "data.synth.battles=130"]) == 2
    assert "synthetic battles were made with other settings" in capsys.readouterr().err
    assert digests(copied) == before


def test_a_run_of_the_version_before_is_up_to_date_and_remembers(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a run has neither config.yaml nor files.json, and other facts in two manifests."""
    for name in ("config.yaml", "files.json"):
        (copied / name).unlink()
    trained = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    assert oof_main(["oof", f"run={copied}"]) == 0
    for subcommand in ("stack", "distill"):
        assert ensemble_main([subcommand, f"run={copied}"]) == 0
    assert capsys.readouterr().out.count("up to date, nothing to do") == 3
    assert (copied / "config.yaml").is_file()
    assert oof_main(["oof", f"run={copied}", f"{LLAMA}.train.lr=1"]) == 2
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")} == trained


@pytest.mark.slow
def test_pretraining_is_guarded_like_fold_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, run = overrides_in(tmp_path), tmp_path / "run"
    finished(base, run)
    before = digests(run)
    pairs = tmp_path / "pairs.jsonl"
    whole = pairs.read_text()
    pairs.write_text(whole[: whole.rindex("{")])
    assert oof_main(["oof", f"run={run}"]) == 2
    assert "pairs.jsonl (pretrain.data) has changed" in capsys.readouterr().err
    pairs.write_text(whole)
    assert oof_main(["oof", f"run={run}", "pretrain.epochs=2"]) == 2
    message = capsys.readouterr().err
    assert "llama3_1, pretraining" in message
    assert "pretrain.epochs: 1.0 before, 2.0 now" in message
    assert digests(run) == before


def test_a_refused_first_command_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.csv").write_text("no,such\n1,2\n")
    for wrong in ("members.gemma2.checkpoint=''", f"pretrain.data=[{tmp_path}/pairs.csv]", "data.test=[nowhere.csv]"):
        assert oof_main(["prepare", *small_arguments(tmp_path / "runs" / "new", wrong)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv"], wrong
    assert (ROOT / "configs").is_dir()


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with test files and bases that cannot be used."""
    folder = write_working_folder(tmp_path / "Läufe von mir")
    (folder / "short.csv").write_text("id,prompt,response_a\n1,a,b\n")
    for base, name, without in (
        ("tiny-llama", "no-tokenizer", "tokenizer*"),
        ("tiny-gemma2", "large", "*.safetensors"),
    ):
        shutil.copytree(BASES / base, folder / name, ignore=shutil.ignore_patterns(without))
    base_config("google/gemma-2-9b-it").save_pretrained(folder / "large")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("data.test=short.csv", "short.csv: missing columns response_b"),
        ("folds.k=60", "lower folds.k to at most"),
        ("members.m.checkpoint=no-tokenizer", "checkpoint 'no-tokenizer' cannot be opened"),
        ("members.m.checkpoint=org/no-such", "checkpoint 'org/no-such' cannot be opened"),
        ("members.m.checkpoint=large", "m: large has 9.2 billion parameters"),
        ("members.m.revision=main", "is a local folder, which has no revisions"),
    ],
)
def test_a_new_run_that_cannot_begin_leaves_no_file(
    working_folder: Path, capfd: pytest.CaptureFixture[str], wrong: str, says: str
) -> None:
    before = digests(working_folder)
    answer = call(f"oof oof mine.yaml 'run=runs/Lauf ü' {FILES} {wrong}", capfd)
    assert (answer.status, says in answer.text) == (2, True), answer.text
    assert "Traceback" not in answer.text
    assert digests(working_folder) == before
    assert not (working_folder / "runs").exists()


def test_a_student_that_cannot_be_opened_leaves_the_finished_one(
    copied: Path, working_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = digests(copied)
    for redo in ("", "--redo"):
        base = working_folder / "no-tokenizer"
        answer = call(f"ensemble distill 'run={copied}' 'distill.student.checkpoint={base}' {redo}", capfd)
        assert (answer.status, "cannot be opened" in answer.text) == (2, True), answer.text
        assert digests(copied) == before
