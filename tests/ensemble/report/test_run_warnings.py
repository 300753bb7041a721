"""Warnings: each one appears where its cause is planted, and not otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble.report.make import collect, write_report
from ensemble.report.run_data import load_run
from ensemble.report.run_warnings import run_warnings
from ensemble.stacking.leakage import leaked_members
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import write_json
from oof.metrics import row_log_loss, softmax_mean
from tests.fixtures.report_runs import STACK, ReportArena, make_report_arena, write_run


def warnings_of(run: Path) -> list[str]:
    """Return the warnings of report.json.

    The fixtures' fold jobs are removed first: they are incomplete, which the audit would report.
    """
    for folder in run.glob("oof/*/fold-0"):
        shutil.rmtree(folder)
    warnings: list[str] = collect(load_run(run))["summary"]["warnings"]
    return warnings


def kinds(warnings: list[str]) -> set[str]:
    return {warning.split(":")[0] for warning in warnings} - {"Audit"}  # it warns that the logits are external


@pytest.fixture
def arena() -> ReportArena:
    """Return an arena without leakage: each group has its own prompt, as the audit requires."""
    arena = make_report_arena(600, seed=21)
    prompts = [[" ".join(f"w{group * 31 + k * k * 7}" for k in range(9))] for group in arena.groups]
    return arena._replace(table=arena.table.with_columns(prompt=pl.Series(prompts)))


def test_a_run_without_problems_has_no_warning(arena: ReportArena, tmp_path: Path) -> None:
    assert kinds(warnings_of(write_run(tmp_path / "run", arena))) == set()


@pytest.mark.slow
def test_an_in_sample_member_is_a_possible_leak(arena: ReportArena, tmp_path: Path) -> None:
    leaked = arena.logits["two"] + 4 * np.eye(3, dtype=np.float32)[arena.labels][:, None]
    logits = arena.logits | {"two": leaked}
    suspects = leaked_members(logits, arena.labels, arena.groups % 3, arena.groups, 0.05, 0)
    run = write_run(tmp_path / "run", arena._replace(logits=logits))
    write_json(run / "stack" / "manifest.json", STACK | {"possibly_in_sample": suspects})
    [warning] = [text for text in warnings_of(run) if text.startswith("Possible leak")]
    assert "two is possibly in-sample" in warning
    assert suspects["two"][0] in warning
    page = write_report(run).read_text(encoding="utf-8")
    assert warning.replace("'", "&#39;").replace(">", "&gt;") in page
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["summary"]["possibly_in_sample"] == suspects


def test_a_predictor_better_than_the_true_probabilities_is_a_possible_leak(arena: ReportArena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    losses = {name: row_log_loss(p, run.labels) for name, p in (run.probs | {"bayes": arena.truth}).items()}
    without_leak = run_warnings(run, losses, [], [], {})
    near_labels = 0.9 * np.eye(3)[run.labels] + 0.1 / 3
    with_leak = run_warnings(run, losses | {"one": row_log_loss(near_labels, run.labels)}, [], [], {})
    assert without_leak == []
    assert [text.split(",")[0] for text in with_leak] == [
        "Possible leak: one is better than the true class probabilities"
    ]


def test_a_group_in_two_folds_is_a_possible_leak(arena: ReportArena, tmp_path: Path) -> None:
    several = np.flatnonzero(np.bincount(arena.groups, minlength=700)[arena.groups] > 1)[0]
    folds = arena.table["fold"].to_numpy().copy()
    folds[several] = (folds[several] + 1) % 3
    run = write_run(tmp_path / "run", arena._replace(table=arena.table.with_columns(fold=pl.Series(folds))))
    assert any(text.startswith("Possible leak: ") and "group" in text for text in warnings_of(run))


def test_a_rare_class_is_an_imbalance(arena: ReportArena, tmp_path: Path) -> None:
    kept = np.flatnonzero((arena.labels != 2) | (np.arange(600) % 8 == 0))
    logits = {name: z[kept] for name, z in arena.logits.items()}
    parts = arena.table[kept], arena.labels[kept], arena.groups[kept], logits, arena.in_corpus[kept], arena.truth[kept]
    few = ReportArena(*parts)
    share = 100 * np.mean(few.labels == 2)
    assert f"Imbalance: only {share:.1f} % of the verdicts are 'tie'." in warnings_of(write_run(tmp_path / "run", few))


def test_many_truncated_battles_give_a_warning(arena: ReportArena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    tokens: list[dict[str, Any]] = [{"readers": ["one", "student"], "budget": 64, "truncated": 0.1}]
    assert run_warnings(run, {}, [], tokens, {}) == []
    tokens[0]["truncated"] = 0.125
    [warning] = run_warnings(run, {}, [], tokens, {})
    assert warning == "Truncation: 12.5 % of the battles are cut at 64 tokens for one and student."


def test_a_member_blind_to_ties_gives_a_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_report_arena(900, seed=22, blind=True), stages=False)
    assert [text for text in warnings_of(run) if text.startswith("Ties")] == ["Ties: two is blind to ties."]


def test_a_fold_whose_model_did_not_learn_is_a_drift(arena: ReportArena, tmp_path: Path) -> None:
    failed = arena.logits["two"].copy()
    failed[arena.groups % 3 == 1] *= -1
    run = write_run(tmp_path / "run", arena._replace(logits=arena.logits | {"two": failed}), stages=False)
    drifted = [text for text in warnings_of(run) if text.startswith("Drift: two's log loss in fold 1")]
    p, at = softmax_mean(failed), arena.groups % 3 == 1
    losses = -np.log(p[np.arange(600), arena.labels])
    assert f"differs by {losses[at].mean() - losses[~at].mean():+.3f} nats" in drifted[0]
    assert not [text for text in warnings_of(run) if text.startswith("Drift: one's")]


@pytest.mark.parametrize(("n", "warned"), [(400, True), (4, False)])
def test_a_submission_with_other_class_shares_is_a_drift(
    n: int, warned: bool, arena: ReportArena, tmp_path: Path
) -> None:
    """Four battles are too few to tell."""
    run = write_run(tmp_path / "run", arena)
    shares = np.bincount(arena.labels, minlength=3) / 600 + [0.12, -0.06, -0.06]
    frame = pl.DataFrame({"id": range(n), **dict(zip(WINNER_COLUMNS, shares.tolist(), strict=True))})
    frame.write_csv(run / "submission.csv")
    drift = [text for text in warnings_of(run) if text.startswith("Drift")]
    message = (
        f"Drift: the submission's mean probability of 'A wins' is {100 * shares[0]:.1f} %, but its share of the scored "
        f"battles is {100 * shares[0] - 12:.1f} %."
    )
    assert drift == [message] * warned


def test_a_submission_of_winners_has_no_mean_probability_to_drift(arena: ReportArena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    (run.folder / "submission.csv").write_text("id,winner\n1,model_a\n2,model_a\n", encoding="utf-8")
    assert run_warnings(run, {}, [], [], {}) == []


def test_an_unreadable_submission_gives_a_warning(arena: ReportArena, tmp_path: Path) -> None:
    run = replace(load_run(write_run(tmp_path / "run", arena)))
    (run.folder / "submission.csv").write_text("id,winner_model_a\n1,0.5\n", encoding="utf-8")
    [warning] = run_warnings(run, {}, [], [], {})
    assert "submission.csv cannot be read" in warning


def test_a_quantised_base_that_changes_probabilities_too_much_is_named(arena: ReportArena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    small = {"quantise": "int8", "mean_probability": 0.004, "tolerance": 0.02}
    jobs = [
        {"folder": "fold-0", "score_drift": small},
        {"folder": "fold-1", "score_drift": small | {"mean_probability": 0.03}},
    ]
    before, after = (run_warnings(replace(run, jobs={"one": these}), {}, [], [], {}) for these in (jobs[:1], jobs))
    (new,) = [warning for warning in after if warning not in before]
    assert new.startswith("Drift: one fold-1: scoring in int8 changes a probability by 0.030")
