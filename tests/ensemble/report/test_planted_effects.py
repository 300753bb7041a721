"""Planted effects: found where they were planted in synthetic arenas, and nowhere else."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.report.junk_prompts import junk_report
from ensemble.report.make import collect
from ensemble.report.page_elements import interval
from ensemble.report.predictor_comparison import compare_members
from ensemble.report.run_data import RunData, load_run
from ensemble.report.slices import battle_properties, slices_of
from ensemble.report.ties import tie_report
from oof.data.prompt_quality import JUNK, prompt_flags, prompt_quality
from oof.metrics import softmax_mean
from tests.fixtures.report_runs import WORDS, make_report_arena, write_run
from tests.fixtures.small_tables import words


def pair_of(gain: float, seed: int) -> dict:
    """Return the comparison of the two members of an arena."""
    arena = make_report_arena(3000, seed=seed, corpus_gain=gain)
    properties = battle_properties(arena.table)
    run = RunData(
        folder=Path("unused"),
        record={},
        table=arena.table,
        labels=arena.labels,
        groups=arena.groups,
        folds=arena.table["fold"].to_numpy(),
        logits=arena.logits,
        probs={name: softmax_mean(z) for name, z in arena.logits.items()},
        in_corpus=arena.in_corpus,
    )
    [pair] = compare_members(run, properties, slices_of(properties, run.labels, run.in_corpus))
    return pair


def test_a_member_that_is_better_on_prompts_in_the_corpus_only_is_found() -> None:
    pair = pair_of(gain=0.9, seed=1)
    effect = pair["seen"]
    assert effect["difference"]["low"] > 0
    assert effect["matched"]["low"] > 0
    assert effect["seen"]["low"] > 0
    assert effect["unseen"]["low"] < 0 < effect["unseen"]["high"]
    assert effect["finding"] == "larger on prompts in the corpus"
    findings = {row["slice"]: row["finding"] for row in pair["slices"]}
    assert findings["in corpus"] == "one better"
    assert findings["not in corpus"] == "no difference shown"


@pytest.mark.parametrize("seed", [2, 3])
def test_no_effect_of_the_corpus_is_found_without_one(seed: int) -> None:
    pair = pair_of(gain=0.0, seed=seed)
    assert pair["seen"]["difference"]["low"] < 0 < pair["seen"]["difference"]["high"]
    assert pair["seen"]["matched"]["low"] < 0 < pair["seen"]["matched"]["high"]
    assert pair["seen"]["finding"] == "no difference shown"
    assert {row["finding"] for row in pair["slices"]} == {"no difference shown"}


def test_only_the_member_that_is_blind_to_ties_is_reported() -> None:
    arena = make_report_arena(1500, seed=4, blind=True)
    reports = {name: tie_report(softmax_mean(z), arena.labels, arena.groups, 0) for name, z in arena.logits.items()}
    assert reports["two"] is not None
    assert reports["one"] is not None
    assert reports["two"]["verdict"] == "blind to ties"
    assert reports["one"]["verdict"] == "sees ties"


def test_a_member_with_low_tie_probabilities_is_weak_on_ties() -> None:
    arena = make_report_arena(1500, seed=5)
    z = arena.logits["one"] - np.array([0, 0, 3], dtype=np.float32)
    report = tie_report(softmax_mean(z), arena.labels, arena.groups, 0)
    assert report is not None
    assert report["verdict"] == "weak on ties"
    assert report["recall"] < 0.2


def junk_prompt(rng: np.random.Generator) -> tuple[str, str]:
    kind = ["no_words", "gibberish", "one_token", "repeats_itself", "template"][rng.integers(5)]
    letters = list(string.ascii_lowercase)
    text = {
        "no_words": "?!.. ~" * int(rng.integers(1, 4)),
        "gibberish": " ".join("".join(rng.choice(letters, size=9)) for _ in range(8)),
        "one_token": str(rng.choice(["hi", "test", "ok", "hello", "12345"])),
        "repeats_itself": "buy now " * int(rng.integers(20, 60)),
        "template": "[INST] " + words(rng, 8, WORDS) + " [/INST]",
    }[kind]
    return kind, text


def test_junk_is_found_at_the_planted_share_within_two_points() -> None:
    rng = np.random.default_rng(6)
    arena = make_report_arena(2000, seed=6)
    planted = rng.random(2000) < 0.15
    prompts = [
        [junk_prompt(rng)[1]] if bad else row for bad, row in zip(planted, arena.table["prompt"].to_list(), strict=True)
    ]
    table = arena.table.with_columns(prompt=pl.Series(prompts))
    report = junk_report(table, {"one": softmax_mean(arena.logits["one"])}, arena.labels, arena.groups, 0)
    assert report["share"]["value"] == pytest.approx(planted.mean(), abs=0.02)
    assert report["share"]["low"] < report["n_junk"] / 2000 < report["share"]["high"]


def test_each_kind_of_junk_is_recognised() -> None:
    rng = np.random.default_rng(7)
    drawn = [junk_prompt(rng) for _ in range(1000)]
    flags = prompt_flags(pl.Series([text for _, text in drawn]))
    for kind in flags.columns:
        rows = [i for i, (planted, _) in enumerate(drawn) if planted == kind]
        assert flags[kind].gather(rows).mean() >= 0.95, kind
    assert (prompt_quality(pl.Series([text for _, text in drawn])) < JUNK).mean() > 0.98


GOOD = [
    "What is the capital of France?",
    "Schreiben Sie bitte einen kurzen Brief an die Angestellten, der die neuen Öffnungszeiten erklärt.",
    "Napisz krótki wiersz o szczęściu i chrząszczu w trzcinie.",
    "Jak mohu vypnout automatické přehrávání? Strč prst skrz krk.",
    "Escribe un correo para pedir vacaciones en agosto",
    "Türkçe bir yüzyıl önce yazılmış şiirleri açıklar mısın?",
    "请解释量子纠缠",
    "你好",
    "Объясни теорию относительности простыми словами",
    "量子コンピュータとは何ですか",
    "Fix this: ```for i in xrange(10): print zip(qx, jx)```",
    "def qsort(xs): return xs if len(xs) < 2 else [*qsort([x for x in xs[1:] if x < xs[0]])]",
    "Explain https://example.com/qwxzj/vbnkq please",
    "1 + 1 = ?",
    "Viết một bài thơ về mùa thu ở Hà Nội",
    "Kirjoita lyhyt tarina kissasta, joka löysi järven rannalta vanhan veneen.",
    "XML, HTML, CSS and SQL: which of them are languages?",
    "yes and no and yes and no: write a poem of these words",
]


@pytest.mark.parametrize("text", GOOD)
def test_real_prompts_in_many_languages_are_not_junk(text: str) -> None:
    assert prompt_quality(pl.Series([text]))[0] == 1.0


def test_battles_whose_responses_are_both_bad_are_a_slice_where_they_were_kept(tmp_path: Path) -> None:
    """Under ``data.both_bad: keep``; a file without such verdicts leaves the column empty."""
    arena = make_report_arena(200)
    ties = np.flatnonzero(arena.labels == 2)
    bad: list[bool | None] = [None] * 200
    for i in ties:
        bad[i] = bool(i in ties[:25])
    kept = arena._replace(table=arena.table.with_columns(pl.Series("both_bad", bad, dtype=pl.Boolean)))
    run = load_run(write_run(tmp_path / "Lauf ü", kept))
    rows = {row["slice"]: row for row in collect(run)["members"][0]["slices"]}
    losses = -np.log(run.probs["one"][np.arange(200), arena.labels])
    assert rows["both bad"]["loss_first"] == pytest.approx(losses[ties[:25]].mean(), abs=1e-6)
    assert rows["both bad"]["advantage"]["low"] < rows["both bad"]["advantage"]["high"]
    assert (rows["both bad"]["n"], rows["not both bad"]["n"]) == (25, 175)
    assert "both bad" not in {part.name for part in slices_of(battle_properties(arena.table), arena.labels)}


def test_five_groups_show_differences_without_bounds_and_verdicts(tmp_path: Path) -> None:
    arena = make_report_arena(300, seed=5, corpus_gain=0.9)
    groups = arena.groups % 5
    table = arena.table.with_columns(group=pl.Series(groups), fold=pl.Series(groups % 3, dtype=pl.Int32))
    run = write_run(tmp_path / "five", arena._replace(table=table, groups=groups))
    report = collect(load_run(run))
    verdict = "too few groups for a verdict (5)"
    (pair,) = report["members"]
    assert pair["overall"]["advantage"]["value"] != 0
    assert pair["overall"]["advantage"]["low"] is None
    findings = {row["finding"] for row in [pair["overall"], *pair["slices"]]}
    assert all(finding.startswith("too few groups for a verdict (") for finding in findings)
    assert pair["overall"]["finding"] == verdict
    assert report["ties"]["predictors"]["one"]["verdict"] == verdict
    assert verdict in report["summary"]["submit"]["reason"]
    assert f"<small>{verdict}</small>" in str(interval(pair["overall"]["advantage"], signed=True))
