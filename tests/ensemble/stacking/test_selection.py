"""The choice among combiners, and single combiners against oracles."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensemble.features.design_matrix import add_member, add_terms, build_design, design_of
from ensemble.stacking.combiners import Greedy, Logistic, Mean, PlainMean, both_orders
from ensemble.stacking.selection import (
    KINDS,
    RULES,
    UNTUNED,
    candidates_of,
    choose,
    choose_out_of_fold,
    load_combiner,
    out_of_fold,
    refuse_absent,
    useful_members,
)
from oof.common.atomic_files import write_json
from oof.common.errors import UserError
from oof.config import Stack
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import SWAP, make_arena


@pytest.mark.parametrize("absent", [None, 2])
def test_the_logistic_combiner_is_scikit_learns_on_both_orders(absent: int | None) -> None:
    arena = make_arena(500, seed=4)
    labels = arena.labels if absent is None else np.minimum(arena.labels, 1)
    columns = arena.design.columns("lengths")
    given, swapped = (
        np.concatenate([z.reshape(500, -1), x[:, columns]], axis=1)
        for z, x in (
            (arena.design.pool, arena.design.x),
            (arena.design.pool[:, :, SWAP], arena.design.x_swapped),
        )
    )
    x, y = both_orders(given, swapped, labels)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(x, y)
    ours = softmax(Logistic.fit(arena.design, labels).logits(arena.design))
    expected = np.zeros((500, 3))
    expected[:, theirs[-1].classes_] = theirs.predict_proba(given)
    np.testing.assert_allclose(ours, expected, atol=5e-3)  # the optimum is symmetric up to the solver's tolerance


def test_greedy_selection_nears_the_best_weights_on_a_grid() -> None:
    arena = make_arena(800, seed=5)
    greedy = Greedy.fit(arena.design, arena.labels)
    probs = softmax(arena.design.pool * np.asarray(greedy.scales)[:, None])  # each after its own temperature
    grid = [(probs[:, 0] * w + probs[:, 1] * (1 - w)) for w in np.linspace(0, 1, 101)]
    best = min(log_loss(p, arena.labels) for p in grid)
    assert best - 1e-9 <= log_loss(softmax(greedy.logits(arena.design)), arena.labels) + 1e-6
    assert log_loss(softmax(greedy.logits(arena.design)), arena.labels) < best + 1e-3


def planted(losses: dict[str, float], n: int = 400, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Return logits of combiners whose mean log loss on label 0 is as given, each with its own noise by row."""
    rng, out = np.random.default_rng(0), {}
    for kind in losses:
        rows = rng.normal(size=n)
        p = np.exp(-np.clip(losses[kind] + noise * (rows - rows.mean()), 0.01, None))
        out[kind] = np.log(np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1))
    return out


def test_the_best_is_chosen_where_it_is_clearly_best() -> None:
    losses = {"mean": 1.0, "log_pool": 0.9, "greedy": 0.95, "logistic": 0.8, "lightgbm": 0.7}
    choice = choose("auto", planted(losses, noise=0.05), np.zeros(400, dtype=int), np.arange(400))
    assert choice.kind == "lightgbm"
    assert "smallest loss" in choice.reason


def test_the_simplest_within_one_standard_error_is_chosen() -> None:
    losses = {"mean": 1.0, "log_pool": 0.7005, "greedy": 0.7, "logistic": 0.7, "lightgbm": 0.6995}
    choice = choose("auto", planted(losses, noise=0.2), np.zeros(400, dtype=int), np.arange(400))
    assert choice.kind == "log_pool"
    assert "one standard error" in choice.reason
    assert choose("best", planted(losses, noise=0.2), np.zeros(400, dtype=int), np.arange(400)).kind == "lightgbm"
    named = choose("mean", planted(losses, noise=0.2), np.zeros(400, dtype=int), np.arange(400))
    assert (named.kind, named.weights) == ("mean", {"mean": 1.0})


def test_out_of_fold_logits_of_a_fold_ignore_its_labels() -> None:
    arena = make_arena(300, seed=6)
    changed = np.where(arena.folds == 1, (arena.labels + 1) % 3, arena.labels)
    design = add_terms(arena.design, arena.table)
    before, after = (out_of_fold(UNTUNED, design, y, arena.folds) for y in (arena.labels, changed))
    for kind in UNTUNED:
        np.testing.assert_array_equal(before[kind][arena.folds == 1], after[kind][arena.folds == 1])


def test_the_mean_does_not_depend_on_a_member_s_scale_and_the_plain_one_does() -> None:
    arena = make_arena(500, seed=7)
    scaled = {"one": arena.logits["one"], "two": 3 * arena.logits["two"]}
    design = build_design(arena.table, scaled)
    for kind, same in ((Mean, True), (Greedy, True), (PlainMean, False)):
        before, after = (kind.fit(d, arena.labels).logits(d) for d in (arena.design, design))
        assert np.allclose(softmax(before), softmax(after), atol=1e-4) == same


def test_a_member_that_says_nothing_is_left_out_and_one_that_says_little_is_kept() -> None:
    arena = make_arena(900, seed=8)
    rng = np.random.default_rng(0)
    weak = (0.3 * arena.logits["one"] + rng.normal(0, 1.0, (900, 2, 3))).astype(np.float32)
    nothing = rng.normal(0, 1.0, (900, 2, 3)).astype(np.float32)
    design = build_design(arena.table, {**arena.logits, "weak": weak, "nothing": nothing})
    rows = arena.labels, arena.folds, arena.groups
    assert useful_members(design, *rows) == ["one", "two", "weak"]
    assert useful_members(build_design(arena.table, {"nothing": nothing}), *rows) == []
    alone = add_member(design.keep(["nothing"]), "other", nothing)
    without_texts = design_of(alone.ids, pl.DataFrame(), {}, {"nothing": nothing})
    assert useful_members(without_texts, *rows) == ["nothing"]  # there is nothing else to learn from


def test_candidates_need_what_they_read() -> None:
    arena = make_arena(60)
    assert candidates_of(add_terms(arena.design, arena.table)) == KINDS
    assert set(KINDS) - set(candidates_of(arena.design)) == {"text"}
    bare = design_of(arena.design.ids, pl.DataFrame(), {}, arena.logits)
    assert set(KINDS) - set(candidates_of(bare)) == {"text", "length_only"}


def test_many_battles_have_no_extra_trees() -> None:
    logits = {"one": np.zeros((5_001, 2, 3), dtype=np.float32)}
    many = design_of([str(i) for i in range(5_001)], pl.DataFrame(), {}, logits)
    assert "extra_trees" not in candidates_of(many)
    assert "extra_trees" in candidates_of(many.take(np.arange(5_000)))
    with pytest.raises(UserError, match=r"stack.final=extra_trees is for at most 5,000 battles, not 5,001; choose one"):
        refuse_absent("extra_trees", many)


def calibrated(n: int, seed: int, noises: dict[str, float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return logits of candidates that see the truth through noise, and labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.2, (n, 3))
    labels = (rng.random(n)[:, None] > softmax(truth).cumsum(axis=1)[:, :2]).sum(axis=1)
    return {kind: truth + rng.normal(0, noise, (n, 3)) for kind, noise in noises.items()}, labels


def test_the_pool_gives_weight_by_knowledge_and_leaves_out_what_is_clearly_behind() -> None:
    logits, labels = calibrated(4000, 0, {"mean": 0.6, "logistic": 0.6, "lightgbm": 3.0})
    choice = choose("pool", logits, labels, np.arange(4000))
    assert choice.weights["mean"] == pytest.approx(0.5, abs=0.07)
    assert choice.weights["mean"] + choice.weights["logistic"] == pytest.approx(1)
    assert choice.reason.startswith("a pool of mean 0.5" if choice.weights["mean"] > 0.5 else "a pool of logistic 0.5")
    doubled = choose("pool", logits | {"logistic": 2 * logits["logistic"]}, labels, np.arange(4000))
    assert doubled.weights["logistic"] < 0.4  # not left out for its scale, but its scale counts
    expected = sum(w * np.log(softmax(logits[kind])) for kind, w in choice.weights.items())
    np.testing.assert_allclose(softmax(choice.combine(logits)), softmax(np.asarray(expected)), atol=1e-12)


def test_the_fewer_the_groups_the_closer_the_pool_is_to_equal_weights() -> None:
    logits, labels = calibrated(1200, 1, {"mean": 0.5, "logistic": 0.8, "lightgbm": 0.8})
    first = [choose("pool", logits, labels, np.arange(1200) % k).weights["mean"] for k in (6, 24, 1200)]
    assert 1 / 3 < first[0] < first[1] < first[2]
    single, of_one = (choose("pool", {"mean": logits["mean"]}, labels, np.arange(1200) % k).weights for k in (6, 1200))
    assert single == of_one == {"mean": 1.0}


def test_the_choice_for_the_calibrator_ignores_the_labels_of_the_fold() -> None:
    logits, labels = calibrated(600, 2, {"mean": 0.9, "logistic": 1.0, "lightgbm": 1.1})
    folds, groups = np.arange(600) % 3, np.arange(600)
    changed = np.where(folds == 1, (labels + 1) % 3, labels)
    for setting in ("pool", "best", "auto", "lightgbm"):
        before, after = (choose_out_of_fold(setting, logits, y, groups, folds) for y in (labels, changed))
        np.testing.assert_array_equal(before[folds == 1], after[folds == 1])


def test_a_candidate_that_the_battles_lack_is_an_error() -> None:
    design = make_arena(30).design
    for setting in (*RULES, *candidates_of(design)):
        refuse_absent(setting, design)
    with pytest.raises(UserError, match=r"stack\.final=text needs the texts.*choose one of pool, best, auto, prior"):
        refuse_absent("text", design)


def test_an_unknown_saved_combiner_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "combiner.json", {"kind": "os.system"})
    with pytest.raises(UserError, match=r"os\.system"):
        load_combiner(tmp_path)


def test_the_setting_offers_every_combiner_and_rule() -> None:
    (setting,) = (field for field in fields(Stack) if field.name == "final")
    assert set(setting.metadata["choices"]) == {*RULES, *KINDS}
