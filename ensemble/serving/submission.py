"""Submission: predictions for new battles, from the student or the ensemble, in a competition's format.

``predict.format`` is the format: three probabilities (scored by log loss), or the winner (scored by accuracy). Test
files of any size are read and scored in chunks. The probabilities of each chunk are stored in
``RUN/predict/part-*.parquet``, so memory is bounded and a killed run resumes. The submission is written from these
parts, read back and checked, and only then replaces an older one.

Sources: Kaggle "LMSYS - Chatbot Arena Human Preference Predictions" (probabilities) and "WSDM Cup 2025" (winner).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.cascade.request import requested
from ensemble.serving.chunks import chunks
from ensemble.serving.earlier_submission import (
    MANIFEST,
    SUBMISSION,
    PredictedBattles,
    keep_other_battles,
    refuse_other_battles,
)  # fmt: skip
from ensemble.serving.own_logits import OwnLogitsTest
from ensemble.serving.submission_file import write_submission
from ensemble.stacking.prediction_inputs import test_logits_paths
from ensemble.stacking.stage import load_inputs, load_stack
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, write_parquet
from oof.common.digests import digest, file_digest
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS
from oof.common.steps import Step
from oof.config import Config, Data, without_speed_settings
from oof.data import readers
from oof.jobs import fold_job
from oof.jobs.dataset import FORMAT, ONLY_LOGITS, load_battles, other_arena, resolve_data
from oof.jobs.source_files import remember
from oof.metrics import softmax_mean

Scorer = Callable[[pl.DataFrame], NDArray[np.float64]]  # table of (n) battles -> (n, 3) probabilities
# Tables -> the files of their predictions, and further entries of the manifest.
PartsOf = Callable[[Iterable[pl.DataFrame]], tuple[list[Path], dict[str, Any]]]


@dataclass(frozen=True)
class Prediction:
    """Outcome of ``predict``.

    Attributes:
        ran: whether battles were scored; False: the submission was up to date.
        files: the test files.
        n: battles in the submission.
        model: that predicted them, "student", "ensemble" or "cascade".
        kept: where the earlier submission, of other battles, is kept; None if there was none.
    """

    ran: bool
    files: list[str]
    n: int
    model: str
    kept: Path | None = None


@dataclass(frozen=True)
class _Source:
    """Test battles, and what their prediction needs.

    Attributes:
        names: of the files of test battles.
        files: path and sha256 of every file that the prediction depends on.
        settings: that it depends on.
        tables: folder for chunks of large files -> tables of battles.
        scorer: opens the model; called only if there is something to score.
        remembered: settings that the run remembers.
    """

    names: list[str]
    files: list[tuple[str, str]]
    settings: list[Any]
    tables: Callable[[Path], Iterator[pl.DataFrame]]
    scorer: Callable[[], Scorer]
    remembered: tuple[str, ...]


def run_predict(config: Config, redo: bool = False, own: OwnLogitsTest | None = None) -> Prediction:
    """Score the test battles with ``predict.model`` and write ``RUN/submission.csv`` unless it is up to date.

    Args:
        config: of the command.
        redo: replace a submission of other battles; it is kept beside the new one.
        own: the test battles of ``stack.test_logits``, where they have been read.

    Raises:
        UserError: there are no test battles, the model's stage is missing, a submission of other battles would be
            replaced, or the result is not a valid submission. Nothing was written.
    """
    run = Path(config.run)
    request = requested(config)
    if request is not None and config.stack.logits:
        raise UserError(f"{config.run}: {ONLY_LOGITS}; a cascade needs a RUN with a student of its own")
    model = "ensemble" if config.stack.logits else "cascade" if request is not None else config.predict.model
    stage = "stack" if model == "ensemble" else "distill"
    manifest = run / stage / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{manifest}: no {model} here yet; run 'make {stage}' with this RUN first")
    source = _own_logits_source(config, own) if config.stack.logits else _run_source(config)
    model_key = read_json(manifest)["key"]
    prompts = without_speed_settings(config.prompts)
    key = digest("submission", FORMAT, source.settings, model_key, prompts, source.files)
    step = Step(run, key, manifest=MANIFEST)
    pieces = [] if request is None else [config.predict.cascade.piece]
    parts = Step(run / "predict", digest(key, config.predict.chunk, *pieces))
    finished = step.manifest()
    if finished is not None:
        shutil.rmtree(parts.folder, ignore_errors=True)  # left by a kill after the manifest was written
        return Prediction(False, source.names, int(finished["n"]), model)
    if not Step(manifest.parent, model_key).done:
        raise UserError(f"{manifest.parent}: damaged (see above); run 'make {stage}' with this RUN again")
    if not redo and not parts.begun:  # a call that was killed has been let through before
        with tempfile.TemporaryDirectory() as folder:
            digests = [sha for _, sha in source.files]
            refuse_other_battles(run, ", ".join(source.names), digests, source.tables(Path(folder)))
    if request is None:
        predict_parts = _one_model(source.scorer(), parts.folder)
    else:
        from ensemble.cascade.run import cascade_at_work

        predict_parts = cascade_at_work(config, request, parts.folder).predict
    battles = PredictedBattles()
    parts.begin()
    try:
        paths, summary = predict_parts(battles.add(table) for table in source.tables(parts.folder))
        kept = keep_other_battles(run, battles)
        n = write_submission(run / SUBMISSION, paths, config.predict.format)
    except UserError:
        shutil.rmtree(parts.folder)
        raise
    remember(config, source.remembered)
    entries = {"model": model, "n": n, "test": source.files, "battles": battles.digest, **summary}
    step.finish(entries, files=[SUBMISSION])
    shutil.rmtree(parts.folder)
    return Prediction(True, source.names, n, model, kept)


def _run_source(config: Config) -> _Source:
    """Return the battles of ``data.test``, predicted by the run's own models."""
    if config.stack.test_logits:
        raise UserError(
            f"{config.run}: stack.test_logits (TEST_LOGITS) has no effect here: this run's own models predict "
            "data.test; it belongs to a RUN with stack.logits (LOGITS)"
        )
    data = _test_data(config)
    settings: list[Any] = [config.predict.model, data.columns, data.on_bad_row]
    settings += [config.predict.format] if config.predict.format != "probabilities" else []
    if requested(config) is not None:
        stack = Path(config.run) / "stack" / "manifest.json"
        if not stack.is_file():
            raise UserError(f"{stack}: no ensemble here yet; run 'make stack' with this RUN first")
        settings += [["cascade", without_speed_settings(config.predict.cascade), read_json(stack)["key"]]]
    return _Source(
        data.test,
        _digests(data.test),
        settings,
        lambda folder: chunks(config, data, folder),
        lambda: _student_scorer(config) if config.predict.model == "student" else _ensemble_scorer(config),
        ("predict", "data.test"),
    )


def _own_logits_source(config: Config, own: OwnLogitsTest | None) -> _Source:
    """Return the battles of ``stack.test_logits``, predicted by the stack; its files are read only if need be."""
    paths = test_logits_paths(config)
    read = cache(lambda: own or OwnLogitsTest.read(config, load_inputs(config)))
    names = config.data.test or [next(iter(paths.values()))]
    settings = ["own logits", list(paths), config.data.columns, config.data.on_bad_row, config.predict.format]

    def scorer() -> Scorer:
        battles = read()
        stack = load_stack(config, battles.inputs)
        return lambda table: battles.probabilities(stack, table)

    return _Source(
        names,
        _digests([*config.data.test, *paths.values()]),
        settings,
        lambda folder: read().tables(folder),
        scorer,
        ("predict", "data.test", "stack.logits", "stack.test_logits"),
    )


def _digests(patterns: Sequence[str]) -> list[tuple[str, str]]:
    return [(path, file_digest(Path(path))) for path in readers.expand(patterns)]


def _test_data(config: Config) -> Data:
    """Return the data section with the test files to read."""
    if other_arena(config):
        raise UserError(
            f"{config.run}: its synthetic battles were made with other settings data.synth; leave those out to predict "
            "(and CONFIG), or choose another RUN"
        )
    data = resolve_data(config) if config.data.synth.battles and not config.data.train else config.data
    if not data.test:
        raise UserError("no battles to predict: set data.test (make predict TEST=test.csv)")
    return data


def _part(folder: Path, i: int, table: pl.DataFrame, scorer: Scorer) -> Path:
    """Return the file with chunk ``i``'s probabilities; they are computed only if it does not exist."""
    path = folder / f"part-{i:06}.parquet"
    if not path.is_file():
        probs = np.asarray(scorer(table), dtype=np.float64)
        probs = probs / probs.sum(axis=1, keepdims=True)
        frame = pl.DataFrame({"id": table["id"]} | {name: probs[:, i] for i, name in enumerate(WINNER_COLUMNS)})
        write_parquet(path, frame)
    return path


def _one_model(scorer: Scorer, folder: Path) -> PartsOf:
    return lambda tables: ([_part(folder, i, table, scorer) for i, table in enumerate(tables)], {})


def _student_scorer(config: Config) -> Scorer:
    from ensemble.distillation.student import Student

    student = Student.of_run(config)
    return lambda table: softmax_mean(student.logits(table))


def _ensemble_scorer(config: Config) -> Scorer:
    result = load_stack(config, load_inputs(config))
    jobs = fold_job.fold_jobs(config, load_battles(Path(config.run), unlabelled=False))

    def score(table: pl.DataFrame) -> NDArray[np.float64]:
        frames = fold_job.test_frames(jobs, table)
        if frames is None:
            if not all(job.step.done for job in jobs):
                raise UserError(f"{config.run}: a fold job is missing or damaged; run 'make oof' with this RUN again")
            from oof.jobs.score_test_battles import score_test_battles

            score_test_battles(config, jobs, table)
            frames = fold_job.test_frames(jobs, table)
        if frames is None:
            raise UserError(f"{config.run}: the members' test logits cannot be read back; check the disk and run again")
        by_job = fold_job.test_logits_by_job(jobs, table)
        logits: dict[str, NDArray[np.floating]] = {
            name: result.job_scales.mean_over_jobs(name, of_jobs) for name, of_jobs in by_job.items()
        }
        counts = frames[next(iter(config.members))].select(COUNT_COLUMNS)
        return result.predict(result.design(table.with_columns(*counts), logits))

    return score
