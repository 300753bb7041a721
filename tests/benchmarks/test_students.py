"""Benchmark of the student's settings: its noise floor against closed forms, its halves, its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import students_settings
from benchmarks.quality.choice_page import Outcome
from benchmarks.quality.real_battles import sample_half
from benchmarks.quality.students_page import Measured, section, share_kept
from benchmarks.quality.students_settings import FROM_MEMBER, PLAIN, Part, RealSet, arena, real, settings_of
from benchmarks.quality.vote_noise import fit_dirichlet, lowest_loss
from oof import config as configuration
from tests.fixtures.demo_run import ROOT

DEMO = ROOT / "configs" / "demo.yaml"
EVEN = np.log(3)


def test_the_floor_of_annotators_who_agree_is_zero_and_of_coin_throws_the_entropy_of_their_majority() -> None:
    assert lowest_loss(np.tile([[4, 0, 0], [0, 4, 0], [0, 0, 4]], (50, 1))) < 0.02
    one_vote = np.random.default_rng(0).multinomial(1, [1 / 3] * 3, size=600)
    coins = np.random.default_rng(0).multinomial(12, [1 / 3] * 3, size=2000)  # which show that the shares are equal
    assert lowest_loss(coins) == pytest.approx(EVEN, abs=0.05)
    # One vote a battle cannot show it: all battles could be clear.
    assert lowest_loss(one_vote) < EVEN
    # With two votes a majority other than a tie needs both: P(a) = P(b) = 1/9.
    pairs = np.random.default_rng(1).multinomial(2, [1 / 3] * 3, size=4000)
    p = np.array([1 / 9, 1 / 9, 7 / 9])
    assert lowest_loss(pairs) == pytest.approx(-(p * np.log(p)).sum(), abs=0.03)


def test_the_fitted_dirichlet_is_the_one_that_votes_were_drawn_from() -> None:
    rng, alpha = np.random.default_rng(0), np.array([2.0, 1.0, 0.5])
    votes = np.array([rng.multinomial(5, share) for share in rng.dirichlet(alpha, 4000)])
    np.testing.assert_allclose(fit_dirichlet(votes), alpha, rtol=0.1)


@pytest.mark.slow
def test_every_setting_is_a_valid_change_of_the_demo() -> None:
    plain = ["run=unused", students_settings.NO_PSEUDO_LABELS, "distill.start=base", "distill.student.train.epochs=1"]
    settings = {name: configuration.load(DEMO, [*plain, *changes]) for name, changes in settings_of(1.0, 160).items()}
    # The demo trains on both orders in a step already.
    same = [name for name, config in settings.items() if config == settings[PLAIN]]
    assert same == [PLAIN, "both orders in a step"]


def test_an_arena_s_unlabelled_battles_are_another_arena_s(tmp_path: Path) -> None:
    part = arena(tmp_path, 3, 20)
    config = part.config
    assert (config.seed, config.data.synth.seed, config.data.synth.battles) == (3, 3, 20)
    assert config.distill.pseudo_weight == 0
    assert arena(tmp_path, 4, 20).config.data.unlabelled != config.data.unlabelled
    assert pl.read_csv(config.data.unlabelled[0]).height == 20


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(1, 100))
def test_the_halves_share_no_prompt_and_do_not_depend_on_the_order_of_rows(numbers: list[int], n: int) -> None:
    table = pl.DataFrame({"id": range(len(numbers)), "prompt": [f"prompt {i}" for i in numbers]})
    halves = {half: sample_half(table, half, len(numbers)) for half in ("report", "develop")}
    prompts = {half: set(part["prompt"]) for half, part in halves.items()}
    assert not prompts["report"] & prompts["develop"]
    assert sum(part.height for part in halves.values()) == table.height
    assert set(sample_half(table.reverse(), "report", table.height)["prompt"]) == prompts["report"]
    few = sample_half(table, "report", n)
    assert few.height == min(n, halves["report"].height)
    assert few["id"].is_sorted()


def test_the_halves_of_real_battles_share_no_prompt_and_votes_keep_their_battle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame({"id": [str(i) for i in range(40)]}).with_columns(
        prompt=pl.format('["prompt {}"]', pl.int_range(40) // 4), response_a=pl.lit('["yes"]'),
        response_b=pl.lit('["no"]'), winner_model_a=pl.lit(1), winner_model_b=pl.lit(0), winner_tie=pl.lit(0),
    )  # fmt: skip
    frame.write_csv(tmp_path / "chats.csv")
    frame.select("id", votes_a=pl.int_range(40) + 1, votes_b=pl.lit(1), votes_tie=pl.lit(0)).write_csv(
        tmp_path / "chats_votes.csv"
    )
    monkeypatch.setitem(students_settings.REAL, "chats", RealSet(("chats.csv",), (), 96, 12, 1.0))
    sizes = {"battles": 0, "tokens": 0, "epochs": 0.0}
    prompts = {}
    for half in students_settings.HALVES:
        part = real("chats", half, tmp_path, tmp_path, tmp_path, sizes)
        data = part.config.data
        scored, others = pl.read_csv(data.train[0]), pl.read_csv(data.unlabelled[0])
        assert (scored.height, others.height) == (12, 8)
        assert set(scored["id"]) & set(others["id"]) == set()
        votes = pl.read_csv(data.votes[0], infer_schema=False)
        assert set(votes["id"]) == set(scored["id"])
        assert (votes["votes_a"].cast(pl.Int64) == votes["id"].str.extract(r"(\d+)$").cast(pl.Int64) + 1).all()
        prompts[half] = set(scored["prompt"]) | set(others["prompt"])
    assert prompts["develop"] & prompts["report"] == set()
    both = real("chats", students_settings.BOTH, tmp_path, tmp_path, tmp_path, sizes | {"battles": 40})
    assert set(pl.read_csv(both.config.data.train[0])["prompt"]) == prompts["develop"] | prompts["report"]


def of_seed(seed: int, set_name: str = "arena", **losses: float) -> Measured:
    rows = {name.replace("__", ":"): np.full(20, loss) for name, loss in losses.items()}
    part = Part(set_name, seed, DEMO, ["run=unused"])
    floor = np.where(np.arange(20) < 10, 0.5, np.nan)
    return Measured(part, {**rows, "groups": np.arange(20) + 100 * seed}, floor, {PLAIN: 1.5}, np.arange(20) < 5)


def test_a_section_pools_seeds_and_says_what_is_missing() -> None:
    both = {PLAIN: 0.9, "calibrated": 0.8, "member__one": 1.0}
    text = "\n".join(section("arena", [of_seed(0, **both, **{"three seeds": 0.85}), of_seed(1, **both)]))
    plain, seeds = (next(line for line in text.splitlines() if line.startswith(f"| {row}")) for row in (PLAIN, "three"))
    assert plain == f"| {PLAIN} | 0.9000 |  | +0.1000 [+0.1000, +0.1000] | -0.1000 [-0.1000, -0.1000] | +0.4000 | 3.0 |"
    assert seeds.startswith("| three seeds (1 of 2 seeds) | 0.8500 | -0.0500 [-0.0500, -0.0500] |")
    assert "40 battles in 40 groups of 2 seeds" in text
    assert "cut 25% of the battles" in text
    assert "Not measured yet: hard labels only" in text


def test_claims_on_real_battles_have_a_verdict_each_by_interval_or_limit() -> None:
    losses = {"calibrated": 0.8, "member__one": 0.9, "text": 0.7, FROM_MEMBER: 0.83}
    text = "\n".join(section("chats, report half", [of_seed(0, "chats, report half", **losses)]))
    assert "| calibrated beside member:one: better, interval below 0 | yes: -0.1000 [-0.1000, -0.1000] |" in text
    assert "| calibrated beside text: better, interval below 0 | **no**: +0.1000 [+0.1000, +0.1000] |" in text
    assert f"| {FROM_MEMBER} beside hard labels only: better, interval below 0 | not measured |" in text
    assert f"| {FROM_MEMBER} beside calibrated: at most 0.03 behind | yes: +0.0300 [+0.0300, +0.0300] |" in text
    behind = "\n".join(section("chats", [of_seed(0, "chats", **losses | {FROM_MEMBER: 0.84})]))
    assert f"| {FROM_MEMBER} beside calibrated: at most 0.03 behind | **no**: +0.0400" in behind


def test_what_remains_names_the_nearest_setting_and_splits_the_distance_by_cut() -> None:
    losses = {"calibrated": 0.8, "member__one": 0.9, PLAIN: 0.85, FROM_MEMBER: 0.9, "length hints": 0.82}
    measured = of_seed(0, "chats", **losses)
    measured.losses[FROM_MEMBER] = np.where(measured.cut, 1.0, 0.83)
    text = "\n".join(section("chats", [measured]))
    assert "interval below 0: length hints. Nearest to calibrated\nis *length hints*; it leaves +0.0200 [" in text
    assert f"*{FROM_MEMBER}* beside calibrated: +0.0300 [+0.0300, +0.0300] on the 15 battles that were read" in text
    assert "too few groups for a verdict (5) on the 5 battles that were cut" in text
    none = "\n".join(section("chats", [of_seed(0, "chats", **losses | {"length hints": 1})]))
    assert "interval below 0: none" in none


def test_what_the_student_keeps_is_said_where_the_ensemble_is_better_than_its_best_member() -> None:
    losses = {"calibrated": 0.8, "member__one": 1.0, PLAIN: 0.9, FROM_MEMBER: 0.85}
    text = "\n".join(section("chats", [of_seed(0, "chats", **losses)]))
    assert "It keeps 0.75 [0.75, 0.75] of what calibrated gains on member:one." in text
    assert "costs it one model, and\ncalibrated 6: 2 members with 3 fold jobs each." in text
    assert "It keeps" not in "\n".join(section("chats", [of_seed(0, "chats", **losses | {"member__one": 0.7})]))


@pytest.mark.parametrize("n_groups", [8, 100])
def test_the_share_that_is_kept_has_an_interval_that_holds_its_true_value(n_groups: int) -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gain = np.repeat(rng.normal(0.2, 0.1, n_groups), 5)
        kept = 0.7 * gain + np.repeat(rng.normal(0, 0.05, n_groups), 5)
        losses = {"one": np.ones(5 * n_groups), "calibrated": 1 - gain, FROM_MEMBER: 1 - kept}
        share = share_kept({**losses, "groups": np.repeat(np.arange(n_groups), 5)}, "one")
        held += share["low"] <= 0.7 <= share["high"]
    assert held >= 177  # of 200, where 95 % are 190: four standard errors below


def test_differences_are_over_the_seeds_that_have_both() -> None:
    seeds = [{"groups": np.arange(20), "one": np.full(20, 1.0), "two": np.full(20, 0.9)}]
    seeds.append({"groups": np.arange(20) + 100, "one": np.full(20, 9.0)})
    assert Outcome("arena", seeds).difference("one", "two")["value"] == pytest.approx(0.1)
