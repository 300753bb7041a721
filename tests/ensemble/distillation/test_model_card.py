"""Model card of a finished run: its examples work, with the student's name in place of "this folder"."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ensemble.command import SUBCOMMANDS
from ensemble.distillation.hub import PLACEHOLDER
from oof.subcommand import PROGRAM, build_parser


@pytest.fixture(scope="module")
def card(small_run: Path) -> str:
    student = small_run / "distill" / "student"
    return (student / "README.md").read_text("utf-8").replace(PLACEHOLDER, f'"{student}"')


def blocks(card: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", card, re.M | re.S)


def test_the_python_example_gives_probabilities(card: str) -> None:
    names: dict[str, Any] = {}
    examples = blocks(card, "python")
    assert len(examples) == 1
    exec(examples[0], names)  # noqa: S102  # our own text
    assert names["a"] + names["b"] + names["tie"] == pytest.approx(1)


def test_the_command_is_one_of_the_program(card: str, small_run: Path) -> None:
    (example,) = blocks(card, "bash")
    words = shlex.split(example)
    arguments = build_parser(PROGRAM, "", SUBCOMMANDS).parse_args(words[1:])
    assert (words[0], arguments.name, arguments.folder) == (PROGRAM, "serve", str(small_run / "distill" / "student"))
