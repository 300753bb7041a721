"""Contamination check: scored battles whose prompt is in a corpus that a base model was trained on.

The run's prompts (all turns, and the first turn alone where there are several) are indexed by MinHash LSH; the corpus
is streamed in chunks and never held in memory. A prompt is in the corpus if its set of character 5-grams reaches the
run's ``groups.threshold`` with a text of the corpus, by exact Jaccard similarity. The state is written regularly, so
that an interrupted check continues from there.

Command: ``arena-distill seen RUN --corpus FILES``. Result: ``RUN/seen/seen.parquet`` with ``id``, ``seen`` (is the
prompt in the corpus?) and the ``similarity``, ``file`` and ``row`` (1-based) of the first match.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.contamination.corpus import read_prompts
from ensemble.contamination.prompt_index import PromptIndex
from oof.common.atomic_files import read_json, read_parquet, replacing, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.common.steps import Step
from oof.config import Groups
from oof.data.text_columns import prompt_texts
from oof.folds import minhash
from oof.folds.groups import normalise
from oof.jobs.dataset import load_battles

logger = logging.getLogger(__name__)

CHUNK = 8192  # rows of the corpus in memory at a time
CHUNKS_PER_STATE = 16  # chunks between two states on disk
FOLDER = "seen"
RESULT = "seen.parquet"


def check_contamination(
    run: Path, corpus: Sequence[str], threshold: float | None = None, column: str | None = None
) -> pl.DataFrame:
    """Mark the run's scored battles whose prompt is in the corpus; return the content of ``seen.parquet``.

    Args:
        run: the run folder, after stage one.
        corpus: files, as :mod:`ensemble.contamination.corpus` reads them.
        threshold: Jaccard similarity in 0.1..1; None = the run's ``groups.threshold``.
        column: the corpus column that holds the text; None = ``conversation`` or the first known one.

    Raises:
        UserError: stage one has not finished, or a file, column or threshold is not usable.
    """
    table = load_battles(run, unlabelled=False).filter(pl.col("role") == "train")
    threshold = _threshold_of(run) if threshold is None else threshold
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
        return read_parquet(step.folder / RESULT)
    step.begin()
    prompts = _normalised_prompts(table)
    index = PromptIndex.build(prompts["text"].unique().sort(), threshold)
    n_rows = _stream(index, paths, column, step.folder)
    frame = _result(table["id"], prompts, index, [path.name for path in paths])
    write_parquet(step.folder / RESULT, frame)
    summary = {
        "threshold": threshold,
        "corpus": [path.name for path in paths],
        "corpus_rows": n_rows,
        "n_seen": int(frame["seen"].sum()),
        "n": frame.height,
    }
    step.finish(summary, files=[RESULT])
    for leftover in step.folder.glob("state.*"):
        leftover.unlink()
    return frame


def _threshold_of(run: Path) -> float:
    config = read_json(run / "run.json")["config"] if (run / "run.json").is_file() else {}
    return float(config.get("groups", {}).get("threshold", Groups().threshold))


def _normalised_prompts(table: pl.DataFrame) -> pl.DataFrame:
    """Return rows (at, text): each battle's prompt, and its first turn where it has several; none without text."""
    several = table["prompt"].list.len() > 1
    first = table["prompt"].list.first().filter(several)
    at = np.concatenate([np.arange(table.height), np.flatnonzero(several.to_numpy())])
    texts = minhash.cap(normalise(pl.concat([prompt_texts(table), first])))
    return pl.DataFrame({"at": at, "text": texts}).filter(pl.col("text") != "")


def _stream(index: PromptIndex, paths: list[Path], column: str | None, folder: Path) -> int:
    """Match the corpus with the index from where an interrupted check stopped; return the corpus' number of rows."""
    state = _load_state(index, folder)
    index.drop_matched()
    with progress("contamination check", unit="rows") as shown:
        shown.resume_at(state["total"])
        for number in range(state["file"], len(paths)):
            done = state["row"] if number == state["file"] else 0
            for k, prompts in enumerate(read_prompts(paths[number], column, done, CHUNK)):
                rows = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts]) + done + 1
                texts = pl.Series([text for row in prompts for text in row], dtype=pl.String)
                frame = pl.DataFrame({"text": minhash.cap(normalise(texts)), "row": rows}).filter(pl.col("text") != "")
                frame = frame.unique("text", keep="first", maintain_order=True)
                if frame.height:
                    index.match(frame["text"], number, frame["row"].to_numpy())
                done += len(prompts)
                state = {"file": number, "row": done, "total": state["total"] + len(prompts)}
                shown.update(len(prompts))
                if k % CHUNKS_PER_STATE == CHUNKS_PER_STATE - 1:
                    _save_state(index, folder, state)
                    index.drop_matched()
            state = {"file": number + 1, "row": 0, "total": state["total"]}
            _save_state(index, folder, state)
    return int(state["total"])


def _save_state(index: PromptIndex, folder: Path, state: dict[str, int]) -> None:
    """Write the matches and the position in the corpus as one file, so that the two cannot disagree."""
    matches = {f"found_{name}": getattr(index, name) for name in ("similarity", "file", "row")}
    with replacing(folder / "state.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **matches, at=[state["file"], state["row"], state["total"]])


def _load_state(index: PromptIndex, folder: Path) -> dict[str, int]:
    path = folder / "state.npz"
    if not path.is_file():
        return {"file": 0, "row": 0, "total": 0}
    with np.load(path, allow_pickle=False) as state:
        index.similarity, index.file, index.row = (state[f"found_{name}"] for name in ("similarity", "file", "row"))
        file, row, total = state["at"].tolist()
    logger.info("contamination check: continuing after %d rows of the corpus", total)
    return {"file": file, "row": row, "total": total}


def _result(ids: pl.Series, prompts: pl.DataFrame, index: PromptIndex, files: list[str]) -> pl.DataFrame:
    matches = pl.DataFrame({"text": index.texts, "similarity": index.similarity, "file": index.file, "row": index.row})
    matches = matches.filter(pl.col("similarity").is_not_nan())
    best = prompts.join(matches, on="text", how="inner").sort("similarity", descending=True).unique("at", keep="first")
    best = best.select("at", "similarity", "row", file=pl.Series("name", files).gather(best["file"]))
    frame = pl.DataFrame({"id": ids, "at": np.arange(len(ids))}).join(best, on="at", how="left", maintain_order="left")
    return frame.select("id", pl.col("similarity").is_not_null().alias("seen"), "similarity", "file", "row")


def read_contaminated(run: Path, ids: pl.Series) -> NDArray[np.bool_] | None:
    """Return (n,) flags in the order of ``ids``; None where the check has not finished for these battles."""
    folder = run / FOLDER
    if not (folder / "manifest.json").is_file() or not (folder / RESULT).is_file():
        return None
    frame = read_parquet(folder / RESULT)
    joined = pl.DataFrame({"id": ids}).join(frame.select("id", "seen"), on="id", how="left", maintain_order="left")
    return None if joined["seen"].null_count() else joined["seen"].to_numpy()


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a finished contamination check, {} without one."""
    path = run / FOLDER / "manifest.json"
    return dict(read_json(path)) if path.is_file() else {}
