"""Files of logits for data without ties: no column of the tie is needed, and one that is given is not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.stacking.inputs import ORDER_COLUMNS, read_logits
from oof.classes import CLASSES, WINNER_COLUMNS, with_tie
from oof.common.errors import UserError
from oof.common.logits_format import logits_of
from oof.metrics import softmax

LOGITS = np.random.default_rng(0).normal(size=(5, 2, 2))


def written(path: Path, columns: tuple[str, ...], values: np.ndarray) -> str:
    ids = {"id": [f"b{i}" for i in range(len(values))]}
    pl.DataFrame(ids | dict(zip(columns, values.T, strict=True))).write_csv(path)
    return str(path)


@pytest.mark.parametrize("names", [CLASSES[:2], WINNER_COLUMNS[:2], ORDER_COLUMNS["ab"][:2], ORDER_COLUMNS["ba"][:2]])
def test_two_columns_of_one_order_are_used_for_both(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = written(tmp_path / "logits.csv", names, LOGITS[:, 0])
    file = read_logits(path, ties=False)
    np.testing.assert_allclose(logits_of(file.frame), with_tie(LOGITS[:, [0, 0]]), rtol=1e-6)
    assert file.description == f"logits, one order ({', '.join(names)}), 5 rows"
    with pytest.raises(UserError, match=r"no logits found .*; set data\.ties=false if no battle can end in a tie"):
        read_logits(path)


@pytest.mark.parametrize("tied", [(), ("ab_tie",), ("ab_tie", "ba_tie")])
def test_columns_of_the_tie_are_not_read_in_any_number(tmp_path: Path, tied: tuple[str, ...]) -> None:
    names = ("ab_a", "ab_b", "ba_a", "ba_b", *tied)
    values = np.concatenate([LOGITS.reshape(5, 4), np.full((5, len(tied)), 7.0)], axis=1)
    file = read_logits(written(tmp_path / "logits.csv", names, values), ties=False)
    np.testing.assert_allclose(logits_of(file.frame), with_tie(LOGITS), rtol=1e-6)
    assert file.description == "logits, both orders, 5 rows"


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_recognised_with_and_without_the_tie(tmp_path: Path, classes: int) -> None:
    probs = softmax(np.concatenate([LOGITS[:, 0], np.zeros((5, 1))], axis=1)[:, :classes])
    file = read_logits(written(tmp_path / "probs.csv", CLASSES[:classes], probs), ties=False)
    assert file.description.startswith("probabilities")
    read = softmax(logits_of(file.frame)[:, 0])
    np.testing.assert_allclose(read[:, :2], softmax(LOGITS[:, 0]), atol=1e-6)
    assert (read[:, 2] == 0).all()
