"""max_error of the judge: probabilities stay, unsure verdicts are not answered, unlike battles are told."""

from __future__ import annotations

import copy
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from ensemble.abstention.stored import ABSTENTION
from ensemble.serving.json_lines import judge_lines
from ensemble.serving.verdicts import Verdict
from oof.common.errors import UserError
from tests.fixtures.abstaining import some_abstention
from tests.fixtures.served_students import BATTLE, untrained_student

BATTLES = [["How?", "What is it?", "Где это находится, скажите?"], ["so", "this", "там"], ["no", "that", "вот"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = untrained_student(tmp_path_factory.mktemp("student") / "tiny")
    some_abstention().write(folder)
    return folder


@pytest.fixture
def judge(folder: Path) -> Judge:
    return Judge.from_pretrained(folder)


def test_verdicts_below_the_threshold_are_not_answered_and_keep_their_probabilities(judge: Judge) -> None:
    plain = judge.compare_many(*BATTLES)
    answers = judge.compare_many(*BATTLES, max_error=0.6)
    np.testing.assert_array_equal(answers.probabilities, plain)
    threshold = some_abstention().thresholds.at(0.6)
    assert threshold is not None
    assert answers.answered.tolist() == (plain.max(axis=1) >= threshold).tolist() == [True] * 3
    assert not judge.compare_many(*BATTLES, max_error=0.1).answered.any()  # a random head is never that sure
    assert answers.warnings[0] == ()
    assert "cyrillic" in answers.warnings[2][0]
    one = judge.compare(*BATTLE.values(), max_error=0.1)
    assert one == judge.compare(*BATTLE.values())
    assert (one.answered, judge.compare(*BATTLE.values()).answered) == (False, True)
    assert judge.compare_many([], [], [], max_error=0.1).answered.shape == (0,)


def test_a_kind_of_unlike_battles_is_logged_once(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            judge.compare(*(column[2] for column in BATTLES), max_error=0.3)
            judge.compare_many(*BATTLES)
    assert len([record for record in caplog.records if "cyrillic" in record.message]) == 1


def test_a_verdict_is_copied_with_its_answer() -> None:
    verdict = copy.copy(Verdict(0.5, 0.3, 0.2, False, ("long",)))
    assert (verdict.answered, verdict.warnings, verdict.winner) == (False, ("long",), "a")
    a, _, tie = verdict
    assert (a, tie) == (0.5, 0.2)


def test_lines_say_whether_they_are_answered(
    folder: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps(BATTLE)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    assert ensemble_main(["judge", str(folder), "--max-error", "0.1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    plain = json.loads(next(judge_lines(judge, [line])))
    assert answer == plain | {"answered": False, "warnings": []}


def test_a_student_without_thresholds_is_refused_before_a_line_is_read(tmp_path: Path) -> None:
    judge = Judge.from_pretrained(untrained_student(tmp_path / "plain"))
    with pytest.raises(UserError, match=rf"{ABSTENTION}: missing.*make distill"):
        judge.compare(*BATTLE.values(), max_error=0.2)
    with pytest.raises(UserError, match="missing"):
        next(judge_lines(judge, iter(()), max_error=0.2))
    assert judge.compare(*BATTLE.values()).answered


def test_a_level_in_percent_is_refused(judge: Judge) -> None:
    with pytest.raises(UserError, match=r"max_error=20: .* between 0 and 1"):
        judge.compare(*BATTLE.values(), max_error=20)
