"""Cross-fitting of stage two: tune, combine, choose and calibrate inside each outer fold, then once on all battles.

For outer fold k the study, the boosters, their number of rounds, the choice of a combiner and the calibrator see the
other folds only; choice and calibrator use *inner* out-of-fold logits. So no label of fold k reaches its own
prediction in this stage. The final combiner is chosen by the outer folds' cross-fitted losses, on which nothing else
was chosen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design, add_member, build_design
from ensemble.stacking.baselines import (
    TermCounts,
    TfidfModel,
    count_terms,
    fit_tfidf,
    length_only_probs,
    out_of_fold_tfidf,
    prior_probs,
    tfidf_probs,
)
from ensemble.stacking.calibration import Calibrator, fit_calibrator
from ensemble.stacking.combiners import COMBINERS, Combiner, Mean
from ensemble.stacking.job_scales import JobScales
from ensemble.stacking.lightgbm_stacker import Stacker, fit_stacker
from ensemble.stacking.parallel import cores, map_tasks
from ensemble.stacking.selection import KINDS, Choice, choose, load_combiner, out_of_fold
from ensemble.stacking.tuning import tune
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.common.steps import ORPHAN_WAIT, locked
from oof.config import Stack
from oof.metrics import Integers, softmax

logger = logging.getLogger(__name__)

Probabilities = dict[str, NDArray[np.float64]]
Logits = dict[str, NDArray[np.float64]]
CROSS_FITTED = (
    "prior",
    "length_only",
    "mean",
    "stack",
    "calibrated",
    "teacher",
    *(f"combiner:{kind}" for kind in KINDS),
)
TFIDF_MEMBER = "baseline:text"  # a name that no member of a run can have
TFIDF_FILE = "text.json"
JOB_SCALES_FILE = "job_scales.json"
FINAL = -1  # the task that leaves no fold out
MIN_PARALLEL_WORK = 10_000  # battles times trials from which worker processes are faster than one


@dataclass
class StackResult:
    """Cross-fitted predictions and the final stack.

    Attributes:
        predictions: name -> (n, 3) cross-fitted probabilities: prior, length_only, text (the TF-IDF baseline, only
            where there are texts), mean (nothing fitted), ``combiner:<kind>``, stack (the chosen combiner), calibrated,
            and teacher (calibrated without the position bias).
        combiner: the final combiner, chosen, tuned and trained on all battles.
        calibrator: the final calibrator, fitted on inner out-of-fold logits of all battles.
        folds: per outer fold the choice with its reason, the calibrator, LightGBM's parameters, rounds and
            importances.
        choice: the final choice.
        tfidf: the TF-IDF baseline, where it is a member (``stack.text_member``).
        features: the columns that the combiners were fitted on.
        job_scales: constants of the fold jobs whose logits, so scaled, the design was made of; the caller sets them.
    """

    predictions: Probabilities
    combiner: Combiner
    calibrator: Calibrator
    folds: list[dict[str, Any]] = field(default_factory=list)
    choice: Choice | None = None
    tfidf: TfidfModel | None = None
    features: list[str] = field(default_factory=list)
    job_scales: JobScales = field(default_factory=JobScales)

    def predict(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) calibrated probabilities of battles that were never in the run."""
        return self.calibrator.apply(self.combiner.logits(design))

    def design(self, table: pl.DataFrame, logits: dict[str, NDArray[np.floating]]) -> Design:
        """Return the design of battles that were never in the run, given their members' (n, 2, 3) logits.

        Logits of several fold jobs are averaged by ``job_scales`` first.
        """
        design = build_design(table, logits)
        return design if self.tfidf is None else _with_tfidf(design, self.tfidf.logits(count_terms(table)))

    def manifest_entries(self) -> dict[str, Any]:
        """Return the calibrator, the choice, the folds and the sampler, for the manifest and the report."""
        sampler = {"sampler": "TPE, multivariate", "optuna": metadata.version("optuna")}
        final = {"combiner": self.combiner.kind, "reason": self.choice.reason if self.choice else ""}
        return {"calibrator": self.calibrator.to_dict(), "final": final, "folds": self.folds, "tuning": sampler}

    def save(self, folder: Path) -> None:
        """Save the final stack: boosters as text, the rest as JSON."""
        self.combiner.save(folder)
        write_json(folder / "calibrator.json", self.calibrator.to_dict())
        write_json(folder / JOB_SCALES_FILE, self.job_scales.to_dict())
        if self.tfidf is not None:
            self.tfidf.save(folder / TFIDF_FILE)

    @classmethod
    def load(cls, folder: Path) -> StackResult:
        """Open a saved final stack, which has no predictions of the run's battles."""
        calibrator = Calibrator.from_dict(read_json(folder / "calibrator.json"))
        tfidf = TfidfModel.load(folder / TFIDF_FILE) if (folder / TFIDF_FILE).is_file() else None
        job_scales = JobScales.from_dict(read_json(folder / JOB_SCALES_FILE))
        return cls({}, load_combiner(folder), calibrator, tfidf=tfidf, job_scales=job_scales)


@dataclass(frozen=True)
class _Data:
    """The battles and settings that every fit reads, sent once to each worker process."""

    design: Design
    labels: Integers
    folds: Integers
    groups: Integers
    config: Stack
    seed: int
    studies: Path
    counts: TermCounts | None


@dataclass(frozen=True)
class _Fit:
    """The fits that leave one outer fold out, or those on all battles (``FINAL``).

    Attributes:
        combiners: kind -> fitted on the training rows.
        inner: kind -> (n_train, 3) inner out-of-fold logits of the training rows.
        baselines: name -> (n_held, 3) probabilities of the held-out rows; empty if final.
        held: kind -> (n_held, 3) logits of the held-out rows; empty if final.
        params: LightGBM's tuned parameters.
        rounds: boosting rounds.
        tfidf: the TF-IDF baseline, where it is a member.
        features: the columns of the training rows.
    """

    combiners: dict[str, Combiner]
    inner: Logits
    baselines: Probabilities
    held: Logits
    params: dict[str, Any]
    rounds: int
    tfidf: TfidfModel | None
    features: list[str]


def _with_tfidf(design: Design, logits: NDArray[np.float64]) -> Design:
    """Return the design with the TF-IDF baseline as one more member, whose logits are the same in both orders."""
    return add_member(design, TFIDF_MEMBER, np.repeat(logits[:, None], 2, axis=1))


def cross_fit(
    design: Design,
    labels: Integers,
    folds: Integers,
    groups: Integers,
    config: Stack,
    seed: int,
    studies: Path,
    counts: TermCounts | None = None,
) -> StackResult:
    """Return cross-fitted predictions of every battle and the final stack.

    Args:
        design: (n) scored battles.
        labels: (n,) in {0, 1, 2}.
        folds: (n,) 0..k-1, those of stage one.
        groups: (n,).
        config: trials, rounds, order, calibrator, final, workers.
        seed: of tuning and boosting.
        studies: folder of the Optuna journals (k + 1 files), kept between attempts.
        counts: (n) term counts for the TF-IDF baseline; without them there is no such baseline.

    Raises:
        UserError: fewer than two folds, a logit is not finite, or ``text_member`` without term counts.
    """
    if config.text_member and counts is None:
        raise UserError(
            "stack.text_member=true needs the texts of the battles, which these files lack; set it to false"
        )
    outer = [int(fold) for fold in np.unique(folds)]
    if len(outer) < 2:
        raise UserError(f"stacking needs battles in at least 2 folds, not {len(outer)}")
    names = CROSS_FITTED if counts is None else (*CROSS_FITTED, "text")
    predictions = {name: np.full((len(labels), 3), np.nan) for name in names}
    predictions["mean"] = softmax(Mean().logits(design))
    data = _Data(design, labels, folds, groups, config, seed, studies, counts)
    fits = _fit_all(data, [FINAL, *outer])  # the longest task first, so that the processes end together
    entries = [_fill(predictions, data, fold, fits[fold]) for fold in outer]
    cross_fitted = {kind: np.empty((len(labels), 3)) for kind in KINDS}
    for fold in outer:
        for kind in KINDS:
            cross_fitted[kind][folds == fold] = fits[fold].held[kind]
    choice, final = choose(config.final, cross_fitted, labels, groups), fits[FINAL]
    logger.info("final combiner: %s", choice.reason)
    calibrator = fit_calibrator(config.calibrator, config.order, final.inner[choice.kind], labels, groups, seed)
    combiner = final.combiners[choice.kind]
    return StackResult(predictions, combiner, calibrator, entries, choice, final.tfidf, final.features)


def _fit_all(data: _Data, tasks: list[int]) -> dict[int, _Fit]:
    workers = data.config.workers or (cores() if len(data.labels) * data.config.trials >= MIN_PARALLEL_WORK else 1)
    fits: dict[int, _Fit] = {}
    with progress("stack", len(tasks), "fits") as shown:
        for i, fit in map_tasks(_fit, data, tasks, min(workers, len(tasks))):
            fits[tasks[i]] = fit
            shown.update()
    return fits


def _fit(data: _Data, fold: int) -> _Fit:
    """Fit all combiners and baselines without ``fold``, and predict its rows; with ``FINAL``, fit them on all rows."""
    rest, held = np.flatnonzero(data.folds != fold), np.flatnonzero(data.folds == fold)
    train, y, groups = data.design.take(rest), data.labels[rest], data.groups[rest]
    tfidf = None
    if data.counts is not None and data.config.text_member:
        counts = data.counts.take(rest)
        tfidf, train = fit_tfidf(counts, y), _with_tfidf(train, out_of_fold_tfidf(counts, y, groups, data.seed))
    trials, rounds, name = data.config.trials, data.config.rounds, "final" if fold == FINAL else f"fold-{fold}"
    with locked(data.studies, f".{name}.lock", ORPHAN_WAIT):
        tuned = tune(train, y, data.folds[rest], groups, trials, rounds, data.seed, data.studies / f"{name}.log")
    combiners: dict[str, Combiner] = {kind: combiner.fit(train, y) for kind, combiner in COMBINERS.items()}
    combiners[Stacker.kind] = fit_stacker(train, y, tuned.params, tuned.rounds, data.seed)
    inner = {kind: out_of_fold(kind, train, y, tuned.inner) for kind in COMBINERS} | {Stacker.kind: tuned.logits}
    if fold == FINAL:
        return _Fit(combiners, inner, {}, {}, tuned.params, tuned.rounds, tfidf, train.names)
    unseen = data.design.take(held)
    if data.counts is not None and tfidf is not None:
        unseen = _with_tfidf(unseen, tfidf.logits(data.counts.take(held)))
    baselines = {"prior": prior_probs(y, len(held)), "length_only": length_only_probs(train, y, unseen)}
    if data.counts is not None:
        baselines["text"] = tfidf_probs(data.counts.take(rest), y, data.counts.take(held))
    logits = {kind: combiner.logits(unseen) for kind, combiner in combiners.items()}
    return _Fit(combiners, inner, baselines, logits, tuned.params, tuned.rounds, tfidf, train.names)


def _fill(predictions: Probabilities, data: _Data, fold: int, fit: _Fit) -> dict[str, Any]:
    """Choose and calibrate for one outer fold, write its ``predictions``, and return its entry of the manifest."""
    held, rest = data.folds == fold, data.folds != fold
    y, groups = data.labels[rest], data.groups[rest]
    choice = choose(data.config.final, fit.inner, y, groups)
    inner, logits = fit.inner[choice.kind], fit.held[choice.kind]
    calibrator = fit_calibrator(data.config.calibrator, data.config.order, inner, y, groups, data.seed)
    for name, probs in fit.baselines.items():
        predictions[name][held] = probs
    for kind, values in fit.held.items():
        predictions[f"combiner:{kind}"][held] = softmax(values)
    predictions["stack"][held] = softmax(logits)
    predictions["calibrated"][held] = calibrator.apply(logits)
    predictions["teacher"][held] = calibrator.apply_symmetric(logits)
    chosen = {"combiner": choice.kind, "reason": choice.reason}
    entry = {"fold": fold, **calibrator.to_dict(), **chosen, "rounds": fit.rounds, "params": fit.params}
    return entry | _importances(fit.combiners[Stacker.kind])


def _importances(combiner: Combiner) -> dict[str, list[float]]:
    """Return gain and number of splits by feature, in the design's order, whichever combiner was chosen."""
    assert isinstance(combiner, Stacker)
    gain, splits = (combiner.booster.feature_importance(kind) for kind in ("gain", "split"))
    return {"gain": gain.tolist(), "splits": splits.tolist()}
