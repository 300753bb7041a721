"""Sections from files of other commands: shown where they are of the run's student, else one line with the command."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest

from ensemble.report.make import collect
from ensemble.report.page import render_report
from ensemble.report.run_data import load_run
from ensemble.report.sections_student import sections
from oof.common.atomic_files import write_json
from oof.metrics import row_log_loss, softmax_mean
from tests.fixtures.report_runs import make_report_arena, write_run

ANCHORS = ["slices", "cascade", "abstention"]


def bounds(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.0125, "high": value + 0.0375}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of a run with the three files."""
    run = write_run(tmp_path_factory.mktemp("student") / "run", make_report_arena(60, seed=23))
    student = load_run(run)
    loss = float(row_log_loss(student.probs["student"], student.labels).mean())
    write_json(run / "cascade" / "curve.json", cascade(loss))
    write_json(run / "student_slices.json", slices(loss))
    abstention = {"delta": 0.125, "groups": 41, "thresholds": {"0.05": None, "0.5": 0.4375}, "answered": [1, 2]}
    write_json(run / "distill" / "student" / "abstention.json", abstention)
    return collect(load_run(run))


def shown(report: dict[str, Any]) -> list[bool]:
    return [bool(section.blocks) for section in sections(report)]


def cascade(loss: float) -> dict[str, Any]:
    points = [{"cost": cost, "log_loss": bounds(loss - cost), "accuracy": bounds(0.5), "budget": 0.4,
               "shares": {"one_order": 1 - cost, "ensemble": cost}} for cost in (0.125, 0.6875)]  # fmt: skip
    return {
        "version": 1,
        "levels": [{"name": name, "seconds_a_battle": seconds, "cost_share": seconds / 0.8125}
                   for name, seconds in (("one_order", 0.09375), ("student", 0.1875), ("ensemble", 0.8125))],
        "policies": {"best": points, "margin": points[:1], "random": []},
        "ends": {"student": {"cost": 0.25, "log_loss": bounds(loss), "accuracy": bounds(0.5)},
                 "ensemble": {"cost": 1.0, "log_loss": bounds(loss - 0.1), "accuracy": bounds(0.5)}},
        "gain_kept": {"best": {"budget": 0.4, "share": bounds(0.8125), "cost_of_95": 0.71875}},
    }  # fmt: skip


def slices(loss: float) -> dict[str, Any]:
    row = {"family": "all", "slice": "all battles", "n": 60, "share": 1.0, "student": loss, "ensemble": loss - 0.0625,
           "difference": bounds(0.0625), "part": 0.0625}  # fmt: skip
    return {"overall": row, "slices": [row | {"family": "turns", "slice": "one", "n": 43, "part": 0.03125}]}


@pytest.mark.slow
def test_files_of_other_commands_are_shown_with_numbers_of_report_json_only(report: dict[str, Any]) -> None:
    assert shown(report) == [True] * 3
    html = render_report(report)
    parts = {name: html[html.index(f'<section id="{name}"') :].split("</section>")[0] for name in ANCHORS}
    text = {name: " ".join(re.sub(r"<[^>]+>", "", part).split()) for name, part in parts.items()}
    kept = "At 40 % of the cost, the best policy keeps 81.2 % [80.0 %, 85.0 %] of the ensemble's gain on the student."
    assert f"{kept} 71.9 % of the cost keep 95 %." in text["cascade"]
    assert "0.812 s, and 0.188 s by the student" in text["cascade"]
    assert 'id="cascade-figure_1"' in parts["cascade"]
    assert re.search(r"decided by ensemble.*12.5 %.*68.8 %", text["cascade"])
    assert "turns: one 43" in " ".join(re.sub(r"<[^>]+>", " ", parts["slices"]).split())
    assert "with probability 88 % over 41 groups" in text["abstention"]
    known = json.dumps(report)
    for value in re.findall(r'<data value="([^"]+)"', "".join(parts.values())):
        assert re.search(rf"[ \[]{re.escape(value)}[,}}\]]", known), value


def test_a_cascade_without_a_gain_says_so(report: dict[str, Any]) -> None:
    content = copy.deepcopy(report["cascade"])
    content["gain_kept"]["best"] |= {"share": None, "cost_of_95": None}
    words = str(sections(report | {"cascade": content})[1].blocks[0].text)
    assert "The ensemble is not shown to be better than the student, so there is no gain to keep." in words
    assert "the best policy keeps" not in words


def test_missing_files_and_those_of_another_student_are_a_line_with_the_command(report: dict[str, Any]) -> None:
    missing = report | {"cascade": None, "student_slices": None, "abstention": None}
    assert shown(missing) == [False] * 3
    assert "Not measured: <code>arena-distill slices --run RUN</code>" in sections(missing)[0].fill
    other = report["cascade"]["ends"]["student"]["log_loss"]["value"] + 0.01
    stale = report | {"cascade": cascade(other), "student_slices": slices(other)}
    assert shown(stale) == [False, False, True]
    assert all("Measured with another student: <code>arena-distill" in part.fill for part in sections(stale)[:2])


@pytest.mark.parametrize("content", [{}, {"policies": {"best": []}}, {"ends": {"student": {}}}])
def test_a_damaged_file_is_as_a_missing_one(content: dict[str, Any], report: dict[str, Any]) -> None:
    assert shown(report | {"cascade": content}) == [True, False, True]


def test_a_run_without_a_student_has_no_such_sections(report: dict[str, Any]) -> None:
    assert sections(report | {"distillation": None}) == []


def test_coverage_is_that_of_a_loop_over_groups(report: dict[str, Any]) -> None:
    arena = make_report_arena(60, seed=23)
    probs = softmax_mean(0.5 * np.mean(list(arena.logits.values()), axis=0))
    by_group: dict[int, list[tuple[bool, bool]]] = {}
    for p, label, group in zip(probs, arena.labels, arena.groups, strict=True):
        by_group.setdefault(int(group), []).append((max(p) >= 0.4375, max(p) >= 0.4375 and int(np.argmax(p)) != label))
    answered, wrong = (sum(sum(b[i] for b in battles) / len(battles) for battles in by_group.values()) for i in (0, 1))
    none, some = report["abstention"]["levels"]
    assert (none["level"], none["threshold"], none["answered"]["value"], none["wrong"]) == (0.05, None, 0.0, None)
    assert 0 < wrong < answered < len(by_group)
    assert some["answered"]["value"] == pytest.approx(answered / len(by_group))
    assert some["wrong"] == pytest.approx(wrong / answered)
