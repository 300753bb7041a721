"""Sections that are added to the card of an exported student, each in place of its earlier text."""

from __future__ import annotations

import re
from pathlib import Path

from ensemble.distillation.hub import CARD
from oof.common.atomic_files import parse_json, replacing
from oof.common.errors import UserError
from oof.common.steps import Step

BEFORE = "\n## Limits"


def finished_student(run: Path) -> Step:
    """Return the step of a run's exported student.

    Raises:
        UserError: the run has no finished student.
    """
    folder = run / "distill"
    if (folder / "student" / CARD).is_file():
        step = Step(folder, str(parse_json(folder / "manifest.json")["key"]))
        if step.done:
            return step
    raise UserError(f"{folder}: no finished student; run 'make distill' with this RUN")


def put_section(step: Step, heading: str, body: str) -> None:
    """Write a section into the card of :func:`finished_student`, whose run is locked; the step stays finished."""
    name = f"student/{CARD}"
    with step.amended([name]):
        write_section(step.folder / name, heading, body)


def write_section(path: Path, heading: str, body: str) -> None:
    """Write a section of a card before its limits, in place of an earlier text under the same heading.

    Args:
        path: of the card.
        heading: a title of level 2.
        body: text below it.
    """
    earlier = rf"\n{re.escape(heading)}\n.*?(?=\n## |\Z)"
    card = re.sub(earlier, "", path.read_text(encoding="utf-8"), flags=re.S)
    with replacing(path) as temporary:
        temporary.write_text(card.replace(BEFORE, f"\n{heading}\n\n{body.strip()}\n{BEFORE}", 1), encoding="utf-8")
