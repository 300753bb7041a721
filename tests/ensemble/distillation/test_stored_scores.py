"""Stored scores of a fold job: each battle is scored once, in whatever jobs, after kills and damage, too."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.distillation.stored_scores import LOGITS, StoredScores
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame
from tests.fixtures.command_line import digests

REQUESTS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=25), min_size=1, max_size=4)
FACTORS = np.arange(1, 7, dtype=np.float32)


def score(folder: Path, battles: list[int], size: int, kill_after: int = -1) -> list[int]:
    """Score what is missing; the logits of battle i are multiples of i. Return the battles scored."""
    scored: list[int] = []
    hashes = pl.Series([str(i) for i in battles])
    for done, (rows, piece) in enumerate(StoredScores(folder).pieces(hashes, size)):
        piece.begin()
        if done == kill_after:
            break
        numbers = np.array(battles)[rows]
        logits = (numbers[:, None] * FACTORS).reshape(-1, 2, 3)
        frame = logits_frame(hashes.gather(rows), logits, 0, np.tile(numbers[:, None], 6))
        frame.rename({"id": "battle"}).write_parquet(piece.folder / LOGITS)
        piece.finish()
        scored += numbers.tolist()
    return scored


def check(folder: Path, battles: list[int]) -> None:
    ids = pl.Series([f"id {row}" for row in range(len(battles))])
    frame = StoredScores(folder).of(ids, pl.Series([str(i) for i in battles]))
    assert frame["id"].equals(ids)
    np.testing.assert_array_equal(frame.select(LOGIT_COLUMNS).to_numpy(), np.array(battles)[:, None] * FACTORS)


@settings(max_examples=15)
@given(REQUESTS, st.integers(1, 8))
def test_each_battle_is_scored_once_by_all_requests_together(requests: list[list[int]], size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        scored: list[int] = []
        for battles in requests:
            scored += score(Path(name), battles, size)
            check(Path(name), battles)
        assert sorted(scored) == sorted({i for battles in requests for i in battles})


@settings(max_examples=10)
@given(st.permutations(range(12)), st.integers(1, 5), st.integers(0, 4))
def test_after_a_kill_the_files_are_those_of_an_undisturbed_call(battles: list[int], size: int, kill: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        undisturbed, killed = Path(name, "one"), Path(name, "two")
        score(undisturbed, battles, size)
        before = score(killed, battles, size, kill_after=kill)
        assert before + score(killed, battles, size) == battles
        assert digests(killed) == digests(undisturbed)


def test_damaged_and_unfinished_pieces_are_made_again(tmp_path: Path) -> None:
    assert score(tmp_path, [1, 2, 3, 4], 2) == [1, 2, 3, 4]
    score(tmp_path, [5, 6], 2, kill_after=0)
    damaged = StoredScores(tmp_path).pieces(pl.Series(["5", "6"]), 2)
    assert [piece.folder.is_dir() for _, piece in damaged] == [True]
    (sorted(path for path in tmp_path.iterdir() if (path / LOGITS).is_file())[0] / LOGITS).write_bytes(b"")
    assert len(score(tmp_path, [1, 2, 3, 4, 7], 3)) == 3
    check(tmp_path, [7, 4, 3, 2, 1])
    assert len(list(tmp_path.iterdir())) == 2
