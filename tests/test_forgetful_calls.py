"""Forty wrong or forgetful calls, one after the other, each followed by the remedy that its answer names.

After each wrong call: no traceback, at most a screen of text, and every file below the working folder is as it was. The
working folder is not the repository, and its path has a space and a letter that is not ASCII.

In the two scripts below, a block is one wrong call. Its lines: ``first`` makes the working folder ready (a call, or
``rename``/``append`` for a file), ``wrong`` is the call, ``says`` words of its answer, the remedy among them, ``undo``
brings a file back, ``remedy`` the call that the answer leads to, ``then`` words of its answer.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from oof.common.logits_format import logits_frame
from oof.common.steps import locked
from oof.data.synth import write_arena
from tests.fixtures.command_line import SCREEN, Answer, call, digests, trained
from tests.fixtures.demo_run import BASES

BEFORE_TRAINING = """
wrong: oof oof
says: CONFIG=configs/demo.yaml
remedy: oof prepare mine.yaml run=runs/mine FILES
then: 60 battles

wrong: ensemble stack run=runs/new
says: CONFIG=
says: runs here: runs/mine
remedy: oof plan run=runs/mine

wrong: oof oof mine.yml run=runs/new FILES
says: mine.yml: cannot read
remedy: oof prepare mine.yaml run=runs/mine FILES

wrong: oof oof mine.yaml run=runs/new
says: data.train
says: DATA=
remedy: oof prepare mine.yaml run=runs/mine FILES

wrong: oof oof mine.yaml run=runs/new data.train=[trian.csv]
says: trian.csv: no such file
remedy: oof prepare mine.yaml run=runs/mine FILES

wrong: oof oof mine.yaml run=runs/new data.train=[train.csv] data.test=[tset.csv]
says: tset.csv: no such file
remedy: oof prepare mine.yaml run=runs/mine FILES

wrong: oof oof mine.yaml run=runs/mine FILES stack.trails=3
says: did you mean stack.trials
remedy: oof prepare run=runs/mine stack.trials=2

wrong: oof oof mine.yaml run=runs/mine FILES folds.k=three
says: folds.k
says: three
remedy: oof prepare run=runs/mine folds.k=2

wrong: oof oof mine.yaml run=runs/mine FILES folds.k=1
says: between 2 and 100
remedy: oof prepare run=runs/mine folds.k=2

wrong: oof oof mine.yaml run=runs/new FILES members.m.checkpoint=no/such
says: no/such
remedy: oof prepare mine.yaml run=runs/mine FILES

wrong: oof oof mine.yaml run=train.csv FILES
says: choose another RUN
remedy: oof prepare run=runs/mine

wrong: oof job run=runs/mine --member n --fold 0
says: members m, folds 0 to 1
remedy: oof oof run=runs/mine members.m.train.lr=2e-3
then: 2 fold jobs
"""

LATER = """
# A forgotten argument, or one too many, for training that is finished.
wrong: oof oof mine.yaml run=runs/mine FILES
says: m, fold 0, fold 1
says: train.lr: 0.002 before, 0.001 now
says: make oof RUN=runs/mine
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof oof run=runs/mine members.m.train.lr=1e-4
says: 0.0001 now
says: REDO=1
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof oof run=runs/mine folds.k=3
says: folds.k: 2 before, 3 now
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof prepare run=runs/mine folds.k=3
says: folds.k: 2 before, 3 now
remedy: oof prepare run=runs/mine
then: 2 folds

wrong: oof oof run=runs/mine seed=1
says: seed: 0 before, 1 now
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof oof run=runs/mine prompts.max_tokens=64
says: prompts.max_tokens
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof oof run=runs/mine data.extra=[other.csv]
says: data.extra
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: oof job run=runs/mine --member m --fold 1 members.m.lora.rank=8
says: lora.rank: 4 before
remedy: oof job run=runs/mine --member m --fold 1
then: up to date, nothing to do

wrong: ensemble stack run=runs/mine members.m.train.lr=1e-4
says: leave that out
remedy: ensemble stack run=runs/mine
then: up to date, nothing to do

wrong: ensemble distill run=runs/mine seed=3
says: leave that out
remedy: ensemble distill run=runs/mine
then: up to date, nothing to do

wrong: ensemble distill run=runs/mine 'distill.losses={kl: 0}'
says: give one of them a weight
remedy: ensemble distill run=runs/mine 'distill.losses={kl: 1}'
then: up to date, nothing to do

# The student's teacher was changed in between.
first: ensemble stack run=runs/mine stack.final=lightgbm
wrong: ensemble distill run=runs/mine
says: student, all folds
says: the stack's probabilities
says: make stack with its earlier settings
says: REDO=1
remedy: ensemble stack run=runs/mine stack.final=mean
then: done

# Forgotten files never become synthetic battles.
wrong: oof oof mine.yaml run=runs/mine
says: made from train.csv
says: leave out
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: ensemble stack mine.yaml run=runs/mine
says: made from train.csv
says: leave out
remedy: ensemble stack run=runs/mine
then: up to date, nothing to do

wrong: ensemble predict mine.yaml run=runs/mine
says: made from train.csv
says: leave out
remedy: ensemble predict run=runs/mine
then: up to date, nothing to do

# Other files.
wrong: oof oof run=runs/mine data.train=[other.csv]
says: not from other.csv
says: REDO=1
remedy: oof oof run=runs/mine
then: up to date, nothing to do

wrong: ensemble stack run=runs/mine data.train=[other.csv]
says: not from other.csv
remedy: ensemble stack run=runs/mine
then: up to date, nothing to do

wrong: ensemble distill run=runs/mine data.unlabelled=[other.csv]
says: without data.unlabelled
remedy: ensemble distill run=runs/mine
then: up to date, nothing to do

# Changed and missing files.
first: append train.csv
wrong: oof oof run=runs/mine
says: train.csv
says: has changed
says: bytes
undo: rename kept.csv train.csv
remedy: oof oof run=runs/mine
then: up to date, nothing to do

first: append train.csv
wrong: ensemble ablate run=runs/mine
says: train.csv
says: has changed
undo: rename kept.csv train.csv
remedy: ensemble stack run=runs/mine
then: up to date, nothing to do

first: append train.csv
wrong: ensemble predict run=runs/mine
says: train.csv
says: has changed
undo: rename kept.csv train.csv
remedy: ensemble predict run=runs/mine
then: up to date, nothing to do

first: rename train.csv moved.csv
wrong: ensemble distill run=runs/mine
says: train.csv
says: missing
says: DATA=PATH
remedy: ensemble distill run=runs/mine data.train=[moved.csv]
then: up to date, nothing to do

first: rename moved.csv train.csv
wrong: oof oof run=runs/mine
says: moved.csv
says: missing
says: put it back
remedy: oof oof run=runs/mine data.train=[train.csv]
then: up to date, nothing to do

first: rename train.csv moved.csv
wrong: ensemble predict run=runs/mine
says: train.csv
says: REDO=1 goes on
remedy: ensemble predict run=runs/mine --redo
then: up to date, nothing to do

# Predictions.
first: rename moved.csv train.csv
wrong: ensemble predict run=runs/mine data.test=[other-test.csv]
says: submission.csv
says: 6 battles, of which other-test.csv has 6 (it has 9)
says: REDO=1
remedy: ensemble predict run=runs/mine data.test=[other-test.csv] --redo
then: submission-1.csv

wrong: ensemble predict run=runs/mine data.test=[tset.csv]
says: tset.csv
says: no such file
remedy: ensemble predict run=runs/mine data.test=[test.csv] --redo
then: submission-2.csv

wrong: ensemble predict run=runs/mine predict.model=ensembel
says: student, ensemble
remedy: ensemble predict run=runs/mine predict.model=ensemble
then: by the ensemble

wrong: ensemble table run=runs/mine stack.trials=9
says: make stack
remedy: ensemble table run=runs/mine
then: student

# Logits made elsewhere.
wrong: ensemble stack run=runs/mine 'stack.logits={a: logits.csv}'
says: choose another RUN
remedy: ensemble stack mine.yaml run=runs/logits 'stack.logits={a: logits.csv}' data.train=[train.csv]
then: done

wrong: ensemble stack mine.yaml run=runs/logits
says: made from train.csv
remedy: ensemble stack run=runs/logits
then: up to date, nothing to do

wrong: ensemble stack run=runs/logits data.train=[other.csv]
says: not from other.csv
remedy: ensemble stack run=runs/logits
then: up to date, nothing to do

wrong: ensemble predict run=runs/logits data.test=[test.csv]
says: elsewhere
says: RUN of your own
remedy: ensemble predict run=runs/mine
then: up to date, nothing to do

wrong: ensemble distill run=runs/logits
says: elsewhere
says: RUN of your own
remedy: ensemble distill run=runs/mine
then: up to date, nothing to do

# Names of runs, options.
wrong: ensemble stack run=runs/mien
says: runs here:
says: runs/mine
remedy: ensemble stack run=runs/mine
then: up to date, nothing to do

wrong: oof audit runs/mien
says: make oof
remedy: oof audit runs/mine
then: 0 violated

wrong: ensemble report runs/mien
says: make oof
remedy: ensemble report runs/mine
then: index.html

wrong: oof oof run=runs/mine --fold 0
says: unrecognized arguments: --fold 0
remedy: oof oof run=runs/mine
then: up to date, nothing to do
"""

FILES = "data.train=[train.csv] data.test=[test.csv]"
Block = list[tuple[str, str]]  # of lines: word before the colon, text after it


def blocks(script: str) -> list[Block]:
    """Return the wrong calls of a script."""
    lines = re.sub(r"^#.*\n", "", script.replace("FILES", FILES), flags=re.M)
    return [[tuple(line.split(": ", 1)) for line in block.splitlines()] for block in lines.strip().split("\n\n")]  # type: ignore[misc]


def recipe() -> dict[str, object]:
    settings = {"epochs": 0.3, "lr": 1e-3, "head_lr": 5e-3}
    return {"checkpoint": str(BASES / "tiny-llama"), "dtype": "float32", "train": settings, "lora": {"rank": 4}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with battles, logits and a configuration."""
    folder = tmp_path / "Läufe von mir"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, seed, n_test in (("train", 0, 6), ("other", 1, 9)):
        write_arena(Path("arena"), 60, seed, n_test)["train"].rename(f"{name}.csv")
        Path("arena/test.csv").rename(f"{name}-test.csv")
    shutil.rmtree("arena")
    Path("train-test.csv").rename("test.csv")
    settings = {
        "folds": {"k": 2},
        "members": {"m": recipe()},
        "stack": {"trials": 2, "rounds": 20, "final": "mean"},
        "distill": {"student": recipe()},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    ids = pl.read_csv("train.csv")["id"].cast(pl.String)
    logits = np.random.default_rng(0).normal(size=(len(ids), 2, 3)).astype(np.float32)
    logits_frame(ids, logits, 0).drop("fold").write_csv("logits.csv")
    return folder


def change_files(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Follow a line ``first`` or ``undo``."""
    verb, *words = text.split()
    if verb == "rename":
        Path(words[0]).rename(words[1])
    elif verb == "append":
        shutil.copy(words[0], "kept.csv")
        with Path(words[0]).open("a", encoding="utf-8") as file:
            file.write("\n")
    else:
        assert call(text, capfd).status == 0


def check_refusal(command: str, says: list[str], answer: Answer) -> None:
    assert answer.status in (1, 2), (command, answer.text)
    assert not re.search("Traceback|this is a bug", answer.text)
    assert answer.lines <= SCREEN[0], answer.text
    assert [words for words in says if words not in answer.text] == [], (command, answer.text)


def follow(block: Block, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    says = [text for word, text in block if word == "says"]
    files: dict[str, str] = {}
    for word, text in block:
        if word in ("first", "undo"):
            change_files(text, capfd)
        elif word == "wrong":
            files = digests(folder)
            check_refusal(text, says, call(text, capfd))
            assert digests(folder) == files, f"{text}: a refused call leaves every file as it was, and no other"
        elif word == "remedy":
            answer = call(text, capfd)
            assert answer.status == 0, (text, answer.text)
        elif word == "then":
            assert text in answer.text, answer.text
    assert trained(digests(folder)).items() >= trained(files).items(), f"{block}: finished training was lost"


def test_forty_wrong_or_forgetful_calls(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, later = blocks(BEFORE_TRAINING), blocks(LATER)
    assert len(before) + len(later) >= 40
    for block in before:
        follow(block, folder, capfd)
    for stage in ("stack", "distill", "predict"):
        assert call(f"ensemble {stage} run=runs/mine", capfd).status == 0
    assert trained(digests(folder))
    for block in later:
        follow(block, folder, capfd)


def test_a_command_in_another_process_s_run_changes_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = f"oof prepare mine.yaml run=runs/mine {FILES}"
    with locked(Path("runs/mine")):
        answer = call(command, capfd)
    assert (answer.status, answer.text.count("\n")) == (2, 1)
    assert "choose another RUN" in answer.text
    assert call(command, capfd).status == 0


def test_a_run_is_continued_from_any_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Paths that the run remembers start where it was made, those of the call where it is made."""
    assert call(f"oof prepare mine.yaml run=runs/mine {FILES}", capfd).status == 0
    files = digests(folder)
    elsewhere = tmp_path / "Büro 2"
    elsewhere.mkdir()
    shutil.copy(folder / "other.csv", elsewhere / "only-here.csv")
    monkeypatch.chdir(elsewhere)
    run = folder / "runs/mine"
    assert "60 battles" in call(f"oof prepare 'run={run}'", capfd).text
    assert digests(folder) == files
    refused = call(f"oof prepare 'run={run}' data.train=[only-here.csv]", capfd)
    assert refused.status == 2
    assert f"not from {elsewhere / 'only-here.csv'}" in refused.text
    assert digests(folder) == files
    assert Path.cwd() == elsewhere
