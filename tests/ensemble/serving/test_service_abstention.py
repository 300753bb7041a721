"""max_error of the HTTP service: one battle, many, their own levels, and a sentence where there are no thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble import Judge
from tests.fixtures.abstaining import some_abstention
from tests.fixtures.served_students import BATTLE, post, serving, untrained_student

FOREIGN = {"prompt": "Где это находится, скажите?", "response_a": "там", "response_b": "вот"}


def test_levels_of_requests_and_of_their_battles_are_kept(tmp_path: Path) -> None:
    folder = untrained_student(tmp_path / "tiny")
    some_abstention().write(folder)
    judge = Judge.from_pretrained(folder)
    with serving(judge) as url:
        plain = post(f"{url}/v1/compare", BATTLE).json()
        assert (plain["answered"], plain["warnings"]) == (True, [])
        asked = post(f"{url}/v1/compare", BATTLE | {"max_error": 0.1}).json()
        numbers = ("a", "b", "tie")
        assert [asked[name] for name in numbers] == pytest.approx([plain[name] for name in numbers])
        assert asked["answered"] is judge.compare(*BATTLE.values(), max_error=0.1).answered is False
        battles = [BATTLE, BATTLE | {"max_error": 0.6}, FOREIGN]
        many = post(f"{url}/v1/compare", {"battles": battles, "max_error": 0.1}).json()["verdicts"]
        assert [verdict["answered"] for verdict in many] == [False, True, False]
        assert [bool(verdict["warnings"]) for verdict in many] == [False, False, True]
        alone = post(f"{url}/v1/compare", {"battles": battles}).json()["verdicts"]
        assert [verdict["answered"] for verdict in alone] == [True, True, True]
        for level in (0, 1, 20, "much"):
            refused = post(f"{url}/v1/compare", BATTLE | {"max_error": level})
            assert refused.status_code == 400
            assert "max_error" in refused.json()["error"]["message"]


def test_a_student_without_thresholds_answers_a_sentence(tmp_path: Path) -> None:
    with serving(Judge.from_pretrained(untrained_student(tmp_path / "plain"))) as url:
        refused = post(f"{url}/v1/compare", BATTLE | {"max_error": 0.2})
        assert refused.status_code == 400
        assert "abstention.json: missing" in refused.json()["error"]["message"]
        assert post(f"{url}/v1/compare", BATTLE).json()["answered"]
