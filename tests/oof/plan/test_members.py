"""Every shipped configuration is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oof import config as configuration
from oof.plan import format_plan, make_plan
from tests.fixtures.demo_run import ROOT


def _shipped() -> list[Any]:
    """Return every shipped configuration; planning one for GPUs takes half a minute of two cores."""
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    return [pytest.param(p, marks=() if p.stem == "demo" else pytest.mark.slow, id=p.name) for p in paths]


@pytest.mark.slow
@pytest.mark.parametrize("path", _shipped())
def test_every_shipped_configuration_is_loaded_and_planned(path: Path) -> None:
    config = configuration.load(path)
    plan = make_plan(config)
    text = format_plan(plan)
    assert [member.name for member in plan.members] == [*config.members, "student"]
    for member in plan.members:
        assert 0 < member.cost.trainable < 0.3 * member.cost.parameters
        assert any(member.fastest.values())
        assert member.name in text


@pytest.mark.slow
def test_planning_bases_in_processes_of_their_own_changes_nothing() -> None:
    config = configuration.load(ROOT / "configs" / "demo.yaml")
    one, two = (make_plan(config, ["T4"], workers) for workers in (1, 2))
    assert format_plan(one) == format_plan(two)
    assert [plan.name for plan in two.members] == ["gemma2", "llama3_1", "student"]


@pytest.mark.slow
def test_a_student_is_planned_with_its_own_tokens() -> None:
    path = ROOT / "configs" / "demo.yaml"
    (*members, student), (*same, shorter) = (
        make_plan(configuration.load(path, overrides), ["T4"]).members
        for overrides in ([], ["distill.prompts.max_tokens=64"])
    )
    assert shorter.tokens == 64 < student.tokens
    assert shorter.epoch_tokens < student.epoch_tokens
    assert shorter.score_flops == student.score_flops == 0  # fold jobs are planned, and those of the final student
    assert [(m.tokens, m.epoch_tokens) for m in same] == [(m.tokens, m.epoch_tokens) for m in members]
