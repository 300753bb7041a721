"""The suite that every combiner, and a new entry of COMBINERS, must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.features.design_matrix import Design, add_terms, build_design
from ensemble.features.term_counts import TermCounts
from ensemble.stacking.baselines import BASELINES
from ensemble.stacking.combiners import Combiner
from ensemble.stacking.lightgbm_stacker import ExtraTrees, Stacker
from ensemble.stacking.selection import KINDS, POOL, UNTUNED, Choice, Pool, load_combiner
from oof.common.errors import UserError
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import SWAP, Arena, make_arena

Fit = Callable[[Design, np.ndarray], Combiner]
PARAMS = {"learning_rate": 0.1, "num_leaves": 6, "min_data_in_leaf": 5, "bagging_fraction": 0.8}


def fitter(kind: str) -> Fit:
    if kind in UNTUNED:
        return UNTUNED[kind].fit
    if kind == POOL:
        return fit_mixture
    boosted = ExtraTrees if kind == ExtraTrees.kind else Stacker
    return lambda design, labels: boosted.fit(design, labels, PARAMS, 15, seed=3)


def fit_mixture(design: Design, labels: np.ndarray) -> Combiner:
    weights = {"length_only": 0.1, "text": 0.2, "log_pool": 0.3, "extra_trees": 0.1, "lightgbm": 0.3}
    return Pool.of(Choice(POOL, weights, ""), {part: fitter(part)(design, labels) for part in weights})


def swapped(design: Design) -> Design:
    terms = design.terms
    assert terms is not None
    return replace(
        design,
        x=design.x_swapped,
        x_swapped=design.x,
        pool=design.pool[:, :, SWAP],
        orders=design.orders[:, :, ::-1, SWAP],
        terms=TermCounts(terms.b, terms.a, terms.log_words[:, ::-1]),
    )


@pytest.fixture(scope="module")
def arena() -> Arena:
    arena = make_arena(400)
    return arena._replace(design=add_terms(arena.design, arena.table))


ALL = (*KINDS, POOL)
READ_MEMBERS = [kind for kind in ALL if kind not in BASELINES]


@pytest.mark.parametrize("kind", ALL)
def test_gives_a_distribution_for_every_battle(arena: Arena, kind: str) -> None:
    probs = softmax(fitter(kind)(arena.design, arena.labels).logits(arena.design))
    assert probs.shape == (400, 3)
    assert (probs > 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1)


@pytest.mark.parametrize("kind", ALL)
def test_swapping_the_responses_swaps_the_logits_to_the_last_bit(arena: Arena, kind: str) -> None:
    combiner = fitter(kind)(arena.design, arena.labels)
    logits = combiner.logits(arena.design)
    np.testing.assert_array_equal(combiner.logits(swapped(arena.design)), logits[:, SWAP])
    if kind != "prior":
        assert np.abs(logits[:, 0] - logits[:, 1]).max() > 0.1  # not by ignoring the responses


@pytest.mark.parametrize("kind", ALL)
def test_predicts_each_battle_from_its_own_row(arena: Arena, kind: str) -> None:
    combiner = fitter(kind)(arena.design, arena.labels)
    rows = np.random.default_rng(1).permutation(400)[:250]
    part = arena.design.take(rows)
    assert part.ids == [arena.design.ids[i] for i in rows]
    np.testing.assert_allclose(combiner.logits(part), combiner.logits(arena.design)[rows], atol=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_is_the_same_after_saving_and_its_files_hold_no_code(arena: Arena, kind: str, tmp_path: Path) -> None:
    combiner = fitter(kind)(arena.design, arena.labels)
    combiner.save(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".txt"}
    loaded = load_combiner(tmp_path)
    assert loaded.kind == kind
    np.testing.assert_array_equal(loaded.logits(arena.design), combiner.logits(arena.design))


@pytest.mark.parametrize("kind", ALL)
def test_the_same_data_and_seed_give_the_same_files(arena: Arena, kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fitter(kind)(arena.design, arena.labels).save(tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("kind", READ_MEMBERS)
def test_one_member_is_enough(arena: Arena, kind: str) -> None:
    design = arena.design.keep(["one"])
    probs = softmax(fitter(kind)(design, arena.labels).logits(design))
    assert log_loss(probs, arena.labels) < log_loss(np.full((400, 3), 1 / 3), arena.labels) - 0.05


@pytest.mark.parametrize("kind", READ_MEMBERS)
def test_a_member_with_constant_logits_is_harmless(arena: Arena, kind: str) -> None:
    constant = np.zeros((400, 2, 3), dtype=np.float32)
    design = add_terms(build_design(arena.table, {**arena.logits, "constant": constant}), arena.table)
    probs = softmax(fitter(kind)(design, arena.labels).logits(design))
    without = softmax(fitter(kind)(arena.design, arena.labels).logits(arena.design))
    slack = 0.1 if kind == "mean" else 0.01  # a mean cannot leave a member out
    assert log_loss(probs, arena.labels) < log_loss(without, arena.labels) + slack


@pytest.mark.parametrize("kind", READ_MEMBERS)
def test_reads_the_members_that_it_was_fitted_on_whatever_others_there_are(arena: Arena, kind: str) -> None:
    noise = np.random.default_rng(0).normal(size=(400, 2, 3)).astype(np.float32)
    logits = {"noise": noise, "two": arena.logits["two"], "one": arena.logits["one"]}
    design = add_terms(build_design(arena.table, logits), arena.table)
    combiner = fitter(kind)(arena.design, arena.labels)
    np.testing.assert_array_equal(combiner.logits(design), combiner.logits(arena.design))
    with pytest.raises(UserError, match="'two', whose logits these battles lack"):
        combiner.logits(arena.design.keep(["one"]))


@pytest.mark.parametrize("kind", READ_MEMBERS)
def test_logits_that_are_not_finite_are_refused(arena: Arena, kind: str) -> None:
    pool = arena.design.pool.copy()
    pool[7, 1, 2] = np.nan
    broken = replace(arena.design, pool=pool)
    with pytest.raises(UserError, match=r"1 battles have logits that are not finite.*'two'"):
        fitter(kind)(arena.design, arena.labels).logits(broken)
    with pytest.raises(UserError, match="not finite"):
        fitter(kind)(broken, arena.labels)


@pytest.mark.parametrize("kind", ALL)
def test_few_rows_and_an_absent_class_are_accepted(arena: Arena, kind: str) -> None:
    few = arena.design.take(np.arange(57))
    for labels in (arena.labels[:57], np.minimum(arena.labels[:57], 1), np.full(57, 2)):
        logits = fitter(kind)(few, labels).logits(few)
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(fitter(kind)(few, labels).logits(swapped(few)), logits[:, SWAP])


def without_ties() -> tuple[Design, np.ndarray]:
    """Return battles that cannot end in a tie, with a pinned tie in every member's logits."""
    arena = make_arena(300, seed=12)
    decided = np.flatnonzero(arena.labels < 2)
    pinned = {name: np.concatenate([z[..., :2], z[..., :2].mean(axis=-1, keepdims=True) - 2000], axis=-1)
              for name, z in arena.logits.items()}  # fmt: skip
    design = add_terms(build_design(arena.table, pinned), arena.table)
    return design.take(decided), arena.labels[decided]


@pytest.mark.parametrize("kind", ALL)
def test_where_no_battle_can_end_in_a_tie_its_probability_is_zero(kind: str) -> None:
    design, labels = without_ties()
    combiner = fitter(kind)(design, labels)
    logits = combiner.logits(design)
    np.testing.assert_allclose(logits[:, 2], logits[:, :2].mean(axis=1) - 2000, atol=1e-9)
    assert softmax(logits)[:, 2].max() == 0
    np.testing.assert_array_equal(combiner.logits(swapped(design)), logits[:, SWAP])


@pytest.mark.parametrize("kind", ALL)
def test_only_the_text_baseline_and_a_pool_with_it_read_the_terms(arena: Arena, kind: str) -> None:
    assert fitter(kind)(arena.design, arena.labels).reads_terms == (kind in ("text", POOL))
