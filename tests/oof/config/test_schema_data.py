"""The student's own prompt settings laid over the run's."""

from __future__ import annotations

import pytest

from oof import config as configuration
from oof.common.digests import digest
from oof.config import Config, Prompts, StudentPrompts, without_speed_settings

RUN = Prompts(layout="rounds", max_tokens=400, score_max_tokens=900, prompt_share=0.5, hints="lengths")


def test_a_student_without_settings_of_its_own_reads_as_the_members_do() -> None:
    assert StudentPrompts().over(RUN) == RUN
    assert "prompts" not in without_speed_settings(Config().distill)  # content keys of older runs stay as they are
    assert configuration.load(None, ["distill.prompts.hints=null", "distill.prompts.max_tokens=null"]).distill == (
        Config().distill
    )


@pytest.mark.parametrize(
    ("own", "trained", "scored"),
    [
        (StudentPrompts(), 400, 900),
        (StudentPrompts(max_tokens=600), 600, None),  # scored as trained, whatever the members' limit in scoring
        (StudentPrompts(score_max_tokens=700), 400, 700),
        (StudentPrompts(max_tokens=600, score_max_tokens=700), 600, 700),
    ],
)
def test_the_students_own_tokens_take_the_place_of_the_members(
    own: StudentPrompts, trained: int, scored: int | None
) -> None:
    read = own.over(RUN)
    assert (read.max_tokens, read.score_max_tokens) == (trained, scored)
    assert own.over(read) == read


def test_the_marker_is_in_no_key_while_it_is_plain() -> None:
    older = {"layout": "responses", "max_tokens": 2048, "score_max_tokens": None, "prompt_share": 0.25, "hints": "none"}
    assert digest(without_speed_settings(Prompts())) == digest(older)  # of fold jobs, students and submissions
    assert digest(without_speed_settings(Prompts(marker="count"))) != digest(older)


def test_only_the_students_configuration_has_its_settings() -> None:
    config = configuration.load(None, ["prompts.max_tokens=200", "distill.prompts.hints=lengths"])
    assert config.prompts == Prompts(max_tokens=200)
    assert config.for_student().prompts == Prompts(max_tokens=200, hints="lengths")
    assert config.for_student().for_student() == config.for_student()
