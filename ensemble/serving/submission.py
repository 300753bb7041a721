"""Probabilities for new battles, from the student or the whole ensemble, as a competition submission.

Files of any size: battles are read, scored and put aside in chunks (``RUN/predict/part-*.parquet``), so memory is
bounded and a killed run goes on where it stopped. The submission is written from the parts, read back and checked,
and only then replaces an older one.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.serving.chunks import cut_file
from ensemble.stacking.stage import load_ensemble, softmax_mean
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, read_parquet, replacing, write_parquet
from oof.common.digests import digest, file_digest
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS, logits_of
from oof.common.steps import Step
from oof.config import Config, Data
from oof.data import readers
from oof.data.battles import read_battles
from oof.jobs import fold_job
from oof.jobs.dataset import FORMAT, load_battles, resolve_data

SUBMISSION = "submission.csv"
SUM_TOLERANCE = 1e-6
Scorer = Callable[[pl.DataFrame], NDArray[np.float64]]  # (n) battles -> (n, 3) probabilities


def run_predict(config: Config) -> bool:
    """Predict the test battles with ``predict.model`` and write ``RUN/submission.csv``; return whether it was stale.

    Raises:
        UserError: no test battles, the stage that makes the model is missing, or the result is not a submission.
    """
    data = resolve_data(config) if config.data.synth.battles and not config.data.train else config.data
    if not data.test:
        raise UserError("no battles to predict: set data.test (make predict TEST=test.csv)")
    run = Path(config.run)
    stage = {"student": ("distill", "make distill"), "ensemble": ("stack", "make stack")}[config.predict.model]
    manifest = run / stage[0] / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{manifest}: no {config.predict.model} here yet; run '{stage[1]}' with this RUN first")
    made = read_json(manifest)["key"]
    files = [(path, file_digest(Path(path))) for path in readers.expand(data.test)]
    how = [config.predict.model, data.columns, data.on_bad_row]
    key = digest("submission", FORMAT, how, made, config.prompts, files)
    step = Step(run, key, manifest="submission.json")
    parts = Step(run / "predict", digest(key, config.predict.chunk))
    if step.done:
        shutil.rmtree(parts.folder, ignore_errors=True)  # a kill at the very end leaves it
        return False
    if not Step(manifest.parent, made).done:
        raise UserError(f"{manifest.parent}: damaged (see above); run '{stage[1]}' with this RUN again")
    scorer = _student(config) if config.predict.model == "student" else _ensemble(config)
    parts.begin()
    paths = [_part(parts.folder, i, table, scorer) for i, table in enumerate(chunks(config, data, parts.folder))]
    n = write_submission(run / SUBMISSION, paths)
    step.finish({"model": config.predict.model, "n": n}, files=[SUBMISSION])
    shutil.rmtree(parts.folder)
    return True


def chunks(config: Config, data: Data, folder: Path) -> Iterator[pl.DataFrame]:
    """Yield the test battles in their files' order, ``predict.chunk`` at a time.

    Raises:
        UserError: as :func:`oof.data.battles.read_battles`, in terms of the file.
    """
    rows = config.predict.chunk
    for path in readers.expand(data.test):
        for piece in cut_file(Path(path), rows, folder / "piece"):
            try:
                table = read_battles(replace(data, test=[str(piece.path)]), seed=config.seed, roles=("test",)).table
            except UserError as error:
                raise piece.error(error) from error
            yield from (table[start : start + rows] for start in range(0, table.height, rows))


def _part(folder: Path, i: int, table: pl.DataFrame, scorer: Scorer) -> Path:
    path = folder / f"part-{i:06}.parquet"
    if not path.is_file():
        probs = np.asarray(scorer(table), dtype=np.float64)
        probs = probs / probs.sum(axis=1, keepdims=True)
        frame = pl.DataFrame({"id": table["id"]} | {name: probs[:, i] for i, name in enumerate(WINNER_COLUMNS)})
        write_parquet(path, frame)
    return path


def _student(config: Config) -> Scorer:
    from ensemble.serving.judge import Judge

    student = config.distill.student
    folder = Path(config.run) / "distill" / "student"
    judge = Judge.from_pretrained(folder, student.dtype, student.score_tokens_per_batch, student.attn)
    return lambda table: softmax_mean(judge.logits(table))


def _ensemble(config: Config) -> Scorer:
    _, result = load_ensemble(config)
    jobs = fold_job.fold_jobs(config, load_battles(Path(config.run)))

    def score(table: pl.DataFrame) -> NDArray[np.float64]:
        frames = fold_job.test_frames(jobs, table)
        if frames is None:
            if not all(job.step.done for job in jobs):
                raise UserError(f"{config.run}: not every fold job is whole; run 'make oof' with this RUN again")
            from oof.jobs.run_fold_job import score_test

            score_test(config, jobs, table)
            frames = fold_job.test_frames(jobs, table)
        if frames is None:
            raise UserError(f"{config.run}: the members' test logits cannot be read back; check the disk and run again")
        logits = {name: logits_of(frame) for name, frame in frames.items()}
        counts = frames[next(iter(config.members))].select(COUNT_COLUMNS)
        return result.predict(result.design(table.with_columns(*counts), logits))

    return score


def write_submission(path: Path, parts: Sequence[Path]) -> int:
    """Write a submission from its parts and check it; an older one is replaced only by a whole, valid one.

    Args:
        path: the CSV file.
        parts: Parquet files with id and the three probabilities, in the test files' order.

    Returns:
        Its number of battles.

    Raises:
        UserError: ids repeat, or what was written is not those ids with a probability distribution each.
    """
    ids = pl.concat([read_parquet(part)["id"] for part in parts])
    if ids.n_unique() != len(ids):
        twice = ids.filter(ids.is_duplicated())[0]
        raise UserError(f"the test files have id {twice!r} more than once; a submission needs each once")
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            for i, part in enumerate(parts):
                read_parquet(part).write_csv(file, include_header=i == 0)
        check_submission(temporary, ids)
    return len(ids)


def check_submission(path: Path, ids: pl.Series) -> None:
    """Read a submission back and compare it with what it must be.

    Raises:
        UserError: a column, an id, their order, or a probability is not right (the first one, by line).
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if header != ["id", *WINNER_COLUMNS]:
            raise UserError(f"the submission's columns are {header}; nothing was replaced")
        ends = chain(iter(ids), [None])
        for line, (row, expected) in enumerate(zip(chain(reader, [None]), ends, strict=True), 2):
            if row is None or expected is None:
                if row is not None or expected is not None:
                    raise UserError(f"the submission has not {len(ids)} rows; nothing was replaced")
                break
            if row[:1] != [expected]:
                raise UserError(
                    f"the submission's line {line} has id {row[:1]}, not {expected!r}; nothing was replaced"
                )
            probs = [float(cell or "nan") for cell in row[1:]]
            if len(probs) != len(WINNER_COLUMNS) or not all(math.isfinite(p) and 0 <= p <= 1 for p in probs):
                raise UserError(f"the submission's line {line} has no finite probabilities; nothing was replaced")
            if abs(sum(probs) - 1) > SUM_TOLERANCE:
                raise UserError(f"the submission's line {line} sums to {sum(probs):.7f}; nothing was replaced")
