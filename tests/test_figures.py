"""Figures that the README, the guides and the index of the evidence quote stand on the pages that they link.

A quoted figure may be rounded, and gigabytes may be the page's megabytes. Checked are rows of tables, and the sentences
that link a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT

EVIDENCE = ROOT / "docs" / "evidence"
LINK = re.compile(r"\]\((?:[\w./]*evidence/)?([\w-]+)\.md(?:#[\w-]+)?\)")
FIGURE = re.compile(r"(?<![\w.,−+-])([−+]?)(\d[\d,]*(?:\.\d+)?)(?![\d.]*\d)(?![A-Za-z])(\s*GB)?")
ON_A_PAGE = re.compile(r"(?<![\w.,])([−+-]?)(\d[\d,]*(?:\.\d+)?)")
TABLES = (ROOT / "README.md", EVIDENCE / "index.md")
PROSE = sorted(path for folder in ("guides", "concepts") for path in (ROOT / "docs" / folder).glob("*.md"))


def value(sign: str, digits: str) -> Decimal:
    return Decimal(f"{'-' if sign in ('-', '−') else ''}{digits.replace(',', '').rstrip('.')}")


def absent(quoted: str, page: str) -> list[str]:
    """Return the figures of a text that are on the page neither as they are nor with more digits."""
    numbers = [value(*match.groups()) for match in ON_A_PAGE.finditer(page)]
    return [match[0].strip() for match in FIGURE.finditer(quoted) if not _stands(match, numbers)]


def _stands(match: re.Match[str], numbers: list[Decimal]) -> bool:
    figure = value(match[1], match[2])
    place = Decimal(1).scaleb(int(figure.as_tuple().exponent))
    candidates = numbers + ([number / 1000 for number in numbers] if match[3] else [])
    if not match[1]:
        candidates = [abs(number) for number in candidates]
    roundings = (ROUND_HALF_UP, ROUND_HALF_DOWN)
    return any(number.quantize(place, rounding) == figure for number in candidates for rounding in roundings)


def linked(text: str) -> str:
    """Return the text of all evidence pages that a text links."""
    names = (name for name in LINK.findall(text) if (EVIDENCE / f"{name}.md").is_file())
    return "\n".join((EVIDENCE / f"{name}.md").read_text("utf-8") for name in names)


def without_code(text: str) -> str:
    """Return a text without code and the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the text of each row that links evidence, and the pages; of the first cell only figures in parentheses."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("| ") and (page := linked(line)):
            question, answers = without_code(line).split(" | ", 1)
            yield " ".join([*re.findall(r"\([−+]?\d[^)]*\)", question), answers]), page


def sentences(path: Path) -> Iterator[tuple[str, str]]:
    for paragraph in re.split(r"\n\n|\n(?=[-|])", path.read_text("utf-8")):
        for sentence in re.split(r"(?<=[.:?])\s+(?=[A-Z])", paragraph):
            if page := linked(sentence):
                yield without_code(sentence), page


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_figures_of_a_row_stand_on_its_page(path: Path) -> None:
    quoted = list(rows(path))
    assert len(quoted) >= 5
    assert {text: missing for text, page in quoted if (missing := absent(text, page))} == {}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_figures_of_a_sentence_stand_on_the_page_that_it_links(path: Path) -> None:
    assert {text: missing for text, page in sentences(path) if (missing := absent(text, page))} == {}


PAGE = "| stage two | 0.9092 [0.9003, 0.9190] | -0.0321 [-0.0368, -0.0276] | 5,710 MB | 7.95 h | width 1024 |"


@pytest.mark.parametrize(
    ("quoted", "missing"),
    [
        ("−0.032 [−0.037, −0.028] of 0.909 in 8 hours with 5.7 GB and 5,710 MB at int8 and Vicuna-80", []),
        ("−0.031", ["−0.031"]),
        ("+0.032 [−0.036, −0.0276]", ["+0.032", "−0.036"]),
        ("0.032 of 0.9093", ["0.9093"]),
        ("5.7 MB of width 1,024 and 2,048", ["5.7", "2,048"]),
    ],
)
def test_a_figure_that_differs_is_found(quoted: str, missing: list[str]) -> None:
    assert absent(quoted, PAGE) == missing


def test_every_goal_is_met_or_not_and_one_that_is_met_has_a_page() -> None:
    goals = EVIDENCE.joinpath("index.md").read_text("utf-8").split("## Goals")[1].split("## Results")[0]
    cells = [line.split(" | ") for line in goals.splitlines() if line.startswith("| ") and "| status |" not in line]
    assert len(cells) >= 10
    for goal, status, _, page in cells:
        assert status in ("met", "met, within chance", "**not met**", "not measured"), goal
        assert linked(page) or status == "not measured", goal
