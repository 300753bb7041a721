"""Forty wrong or forgetful calls, one after the other, each followed by the remedy that its answer names.

After each wrong call: no traceback, at most a screen of text, and every file below the working folder is as it was. The
working folder is not the repository, and its path has a space and a letter that is not ASCII.

The two scripts below have the format of :mod:`tests.fixtures.call_scripts`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from oof.common.steps import locked
from tests.fixtures.call_scripts import blocks, follow
from tests.fixtures.command_line import call, digests, trained
from tests.fixtures.working_folder import FILES, write_working_folder

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

# Stages before their time, words of another tool.
each: stack | distill | table | ablate
wrong: ensemble EACH run=runs/mine
says: stage one is not finished
says: make oof
remedy: oof prepare run=runs/mine

wrong: ensemble predict run=runs/mine
says: make distill
remedy: oof prepare run=runs/mine

wrong: oof prepare runs/mine
says: a folder, not a configuration
says: run=runs/mine
remedy: oof prepare run=runs/mine

wrong: oof prepare RUN=runs/mine
says: RUN is a variable of make; here it is run=
remedy: oof prepare run=runs/mine

wrong: oof prepare run=runs/mine stack.trials=2,
says: stack.trials=2,
says: a whole number
remedy: oof prepare run=runs/mine stack.trials=2

wrong: oof oof mine.yaml run=runs/mine data.train=[test.csv] data.test=[train.csv]
says: not from test.csv
says: leave out DATA
remedy: oof prepare run=runs/mine

# The table of battles was deleted.
first: rename runs/mine/battles.parquet kept.parquet
wrong: ensemble stack run=runs/mine
says: no battles yet
says: make oof
remedy: oof prepare run=runs/mine
then: 60 battles

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
finished: oof oof run=runs/mine

wrong: oof oof run=runs/mine members.m.train.lr=1e-4
says: 0.0001 now
says: REDO=1
finished: oof oof run=runs/mine

wrong: oof oof run=runs/mine folds.k=3
says: folds.k: 2 before, 3 now
finished: oof oof run=runs/mine

wrong: oof prepare run=runs/mine folds.k=3
says: folds.k: 2 before, 3 now
remedy: oof prepare run=runs/mine
then: 2 folds

wrong: oof oof run=runs/mine seed=1
says: seed: 0 before, 1 now
finished: oof oof run=runs/mine

wrong: oof oof run=runs/mine prompts.max_tokens=64
says: prompts.max_tokens
finished: oof oof run=runs/mine

wrong: oof oof run=runs/mine data.extra=[other.csv]
says: data.extra
finished: oof oof run=runs/mine

wrong: oof job run=runs/mine --member m --fold 1 members.m.lora.rank=8
says: lora.rank: 4 before
finished: oof job run=runs/mine --member m --fold 1

wrong: ensemble stack run=runs/mine members.m.train.lr=1e-4
says: leave that out
finished: ensemble stack run=runs/mine

wrong: ensemble distill run=runs/mine seed=3
says: leave that out
finished: ensemble distill run=runs/mine

wrong: ensemble distill run=runs/mine 'distill.losses={kl: 0}'
says: give one of them a weight
finished: ensemble distill run=runs/mine 'distill.losses={kl: 1}'

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
each: oof oof | ensemble stack | ensemble predict
wrong: EACH mine.yaml run=runs/mine
says: made from train.csv
says: leave out
finished: EACH run=runs/mine

# Other files.
wrong: oof oof run=runs/mine data.train=[other.csv]
says: not from other.csv
says: REDO=1
finished: oof oof run=runs/mine

wrong: ensemble stack run=runs/mine data.train=[other.csv]
says: not from other.csv
finished: ensemble stack run=runs/mine

wrong: ensemble distill run=runs/mine data.unlabelled=[other.csv]
says: without data.unlabelled
finished: ensemble distill run=runs/mine

# Changed and missing files.
each: oof oof | ensemble predict
first: append train.csv
wrong: EACH run=runs/mine
says: train.csv
says: has changed
says: bytes
undo: rename kept.csv train.csv
finished: EACH run=runs/mine

first: append train.csv
wrong: ensemble ablate run=runs/mine
says: train.csv
says: has changed
undo: rename kept.csv train.csv
finished: ensemble stack run=runs/mine

first: rename train.csv moved.csv
wrong: ensemble distill run=runs/mine
says: train.csv
says: missing
says: DATA=PATH
finished: ensemble distill run=runs/mine data.train=[moved.csv]

first: rename moved.csv train.csv
wrong: oof oof run=runs/mine
says: moved.csv
says: missing
says: put it back
finished: oof oof run=runs/mine data.train=[train.csv]

first: rename train.csv moved.csv
wrong: ensemble predict run=runs/mine
says: train.csv
says: REDO=1 goes on
finished: ensemble predict run=runs/mine --redo

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

first: no-ids test.csv no-ids.csv
wrong: ensemble predict run=runs/mine data.test=[no-ids.csv]
says: no-ids.csv: missing column id
finished: ensemble predict run=runs/mine

# Equal ids, other texts.
first: other-texts test.csv other-texts.csv
wrong: ensemble predict run=runs/mine data.test=[other-texts.csv]
says: whose ids other-texts.csv has with other texts
says: REDO=1
finished: ensemble predict run=runs/mine

wrong: ensemble predict run=runs/mine predict.model=ensembel
says: student, ensemble
remedy: ensemble predict run=runs/mine predict.model=ensemble
then: by the ensemble

# A setting of another stage has no effect, and is not ignored in silence.
each: table | predict | distill | ablate
wrong: ensemble EACH run=runs/mine stack.trials=9
says: stack.trials=9 has no effect on EACH
says: make stack RUN=runs/mine ARGS="stack.trials=9"
finished: ensemble stack run=runs/mine stack.trials=2

wrong: ensemble report runs/mine stack.trials=9
says: make stack RUN=runs/mine ARGS="stack.trials=9"
finished: ensemble stack run=runs/mine stack.trials=2

wrong: ensemble stack run=runs/mine data.test=[other-test.csv]
says: make predict RUN=runs/mine TEST="[other-test.csv]"
finished: ensemble stack run=runs/mine data.test=[test.csv]

wrong: ensemble stack run=runs/mine distill.losses.kl=2
says: make distill RUN=runs/mine
finished: ensemble stack run=runs/mine

# Logits made elsewhere.
wrong: ensemble stack run=runs/mine 'stack.logits={a: logits.csv}'
says: choose another RUN
remedy: ensemble stack mine.yaml run=runs/logits 'stack.logits={a: logits.csv}' data.train=[train.csv]
then: done

wrong: ensemble stack mine.yaml run=runs/logits
says: made from train.csv
finished: ensemble stack run=runs/logits

wrong: ensemble stack run=runs/logits data.train=[other.csv]
says: not from other.csv
finished: ensemble stack run=runs/logits

wrong: ensemble predict run=runs/logits data.test=[test.csv]
says: elsewhere
says: stack.test_logits
remedy: ensemble predict run=runs/logits data.test=[test.csv] 'stack.test_logits={a: test-logits.csv}'
then: written

wrong: ensemble distill run=runs/logits
says: elsewhere
says: RUN of your own
finished: ensemble distill run=runs/mine

# A run that was renamed, and its old name; a folder inside a run.
first: rename runs/mine runs/é-2
wrong: ensemble stack run=runs/mine
says: runs here: runs/
says: runs/é-2
finished: ensemble stack run=runs/é-2

first: rename runs/é-2 runs/mine
wrong: ensemble stack run=runs/mine/stack
says: no settings are remembered here
finished: ensemble stack run=runs/mine

# Names of runs, options.
wrong: ensemble stack run=runs/mien
says: runs here:
says: runs/mine
finished: ensemble stack run=runs/mine

wrong: oof audit runs/mien
says: make oof
remedy: oof audit runs/mine
then: 0 violated

wrong: ensemble report runs/mien
says: make oof
remedy: ensemble report runs/mine stack.trials=2
then: index.html

wrong: oof oof run=runs/mine --fold 0
says: unrecognized arguments: --fold 0
finished: oof oof run=runs/mine
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with battles, logits and a configuration."""
    monkeypatch.chdir(write_working_folder(tmp_path / "Läufe von mir"))
    return Path.cwd()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_wrong_or_forgetful_calls(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, later = list(blocks(BEFORE_TRAINING)), list(blocks(LATER))
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
