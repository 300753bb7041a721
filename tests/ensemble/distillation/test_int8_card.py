"""int8 section of the model card: written once, measured, and the run stays finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ensemble.distillation.int8_card import HEADING, add_int8_section
from ensemble.serving.judge import Judge
from oof.common.atomic_files import parse_json
from oof.common.errors import UserError
from oof.common.steps import Step

CARD = Path("distill") / "student" / "README.md"


@pytest.mark.slow
def test_the_section_is_replaced_and_the_step_stays_finished(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = (run / CARD).read_text(encoding="utf-8")
    first = add_int8_section(run)
    add_int8_section(run)
    card = (run / CARD).read_text(encoding="utf-8")
    assert card.count(HEADING) == 1
    assert f"{first['kl']:.2e}" in card
    assert 0 < first["kl"] < 0.01
    start = card.index(f"\n{HEADING}")
    assert card[:start] + card[card.index("\n## Limits") :] == before
    assert Step(run / "distill", parse_json(run / "distill" / "manifest.json")["key"]).done
    judge = Judge.from_pretrained(run / "distill" / "student", "int8")
    assert judge.precision == "int8"
    exact = Judge.from_pretrained(run / "distill" / "student").compare("p", "a longer text", "b")
    assert list(judge.compare("p", "a longer text", "b")) == pytest.approx(list(exact), abs=0.02)


def test_a_run_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished student"):
        add_int8_section(tmp_path)
