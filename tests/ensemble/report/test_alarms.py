"""Each warning of the summary appears where its cause is planted, and not without it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble.report.alarms import warnings
from ensemble.report.data import load_run
from ensemble.report.make import write_report
from ensemble.stacking.leakage import possibly_in_sample
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import write_json
from oof.metrics import row_log_loss, softmax_mean
from tests.fixtures.report_runs import STACK, Arena, make_arena, write_run


def said(run: Path) -> list[str]:
    """Return the warnings of a run, of which the page shows exactly those of report.json.

    The audit would take the fixtures' fold jobs, which nothing was trained for, for what they are.
    """
    for folder in run.glob("oof/*/fold-0"):
        shutil.rmtree(folder)
    page = write_report(run).read_text(encoding="utf-8")
    found: list[str] = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))["summary"]["warnings"]
    for warning in found:
        assert warning.replace("'", "&#39;").replace(">", "&gt;") in page
    assert ("No warnings" in page) == (found == [])
    return found


def kinds(warnings_: list[str]) -> set[str]:
    return {warning.split(":")[0] for warning in warnings_} - {"Audit"}  # "logits come from elsewhere"


@pytest.fixture
def arena() -> Arena:
    """An honest run: each group has a prompt of its own, which the audit would miss otherwise."""
    arena = make_arena(600, seed=21)
    prompts = [[" ".join(f"w{group * 31 + k * k * 7}" for k in range(9))] for group in arena.groups]
    return arena._replace(table=arena.table.with_columns(prompt=pl.Series(prompts)))


def test_an_honest_run_has_no_warning(arena: Arena, tmp_path: Path) -> None:
    assert kinds(said(write_run(tmp_path / "run", arena))) == set()


def test_a_member_that_saw_the_labels_is_named(arena: Arena, tmp_path: Path) -> None:
    leaked = arena.logits["two"] + 4 * np.eye(3, dtype=np.float32)[arena.labels][:, None]
    logits = arena.logits | {"two": leaked}
    suspects = possibly_in_sample(logits, arena.labels, arena.groups % 3, 0.05, 0)
    run = write_run(tmp_path / "run", arena._replace(logits=logits))
    write_json(run / "stack" / "manifest.json", STACK | {"possibly_in_sample": suspects})
    [warning] = [text for text in said(run) if text.startswith("Possible leak")]
    assert "two is possibly in-sample" in warning
    assert suspects["two"][0] in warning
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["summary"]["possibly_in_sample"] == suspects


def test_a_predictor_better_than_the_truth_is_named(arena: Arena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    losses = {name: row_log_loss(p, run.labels) for name, p in (run.probs | {"bayes": arena.truth}).items()}
    honest = warnings(run, losses, [], [], {})
    known = 0.9 * np.eye(3)[run.labels] + 0.1 / 3
    found = warnings(run, losses | {"one": row_log_loss(known, run.labels)}, [], [], {})
    assert honest == []
    assert [text.split(",")[0] for text in found] == ["Possible leak: one is better than the true class probabilities"]


def test_a_group_on_both_sides_of_a_fold_is_a_possible_leak(arena: Arena, tmp_path: Path) -> None:
    several = np.flatnonzero(np.bincount(arena.groups, minlength=700)[arena.groups] > 1)[0]
    folds = arena.table["fold"].to_numpy().copy()
    folds[several] = (folds[several] + 1) % 3
    run = write_run(tmp_path / "run", arena._replace(table=arena.table.with_columns(fold=pl.Series(folds))))
    assert any(text.startswith("Possible leak: ") and "group" in text for text in said(run))


def test_a_rare_verdict_is_an_imbalance(arena: Arena, tmp_path: Path) -> None:
    kept = np.flatnonzero((arena.labels != 2) | (np.arange(600) % 8 == 0))
    few = Arena(arena.table[kept], arena.labels[kept], arena.groups[kept],
                {name: z[kept] for name, z in arena.logits.items()}, arena.seen[kept], arena.truth[kept])  # fmt: skip
    share = 100 * np.mean(few.labels == 2)
    assert f"Imbalance: only {share:.1f} % of the verdicts are 'tie'." in said(write_run(tmp_path / "run", few))


def test_many_truncated_battles_are_named(arena: Arena, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", arena))
    tokens: list[dict[str, Any]] = [{"tokenizer": "t", "budget": 64, "truncated": 0.1}]
    assert warnings(run, {}, [], tokens, {}) == []
    tokens[0]["truncated"] = 0.125
    [found] = warnings(run, {}, [], tokens, {})
    assert found == "Truncation: 12.5 % of the battles are longer than prompts.max_tokens = 64 (tokenizer t)."


def test_a_member_blind_to_ties_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_arena(900, seed=22, blind=True), stages=False)
    assert [text for text in said(run) if text.startswith("Ties")] == ["Ties: two is blind to ties."]


def test_a_fold_whose_model_did_not_learn_has_drifted(arena: Arena, tmp_path: Path) -> None:
    failed = arena.logits["two"].copy()
    failed[arena.groups % 3 == 1] *= -1
    run = write_run(tmp_path / "run", arena._replace(logits=arena.logits | {"two": failed}), stages=False)
    drifted = [text for text in said(run) if text.startswith("Drift: two in fold 1")]
    p, at = softmax_mean(failed), arena.groups % 3 == 1
    losses = -np.log(p[np.arange(600), arena.labels])
    assert f"loses {losses[at].mean() - losses[~at].mean():+.3f} nats" in drifted[0]
    assert not [text for text in said(run) if text.startswith("Drift: one")]


@pytest.mark.parametrize(("n", "warned"), [(400, True), (4, False)])
def test_a_submission_whose_shares_are_others_has_drifted(n: int, warned: bool, arena: Arena, tmp_path: Path) -> None:
    """Of four battles nobody can tell."""
    run = write_run(tmp_path / "run", arena)
    shares = np.bincount(arena.labels, minlength=3) / 600 + [0.12, -0.06, -0.06]
    frame = pl.DataFrame({"id": range(n), **dict(zip(WINNER_COLUMNS, shares.tolist(), strict=True))})
    frame.write_csv(run / "submission.csv")
    drift = [text for text in said(run) if text.startswith("Drift")]
    assert drift == [f"Drift: the submission expects 'A wins' in {100 * shares[0]:.1f} % of its battles, but "
                     f"{100 * shares[0] - 12:.1f} % of the verdicts are that."] * warned  # fmt: skip


def test_a_damaged_submission_is_said_to_be(arena: Arena, tmp_path: Path) -> None:
    run = replace(load_run(write_run(tmp_path / "run", arena)))
    (run.folder / "submission.csv").write_text("id,winner_model_a\n1,0.5\n", encoding="utf-8")
    [found] = warnings(run, {}, [], [], {})
    assert "submission.csv cannot be read" in found
