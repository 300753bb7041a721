"""Stage two: which members it suspects."""

from __future__ import annotations

import numpy as np

from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import suspected_members
from oof.config import Config, Stack
from tests.fixtures.arenas import make_arena


def test_logits_from_elsewhere_are_suspected_and_a_run_s_own_fold_jobs_are_not() -> None:
    arena = make_arena(300)
    seen = arena.logits["two"] / 3 + 3 * np.eye(3, dtype=np.float32)[arena.labels][:, None]
    inputs = Inputs(arena.table, arena.labels, arena.groups, arena.folds, arena.logits | {"two": seen})
    elsewhere = Config(stack=Stack(logits={"one": "one.csv", "two": "two.csv"}))
    assert list(suspected_members(elsewhere, inputs)) == ["two"]
    assert suspected_members(Config(), inputs) == {}
