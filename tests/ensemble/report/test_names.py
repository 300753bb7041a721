"""Readable names: every feature of the demo's design and every combiner has words, members keep their names."""

from __future__ import annotations

import pytest

from ensemble.features.design_matrix import build_design
from ensemble.report.names import combiner_name, combiner_words, feature_name, job_name, predictor_name
from ensemble.stacking.combiners import COMBINERS
from tests.fixtures.report_runs import make_report_arena


def test_every_feature_has_words_of_its_own() -> None:
    arena = make_report_arena(30, seed=18)
    design = build_design(arena.table, dict(arena.logits))
    words = [feature_name(name, ["one", "two"]) for name in design.names]
    assert len(set(words)) == len(words)
    assert not [word for word in words if "_" in word or "::" in word]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("between::divergence_0_1", "difference between one and two"),
        ("between::divergence_0_7", "all members: divergence 0 7"),
        ("two:first_shown", "two: lead of the response shown first"),
        ("log_chars_diff", "characters, A minus B (log)"),
        ("repeats_prompt_b", "share of the prompt repeated of B"),
    ],
)
def test_columns_are_words(column: str, words: str) -> None:
    assert feature_name(column, ["one", "two"]) == words


def test_combiners_members_and_jobs() -> None:
    assert not [kind for kind in COMBINERS if "_" in combiner_name(kind)]
    assert (
        combiner_words("a pool of logistic 0.5, extra_trees 0.5")
        == "a pool of logistic regression 0.5, randomised trees 0.5"
    )
    assert [predictor_name(name) for name in ("calibrated", "my_model", "student")] == [
        "ensemble",
        "my_model",
        "student",
    ]
    assert [job_name(name) for name in ("fold-3", "final")] == ["fold 3", "all battles"]
