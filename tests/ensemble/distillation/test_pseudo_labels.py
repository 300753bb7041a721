"""Battles beside the scored ones: when unlabelled ones are used, the share that is drawn, their weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ensemble.distillation.pseudo_labels import loss_weights, unscored_battles
from oof import config as configuration
from oof.common.errors import UserError
from tests.fixtures.small_tables import table_of
from tests.fixtures.student_plans import EXTRA, ROLES, UNLABELLED, N
from tests.fixtures.trained_students import DEMO

TABLE = table_of(["p"] * N, role=ROLES.tolist()).with_columns(weight=pl.lit(1.0))


def test_unlabelled_battles_are_used_only_where_a_loss_term_has_soft_targets() -> None:
    config = configuration.load(DEMO, ["run=unused"])
    assert n_unscored(config) == UNLABELLED + EXTRA
    assert n_unscored(config, pseudo_weight=0.0) == EXTRA
    assert n_unscored(config, losses=configuration.Losses(ce=1, kl=0)) == EXTRA


def test_a_share_of_the_unlabelled_battles_is_drawn_by_the_seed_and_part_of_every_larger_share() -> None:
    def left_out(share: float, seed: int = 0) -> set[int]:
        config = configuration.load(DEMO, ["run=unused", f"distill.pseudo_share={share}", f"seed={seed}"])
        return set(np.flatnonzero(loss_weights(TABLE, config) == 0).tolist())

    assert left_out(1.0) == set()
    assert len(left_out(0.3)) == 6  # of 9, rounded in favour of training
    assert left_out(0.6) < left_out(0.3) < set(range(N - UNLABELLED, N))
    assert left_out(0.3) != left_out(0.3, seed=1)


def n_unscored(config: configuration.Config, **changes: object) -> int:
    return pl.concat(unscored_battles(TABLE, replace(config.distill, **changes))).height


def test_an_unlabelled_battle_has_its_own_weight_and_rounds_need_such_battles() -> None:
    config = configuration.load(DEMO, ["run=unused", "distill.pseudo_weight=0.25"])
    np.testing.assert_array_equal(loss_weights(TABLE, config), np.where(ROLES == "unlabelled", 0.25, 1.0))
    rounds = configuration.load(DEMO, ["run=unused", "distill.rounds=2"])
    assert len(loss_weights(TABLE, rounds)) == N
    with pytest.raises(UserError, match=r"distill\.rounds=2.*none is in use here; set distill\.rounds=1"):
        loss_weights(TABLE.filter(pl.col("role") != "unlabelled"), rounds)
