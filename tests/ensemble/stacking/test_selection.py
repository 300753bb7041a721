"""The choice among combiners, and single combiners against oracles."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensemble.stacking.combiners import COMBINERS, LOGISTIC_C, Greedy, Logistic, both_orders
from ensemble.stacking.selection import KINDS, RULES, choose, load_combiner, out_of_fold
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
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=LOGISTIC_C, max_iter=1000)).fit(x, y)
    ours = softmax(Logistic.fit(arena.design, labels).logits(arena.design))
    expected = np.zeros((500, 3))
    expected[:, theirs[-1].classes_] = theirs.predict_proba(given)
    np.testing.assert_allclose(ours, expected, atol=5e-3)  # the optimum is symmetric up to the solver's tolerance


def test_greedy_selection_nears_the_best_weights_on_a_grid() -> None:
    arena = make_arena(800, seed=5)
    greedy = Greedy.fit(arena.design, arena.labels)
    probs = softmax(arena.design.pool)
    grid = [(probs[:, 0] * w + probs[:, 1] * (1 - w)) for w in np.linspace(0, 1, 101)]
    best = min(log_loss(p, arena.labels) for p in grid)
    assert best - 1e-9 <= log_loss(softmax(greedy.logits(arena.design)), arena.labels) + 1e-6
    assert log_loss(softmax(greedy.logits(arena.design)), arena.labels) < best + 1e-3


def planted(losses: dict[str, float], n: int = 400, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Return logits of combiners whose mean log loss on label 0 is as given, each with its own noise by row."""
    rng, out = np.random.default_rng(0), {}
    for kind in KINDS:
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
    assert choose("lightgbm", {}, np.zeros(0, dtype=int), np.zeros(0, dtype=int)).kind == "lightgbm"


def test_out_of_fold_logits_of_a_fold_ignore_its_labels() -> None:
    arena = make_arena(300, seed=6)
    changed = np.where(arena.folds == 1, (arena.labels + 1) % 3, arena.labels)
    for kind in COMBINERS:
        before, after = (out_of_fold(kind, arena.design, y, arena.folds) for y in (arena.labels, changed))
        np.testing.assert_array_equal(before[arena.folds == 1], after[arena.folds == 1])


def test_an_unknown_saved_combiner_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "combiner.json", {"kind": "os.system"})
    with pytest.raises(UserError, match=r"os\.system"):
        load_combiner(tmp_path)


def test_the_setting_offers_every_combiner_and_rule() -> None:
    (setting,) = (field for field in fields(Stack) if field.name == "final")
    assert set(setting.metadata["choices"]) == {*RULES, *KINDS}
