"""Generated sentences: what they claim in planted runs, and that each number in them is one of report.json."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import Markup

from ensemble.report.advice import advice
from ensemble.report.conclusion import conclusion, trust
from ensemble.report.head import head
from ensemble.report.story import story

Report = dict[str, Any]
BETTER, NONE, WORSE = (
    {"value": value, "low": value - 0.01, "high": value + 0.01} for value in (-0.03, 0.002, 0.04)
)  # intervals of a difference
FEW = {"value": -0.03, "low": None, "high": None, "groups": 5}
PAIRS = (
    ("calibrated", "one"),
    ("calibrated", "stack"),
    ("stack", "one"),
    ("student", "calibrated"),
    ("student", "one"),
)


def member_pair(advantage: dict[str, Any], finding: str, slices: dict[str, str]) -> Report:
    row = {"family": "verdict", "n": 200, "n_groups": 100, "p": 0.5, "p_adjusted": 0.5, "advantage": advantage}
    return {
        "first": "one",
        "second": "two",
        "overall": row | {"slice": "all battles", "finding": finding},
        "slices": [row | {"slice": name, "finding": found} for name, found in slices.items()],
    }


def base() -> Report:
    """Return what the sentences read of the report of a healthy run: student as good as the ensemble."""
    predictors = {"one": 0.9, "two": 0.91, "stack": 0.88, "calibrated": 0.87, "student": 0.872}
    ties = {"share": 0.3, "cost_share": 0.4, "verdict": "sees ties"}
    bins = [{"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9} for value in (-0.3, 0.0, 0.3)]
    return {
        "run": "planted",
        "members": [member_pair(NONE, "no difference shown", {"tie": "two better", "decided": "one better"})],
        "ties": {"possible": True, "predictors": {name: dict(ties) for name in predictors}},
        "calibration": {
            "predictors": {
                "stack": {"scores": {"ece": 0.05, "ece_bias": 0.02}},
                "calibrated": {"scores": {"ece": 0.03, "ece_bias": 0.021}},
            }
        },
        "position": {
            "verdicts": {"value": 0.05, "low": 0.01, "high": 0.09},
            "models": {"one": {"disagreement": {"value": 0.2, "low": 0.1, "high": 0.3}}},
            "length": {
                "verdicts": bins,
                "predictors": {name: copy.deepcopy(bins) for name in predictors},
                "slopes": {"verdicts": 0.3} | dict.fromkeys(predictors, 0.25),
            },
        },
        "stack": {"ablations": None},
        "distillation": {"agreement": {"value": 0.85, "low": 0.8, "high": 0.9}},
        "data": {"n": 400, "n_groups": 200, "folds": [{}, {}], "schemas": {"f.csv": "ours"}, "tokens": []},
        "cost": {"seconds": 100.0, "cost": None},
        "summary": {
            "members": ["one", "two"],
            "best_member": "one",
            "date": "2026-01-02",
            "hardware": {},
            "table": [
                {
                    "predictor": name,
                    "accuracy": 0.5,
                    "log_loss": {"value": value, "low": value - 0.02, "high": value + 0.02},
                }
                for name, value in predictors.items()
            ],
            "paired": [
                {"first": first, "second": second, "difference": NONE if first == "student" else BETTER}
                for first, second in PAIRS
            ],
            "submit": {"choice": "student", "command": "make predict", "difference": NONE},
            "audit": [{"status": "ok"}, {"status": "ok"}],
            "warnings": [],
        },
    }


def with_difference(report: Report, first: str, second: str, difference: dict[str, Any]) -> None:
    for row in report["summary"]["paired"]:
        if (row["first"], row["second"]) == (first, second):
            row["difference"] = difference


def without(report: Report, *predictors: str) -> None:
    summary = report["summary"]
    summary["table"] = [row for row in summary["table"] if row["predictor"] not in predictors]
    summary["paired"] = [row for row in summary["paired"] if not {row["first"], row["second"]} & set(predictors)]


def ablations(report: Report, member: dict[str, Any], half: dict[str, Any]) -> None:
    report["stack"]["ablations"] = {
        "without": [{"name": "without-member-two", "difference": member}],
        "learning_curve": [{"name": "battles-0.5", "battles": 200.0, "difference": half},
                           {"name": "full", "battles": 400.0, "difference": NONE}],
    }  # fmt: skip


def ensemble_chosen(report: Report) -> None:
    with_difference(report, "student", "calibrated", WORSE)
    report["summary"]["submit"] |= {"choice": "calibrated", "difference": WORSE}


def better_member(report: Report) -> None:
    report["members"] = [member_pair(WORSE, "one better", {"tie": "no difference shown"})]


def in_sample(report: Report) -> None:
    report["summary"]["warnings"] = ["Possible leak: two is possibly in-sample (lead).", "Imbalance: few ties."]


def one_warning(report: Report) -> None:
    report["summary"]["warnings"] = ["Imbalance: only 5.0 % of the verdicts are 'tie'."]


def few_groups(report: Report) -> None:
    for row in report["summary"]["paired"]:
        row["difference"] = FEW
    report["summary"]["submit"]["difference"] = FEW


def binary(report: Report) -> None:
    report["ties"] = {"possible": False, "predictors": {}}


def one_member(report: Report) -> None:
    without(report, "two")
    report["summary"]["members"] = ["one"]
    report["members"] = []


def own_logits(report: Report) -> None:
    without(report, "student")
    report["summary"]["submit"] = {"choice": "calibrated", "command": "make predict"}
    report["distillation"] = None
    report["position"]["length"] = None


def stage_one_alone(report: Report) -> None:
    without(report, "student", "stack", "calibrated")
    report["summary"]["submit"] = {"choice": "one", "command": "make stack"}
    report |= {"stack": None, "distillation": None}
    report["calibration"]["predictors"] = {}


def ece_rises(report: Report) -> None:
    report["calibration"]["predictors"]["calibrated"]["scores"]["ece"] = 0.08


def truncated(report: Report) -> None:
    report["data"]["tokens"] = [{"readers": ["student"], "truncated": 0.25, "budget": 320}]


def blind(report: Report) -> None:
    report["ties"]["predictors"]["student"]["verdict"] = "blind to ties"


def weak(report: Report) -> None:
    report["ties"]["predictors"]["student"]["verdict"] = "weak on ties"


def no_position_bias(report: Report) -> None:
    report["position"]["verdicts"] = {"value": 0.0, "low": -0.04, "high": 0.04}
    report["position"]["models"]["one"]["disagreement"]["value"] = 0.01


def second_shown(report: Report) -> None:
    report["position"]["verdicts"] = {"value": -0.05, "low": -0.09, "high": -0.01}


def length_ignored(report: Report) -> None:
    for row in report["position"]["length"]["predictors"]["student"]:
        row["value"] = 0.0


def known_bound(report: Report) -> None:
    report["summary"]["table"].append({"predictor": "bayes", "log_loss": {"value": 0.8, "low": 0.7, "high": 0.9}})
    report["summary"]["paired"].append({"first": "student", "second": "bayes", "difference": WORSE})


def worse_than_member(report: Report) -> None:
    with_difference(report, "student", "one", WORSE)


CASES: list[tuple[Callable[[Report], None], list[str], list[str]]] = [
    (lambda report: None, [
        "Use the student: log loss 0.8720 [0.8520, 0.8920], not shown to differ from the best member, one",
        "not shown to be worse than the ensemble, and one model instead of all",
        "Neither one nor two is shown to be better overall", "one is better on decided (verdict)",
        "two is better on tie (verdict)", "The student may replace the ensemble", "at most +0.0120 nats",
        "Stacking the members lowers", "falls from 0.0500 to 0.0300", "It gives ties a higher P(tie)",
        "2 audit checks hold", "A wins more often than B by 5.0 %", "arena-distill ablate measures",
    ], ["Both can be true", "warning first", "generated"]),
    (better_member, ["one is better than two", "No slice shows a difference."], ["Neither one nor two"]),
    (in_sample, ["Do not trust these numbers yet: Possible leak: two"], ["audit checks hold"]),
    (one_warning, ["Read the warning first: Imbalance: only 5.0 %"], ["more below", "Do not trust"]),
    (lambda report: with_difference(report, "stack", "one", NONE),
     ["Stacking is not shown to improve on one alone"], ["Stacking the members lowers"]),
    (lambda report: with_difference(report, "stack", "one", WORSE),
     ["Stacking did harm"], ["Stacking the members lowers"]),
    (ensemble_chosen, ["Use the ensemble: log loss 0.8700", "better than the best member, one (difference -0.0300",
                       "the student is shown to be worse (difference +0.0400",
                       "The student does not match the ensemble", "A stronger student"], ["may replace"]),
    (lambda report: with_difference(report, "student", "calibrated", BETTER),
     ["better than the ensemble, and one model", "The student is better than the ensemble"], ["may replace"]),
    (worse_than_member, ["worse than the best member, one (difference +0.0400"], ["not shown to differ"]),
    (few_groups, ["too few groups for a verdict (5) against the best member, one",
                  "Too few groups for a verdict (5): no comparison", "Stacking against one alone",
                  "Calibration changes the log loss by"],
     ["better than the best", "may replace", "lowers", "checks hold"]),
    (binary, ["Use the student"], ["Ties."]),
    (one_member, ["There is one member, one", "calibrated member"], ["Stacking.", "Neither", "ensemble"]),
    (own_logits, ["Use the ensemble: log loss 0.8700", "better than the best member, one"],
     ["Student.", "Length bias."]),
    (stage_one_alone, ["one is the best member so far", "has not run", "Run stage two"],
     ["Stacking.", "Calibration.", "Student."]),
    (ece_rises, ["rises from 0.0500 to 0.0800", "Both can be true"], []),
    (lambda report: with_difference(report, "calibrated", "stack", WORSE),
     ["Calibration raises the log loss"], ["Both can be true"]),
    (lambda report: with_difference(report, "calibrated", "stack", NONE),
     ["Calibration is not shown to change"], ["Calibration lowers"]),
    (truncated, ["25.0 % of the battles are cut at 320 tokens for student",
                 "try a larger distill.prompts.max_tokens"], ["Nothing on this page"]),
    (blind, ["does not see them coming"], ["gives ties a higher"]),
    (weak, ["On ties it loses more than the class shares"], ["gives ties a higher"]),
    (no_position_bias, ["No position bias of the verdicts is shown", "That is rare"], ["predict in both orders"]),
    (second_shown, ["favour the response shown second"], ["shown first: A wins"]),
    (length_ignored, ["outside the verdicts' interval at 2 of 3"], ["inside the verdicts'"]),
    (known_bound, ["the best possible loss is known: 0.8000", "The student is +0.0400"], []),
    (lambda report: ablations(report, WORSE, WORSE), ["two is worth its time", "More battles help the stack"],
     ["arena-distill ablate"]),
    (lambda report: ablations(report, NONE, NONE), ["Leaving out two is not shown to cost anything",
                                                    "More battles are not shown to help"], ["worth its time"]),
    (lambda report: ablations(report, BETTER, FEW), ["Leave out two"], ["More battles help"]),
]  # fmt: skip


def numbers(tree: Any) -> set[float]:
    if isinstance(tree, dict | list):
        return set().union(*map(numbers, tree.values() if isinstance(tree, dict) else tree))
    return {float(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else set()


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_sentences_of_a_planted_run_claim_what_was_planted(case: int) -> None:
    plant, present, absent = CASES[case]
    report = base()
    plant(report)
    first = head(report)
    parts = [conclusion(report), trust(report)[1], *story(report), *advice(report), *(c.note for c in first.cards)]
    html = "\n".join(parts)
    shown = " ".join(Markup(html).striptags().split())  # noqa: S704  # not a page
    for sentence in present:
        assert sentence in shown
    for sentence in absent:
        assert sentence not in shown
    assert {float(value) for value in re.findall(r'<data value="([^"]+)"', html)} <= numbers(report)
    assert "None" not in shown
    assert ".." not in shown


def test_the_recommended_model_is_the_marked_card() -> None:
    for plant in (lambda report: None, ensemble_chosen, stage_one_alone):
        report = base()
        plant(report)
        chosen = [card.label for card in head(report).cards if card.chosen]
        expected = {"student": "student", "calibrated": "ensemble", "one": "best member"}
        assert chosen == [expected[report["summary"]["submit"]["choice"]]]


def test_trust_is_good_only_without_warnings_and_with_groups() -> None:
    levels = {}
    for name, plant in {"": lambda report: None, "leak": in_sample, "warning": one_warning, "few": few_groups}.items():
        report = base()
        plant(report)
        levels[name] = trust(report)[0]
    assert levels == {"": "good", "leak": "bad", "warning": "check", "few": "check"}
