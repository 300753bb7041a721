"""The plan as JSON: its keys, and values that agree with the plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from oof.config.load import load
from oof.plan import Plan, make_plan, plan_document, plan_totals
from tests.fixtures.demo_run import only_llama

CARD = "T4"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = only_llama(tmp_path_factory.mktemp("plan"))
    config = load(str(path), ["distill.student.checkpoint=''", f"run={path.parent / 'run'}"])
    return make_plan(config, [CARD])


@pytest.mark.slow
def test_the_document_has_the_numbers_of_the_plan(plan: Plan) -> None:
    document = json.loads(json.dumps(plan_document(plan, 2, 2.5), allow_nan=False))
    (member,), totals = document["members"], document["totals"]
    ours, setting = plan.members[0], plan.members[0].configured[CARD]
    assert setting is not None
    assert (member["name"], member["parameters"], member["peak_bytes"]) == (
        "llama3_1", ours.cost.parameters, ours.cost.peak_bytes,
    )  # fmt: skip
    assert member["cards"][CARD]["configured"]["hours"] == setting.hours
    assert {(row["class"], row["dtype"]) for row in member["operations"]} == set(ours.operations)
    assert [(entry["card"], entry["settings"], entry["fits"]) for entry in totals] == [
        (CARD, "configured", True), (CARD, "fastest", True),
    ]  # fmt: skip
    expected = plan_totals(plan, CARD, 2, 2.5, True)
    assert expected is not None
    assert (totals[0]["n_cards"], totals[0]["wall_hours"], totals[0]["money"], totals[0]["card_hours"]) == (
        2, expected.wall_hours, expected.money, expected.card_hours,
    )  # fmt: skip


def test_a_card_on_which_nothing_fits_is_null(plan: Plan) -> None:
    none = replace(plan.members[0], fastest={CARD: None}, configured={CARD: None}, operations={})
    document = plan_document(replace(plan, members=[none]))
    assert document["members"][0]["cards"] == {CARD: {"configured": None, "fastest": None}}
    assert [(entry["fits"], entry["wall_hours"]) for entry in document["totals"]] == [(False, None)] * 2
