"""Report as Markdown: its text, its tables and the files of its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.report.make import write_comparison
from tests.fixtures.report_runs import make_report_arena, write_run


def test_markdown_has_the_first_screen_the_leaderboard_and_its_figures_as_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a | <run>", make_report_arena(120, seed=19), stages=False)
    assert main(["report", str(run), "--format", "md"]) == 0
    target = run / "report" / "markdown"
    assert f"report: {target / 'report.md'}" in capsys.readouterr().out
    text = (target / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Report of a \\| \\<run\\>\n")
    assert "arena-distill stack --run" in text
    assert "| rank | predictor | log loss | behind the first | accuracy | ECE |" in text
    assert "## Findings" in text
    assert not re.search(r"(?<!\\)<", re.sub(r"```.*?```", "", text, flags=re.S))  # no tag is left
    pictures = re.findall(r"\]\((figures/[\w-]+\.png)\)", text)
    assert len(pictures) > 5
    for picture in pictures:
        assert (target / picture).read_bytes().startswith(b"\x89PNG")
        svg = (target / picture).with_suffix(".svg").read_text(encoding="utf-8")
        ElementTree.fromstring(svg)  # noqa: S314  # our own file
        assert "var(" not in svg
        assert "currentColor" not in svg
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert {"report.md", *pictures} <= set(files)
    assert not (run / "report" / "index.html").exists()


def test_a_comparison_as_markdown_has_runs_of_any_number_and_warns_at_the_top(tmp_path: Path) -> None:
    arena = make_report_arena(120, seed=22)
    other = arena._replace(table=arena.table.with_columns(id=pl.col("id") + "x"))
    arenas = {"one": arena, "two": arena, "apart|": other}
    path = write_comparison([write_run(tmp_path / name, a, stages=False) for name, a in arenas.items()], "md")
    target = tmp_path / "one" / "report" / "compare" / "markdown"
    assert path == target / "report.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        "# Comparison of one, two, apart\\|\n\n## Runs\n\n### Warnings\n\n- No battles in common: apart\\| and"
    )
    [losses] = [line for line in text.splitlines() if line.startswith("| two |") and "paired" in line]
    assert losses.count("paired: +0.0000 \\[+0.0000, +0.0000\\]") == 1  # the run that has the battles, too
    assert "| predictor | log loss one | log loss two | two - one | p (Holm) |" in text
    pictures = re.findall(r"\]\((figures/[\w-]+\.png)\)", text)
    assert pictures == ["figures/runs0.png"]
    assert (target / pictures[0]).read_bytes().startswith(b"\x89PNG")
