"""The documentation site: generated reference text is complete, evidence pages name their origin, the README is short.

``make docs`` builds the site strictly, so broken links and pages outside the navigation fail there.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from docs.hooks import reference
from ensemble.command import SUBCOMMANDS
from ensemble.features.design_matrix import describe
from oof.config.reference import settings_reference
from tests.fixtures.demo_run import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
EVIDENCE = [path for path in PAGES if path.parent.name == "evidence" and path.name != "index.md"]
ORIGIN = {
    "command": r"`(make |python -m benchmarks\.)",
    "date": r"20\d\d-\d\d-\d\d",
    "commit": r"commits? (\w+ )*[0-9a-f]{7,12}|commits of that day|commits named below",
    "machine": r"x86_64|NVIDIA",
}


def test_commands_page_lists_every_subcommand_with_its_options() -> None:
    text = reference.commands()
    for subcommand in SUBCOMMANDS:
        assert f"### {subcommand.name}\n" in text
        assert subcommand.example in text
        for option in reference.parser_of(subcommand)._option_string_actions:
            assert option in ("-h", "--help") or f"| `{option}` |" in text, f"{subcommand.name} {option}"


def test_settings_page_lists_every_section() -> None:
    titles = re.findall(r"^## .*$", settings_reference(), re.M)
    assert titles
    assert all(title in reference.settings() for title in titles)


def test_features_page_lists_every_family() -> None:
    text = reference.features()
    assert all(f"| {family} |" in text for family in describe())


def test_make_targets_are_those_of_the_makefile() -> None:
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert declared
    listed = re.findall(r"^\| `make ([a-z-]+)` ", reference.make_targets(), re.M)
    assert sorted(listed) == sorted(declared[1].split())


def test_pages_ask_for_known_generated_text_and_for_all_of_it() -> None:
    asked = {name for path in PAGES for name in reference.MARKER.findall(path.read_text("utf-8"))}
    assert asked == set(reference.GENERATED)


@pytest.mark.parametrize("part", ORIGIN)
@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.stem)
def test_evidence_page_names_its_origin_in_the_first_lines(path: Path, part: str) -> None:
    head = " ".join(path.read_text("utf-8").splitlines()[:15])
    assert re.search(ORIGIN[part], head)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_troubleshooting_quotes_messages_that_the_program_prints() -> None:
    sources = [path.read_text("utf-8") for package in ("oof", "ensemble") for path in (ROOT / package).rglob("*.py")]
    joined = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))  # a string over several lines is one message
    printed = re.sub(r"\{[^{}]*\}", "…", joined) + os.strerror(errno.ENOSPC)
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^\| `([^`]+ [^`]+)` \|", page, re.M)
    pieces = [piece.strip(" ,:()=") for message in quoted for piece in message.split("…")]
    assert len(pieces) > 15
    assert [piece for piece in pieces if piece not in printed] == []
