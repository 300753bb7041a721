"""Which battles have a prompt that a corpus has too: ``python -m ensemble seen RUN --corpus FILES``.

The run's prompts (all turns, and the first turn alone where there are several) are indexed by MinHash LSH; the corpus
is streamed past them in chunks and never held. A candidate pair is measured exactly: near-duplicates are those whose
sets of character 5-grams reach the run's ``groups.threshold``. A match with a text that the run already found is not
looked for again. Every ``SAVE`` rows the state is written, so that a killed command goes on where it was.

``RUN/seen/seen.parquet``: ``id``, ``seen``, ``similarity``, ``file``, ``row`` (1-based) of the first match.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from ensemble.contamination.corpus import read_prompts
from oof.common.atomic_files import read_json, read_parquet, replacing, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.folds import minhash
from oof.folds.groups import normalise
from oof.folds.near_duplicates import MARGIN, band_rows
from oof.jobs.dataset import load_battles

logger = logging.getLogger(__name__)

CHUNK = 8192  # rows of the corpus in memory at a time
SAVE = 16  # chunks between two states on disk
BUCKET = 64  # texts of the run: in a larger LSH bucket only so many are compared with a text of the corpus
FOLDER = "seen"


@dataclass
class Index:
    """The run's distinct normalised texts, sorted; what was found for each of them.

    Attributes:
        texts: (t,) String.
        signatures: (t, PERMUTATIONS) uint32.
        keys, order: per band the sorted keys, and the texts in their order.
        similarity: (t,) of the first match, NaN while there is none.
        file, row: (t,) where that was: the number of the corpus file, the row in it.
    """

    texts: pl.Series
    signatures: NDArray[np.uint32]
    keys: list[NDArray[np.uint64]]
    order: list[NDArray[np.int64]]
    similarity: NDArray[np.float64]
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    threshold: float

    @classmethod
    def build(cls, texts: pl.Series, threshold: float) -> Index:
        signatures = minhash.minhash(texts)
        keys = [_keys(signatures, band, threshold) for band in _bands(threshold)]
        order = [np.argsort(values, kind="stable") for values in keys]
        sorted_keys = [values[at] for values, at in zip(keys, order, strict=True)]
        n = len(texts)
        nothing = np.full(n, np.nan), np.full(n, -1, np.int32), np.zeros(n, np.int64)
        return cls(texts, signatures, sorted_keys, order, *nothing, threshold)

    def look_up(self, texts: pl.Series, file: int, rows: NDArray[np.int64]) -> None:
        """Match (m,) normalised, distinct corpus texts that stand in ``rows`` of a file."""
        signatures = minhash.minhash(texts)
        pairs = self._candidates(signatures)
        estimate = (self.signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1)
        pairs = pairs[estimate >= self.threshold - MARGIN]
        if not len(pairs):
            return
        sizes = self.texts.str.len_chars().to_numpy()[pairs[:, 0]] + texts.str.len_chars().to_numpy()[pairs[:, 1]]
        for start, stop in minhash.chunks(sizes):
            some = pairs[start:stop]
            ours, theirs = self.texts.gather(some[:, 0]).to_list(), texts.gather(some[:, 1]).to_list()
            similarity = minhash.jaccard(ours, theirs)
            good = similarity >= self.threshold
            for (ours_at, theirs_at), value in zip(some[good].tolist(), similarity[good].tolist(), strict=True):
                if np.isnan(self.similarity[ours_at]):
                    self.similarity[ours_at], self.file[ours_at] = value, file
                    self.row[ours_at] = rows[theirs_at]

    def drop_found(self) -> None:
        """Take the texts that have a match out of the bands: they need no other, and would crowd large buckets."""
        for band, order in enumerate(self.order):
            left = np.isnan(self.similarity[order])
            self.keys[band], self.order[band] = self.keys[band][left], order[left]

    def _candidates(self, signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return (p, 2) distinct pairs (text of the run without a match, text of the corpus) that share a band."""
        n = len(signatures)
        codes = [np.empty(0, np.int64)]
        for band, keys, order in zip(_bands(self.threshold), self.keys, self.order, strict=True):
            theirs = _keys(signatures, band, self.threshold)
            low, high = np.searchsorted(keys, theirs, "left"), np.searchsorted(keys, theirs, "right")
            counts = np.minimum(high - low, BUCKET)
            at = np.repeat(np.arange(n), counts)
            within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
            ours = order[low[at] + within]
            fresh = np.isnan(self.similarity[ours])
            codes.append(ours[fresh] * n + at[fresh])
        distinct = minhash.distinct(*codes)
        return np.stack([distinct // n, distinct % n], axis=1)


def _bands(threshold: float) -> range:
    return range(0, minhash.PERMUTATIONS, band_rows(threshold))


def _keys(signatures: NDArray[np.uint32], band: int, threshold: float) -> NDArray[np.uint64]:
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for k in range(band, band + band_rows(threshold)):
        keys = (keys ^ signatures[:, k]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def run_seen(
    run: Path, corpus: Sequence[str], threshold: float | None = None, column: str | None = None
) -> pl.DataFrame:
    """Mark the run's scored battles whose prompt near-duplicates one of the corpus; return ``seen.parquet``'s content.

    Args:
        run: the run folder, after stage one.
        corpus: files, as :mod:`ensemble.contamination.corpus` reads them.
        threshold: Jaccard similarity; None = the run's ``groups.threshold``.
        column: of the corpus' text; None = ``conversation`` or the first known one.

    Raises:
        UserError: no stage one, no such file or column.
    """
    table = load_battles(run).filter(pl.col("role") == "train")
    if threshold is None:
        config = read_json(run / "run.json")["config"] if (run / "run.json").is_file() else {}
        threshold = float(config.get("groups", {}).get("threshold", 0.7))
    if not 0.1 <= threshold <= 1:
        raise UserError(f"--threshold {threshold}: expected a number from 0.1 to 1")
    paths = [Path(name) for name in corpus]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file; check --corpus")
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    key = digest("seen", 1, table["id"].to_list(), table["prompt"].to_list(), threshold, column, stamps)
    step = Step(run / FOLDER, key)
    if step.done:
        return read_parquet(step.folder / "seen.parquet")
    step.begin()
    long = _texts_of(table)
    index = Index.build(long["text"].unique().sort(), threshold)
    n_rows = _stream(index, paths, column, step.folder)
    frame = _result(table["id"], long, index, [path.name for path in paths])
    write_parquet(step.folder / "seen.parquet", frame)
    n_seen = int(frame["seen"].sum())
    facts = {"threshold": threshold, "corpus": [path.name for path in paths], "corpus_rows": n_rows, "n_seen": n_seen}
    step.finish({**facts, "n": frame.height}, files=["seen.parquet"])
    for leftover in step.folder.glob("state.*"):
        leftover.unlink()
    return frame


def _texts_of(table: pl.DataFrame) -> pl.DataFrame:
    """Return rows (at, text): each battle's prompt, and its first turn where it has several; none without text."""
    whole = table["prompt"].list.join("\n")
    several = table["prompt"].list.len() > 1
    first = table["prompt"].list.first().filter(several)
    at = np.concatenate([np.arange(table.height), np.flatnonzero(several.to_numpy())])
    texts = minhash.cap(normalise(pl.concat([whole, first])))
    return pl.DataFrame({"at": at, "text": texts}).filter(pl.col("text") != "")


def _stream(index: Index, paths: list[Path], column: str | None, folder: Path) -> int:
    """Look the corpus up in the index from where an interrupted attempt stopped; return its number of rows."""
    state = _load_state(index, folder)
    index.drop_found()
    bar = tqdm(desc="seen", unit=" rows", initial=state["total"], disable=not sys.stderr.isatty(), leave=False)
    for number in range(state["file"], len(paths)):
        done = state["row"] if number == state["file"] else 0
        for k, prompts in enumerate(read_prompts(paths[number], column, done, CHUNK)):
            rows = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts]) + done + 1
            texts = pl.Series([text for row in prompts for text in row], dtype=pl.String)
            frame = pl.DataFrame({"text": minhash.cap(normalise(texts)), "row": rows}).filter(pl.col("text") != "")
            frame = frame.unique("text", keep="first", maintain_order=True)
            if frame.height:
                index.look_up(frame["text"], number, frame["row"].to_numpy())
            done += len(prompts)
            state = {"file": number, "row": done, "total": state["total"] + len(prompts)}
            bar.update(len(prompts))
            if k % SAVE == SAVE - 1:
                _save_state(index, folder, state)
                index.drop_found()
        state = {"file": number + 1, "row": 0, "total": state["total"]}
        _save_state(index, folder, state)
    bar.close()
    return int(state["total"])


def _save_state(index: Index, folder: Path, state: dict[str, int]) -> None:
    """Write what was found and where the reading stands as one file, so that the two cannot disagree."""
    found = {f"found_{name}": getattr(index, name) for name in ("similarity", "file", "row")}
    with replacing(folder / "state.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **found, at=[state["file"], state["row"], state["total"]])


def _load_state(index: Index, folder: Path) -> dict[str, int]:
    path = folder / "state.npz"
    if not path.is_file():
        return {"file": 0, "row": 0, "total": 0}
    with np.load(path, allow_pickle=False) as state:
        index.similarity, index.file, index.row = (state[f"found_{name}"] for name in ("similarity", "file", "row"))
        file, row, total = state["at"].tolist()
    logger.info("seen: going on after %d rows", total)
    return {"file": file, "row": row, "total": total}


def _result(ids: pl.Series, long: pl.DataFrame, index: Index, files: list[str]) -> pl.DataFrame:
    found = pl.DataFrame({"text": index.texts, "similarity": index.similarity, "file": index.file, "row": index.row})
    found = found.filter(pl.col("similarity").is_not_nan())
    hits = long.join(found, on="text", how="inner").sort("similarity", descending=True).unique("at", keep="first")
    names = pl.Series("name", files)
    hits = hits.select("at", "similarity", "row", file=names.gather(hits["file"]))
    frame = pl.DataFrame({"id": ids, "at": np.arange(len(ids))}).join(hits, on="at", how="left", maintain_order="left")
    return frame.select("id", pl.col("similarity").is_not_null().alias("seen"), "similarity", "file", "row")


def read_seen(run: Path, ids: pl.Series) -> NDArray[np.bool_] | None:
    """Return (n,) flags in the order of ``ids``; None where ``seen`` has not finished for these battles."""
    folder = run / FOLDER
    if not (folder / "manifest.json").is_file() or not (folder / "seen.parquet").is_file():
        return None
    frame = read_parquet(folder / "seen.parquet")
    joined = pl.DataFrame({"id": ids}).join(frame.select("id", "seen"), on="id", how="left", maintain_order="left")
    return None if joined["seen"].null_count() else joined["seen"].to_numpy()


def facts_of(run: Path) -> dict[str, Any]:
    """Return the facts of a finished ``seen``, {} without one."""
    path = run / FOLDER / "manifest.json"
    return dict(read_json(path)) if path.is_file() else {}
