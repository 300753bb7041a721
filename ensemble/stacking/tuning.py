"""Tuning of LightGBM: one resumable Optuna study per training set, scored by inner cross-validation on its rows.

The study is kept in a journal file, under a name that digests everything it depends on, so a killed run continues with
its own trials and never with those of other data. Each trial draws from a sampler seeded by the study's seed and
the number of trials before it: an interrupted study ends exactly as an uninterrupted one, and a study with more
trials begins with the same ones. TPE's defaults changed between Optuna versions; sampler and version are recorded
with the result. A trial that promises no gain after some of the inner folds is pruned.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from ensemble.features.design_matrix import Design
from ensemble.stacking import STACKING_VERSION
from ensemble.stacking.lightgbm_stacker import (
    EXTRA_TREES,
    FIXED,
    EarlyStopped,
    ExtraTrees,
    Split,
    fit_early_stopped,
    logits_after,
)
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.metrics import Integers, log_loss, row_log_loss, softmax

logger = logging.getLogger(__name__)

ENOUGH_OUTER = 3  # remaining outer folds from which on they serve as the inner folds
MIN_INNER = 4  # inner folds where fewer outer folds remain
BLOCKS = 8  # of a fold's held-out battles, by which a trial is compared with the best one
PRUNING_P = 0.3  # p-value below which a trial is pruned: its possible gain is below the noise
LOSSES = "losses"  # attribute of a study's first trial
FIRST: dict[str, Any] = {  # parameters of a study's first trial, for any seed; with smaller leaves for few battles
    "learning_rate": 0.08,
    "num_leaves": 6,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.5,
    "lambda_l1": 0.1,
    "lambda_l2": 1.0,
}


@dataclass(frozen=True)
class Tuned:
    """A fit by inner cross-validation: the best trial, or extra trees.

    Attributes:
        params: LightGBM's parameters.
        rounds: mean over the inner folds of the best number of rounds.
        logits: (n, 3) inner out-of-fold logits; the rounds of a fold are the mean of the *other* inner folds' best.
            Boosting that stopped where these rows are best would look better, and more confident, than it is.
    """

    params: dict[str, Any]
    rounds: int
    logits: NDArray[np.float64]


def inner_folds(labels: Integers, folds: Integers, groups: Integers, seed: int) -> NDArray[np.int64]:
    """Return the (n,) inner folds: the remaining outer folds, or at least ``MIN_INNER`` parts of them.

    Of three outer folds two remain. Training on one and scoring on the other would choose rounds, parameters and a
    combiner for half as many battles as they will be used with, which favours simple ones too much. Each is
    therefore split once more, whole groups at a time.

    Raises:
        UserError: all battles are one group.
    """
    present, outer = np.unique(folds, return_inverse=True)
    if len(present) >= ENOUGH_OUTER:
        return outer
    n_parts = math.ceil(MIN_INNER / len(present))
    assigned = np.zeros(len(labels), dtype=np.int64)
    for i in range(len(present)):
        rows = np.flatnonzero(outer == i)
        assigned[rows] = i * n_parts + _split(labels[rows], groups[rows], n_parts, seed)
    used, inner = np.unique(assigned, return_inverse=True)
    if len(used) < 2:
        raise UserError("all battles of a training set are one group: nothing can be held out to tune on")
    return inner


def _split(labels: Integers, groups: Integers, n_parts: int, seed: int) -> NDArray[np.int64]:
    """Return (n,) parts 0..p-1 of whole groups, p at most ``n_parts`` and the number of groups.

    Stratified by label where some class has a battle for each part.
    """
    n_parts = min(n_parts, len(np.unique(groups)))
    out = np.zeros(len(labels), dtype=np.int64)
    if n_parts < 2:
        return out
    stratified = bool(np.bincount(labels).max() >= n_parts)
    splitter = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed) if stratified else GroupKFold(n_parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that is too rare for every part
        for j, (_, held) in enumerate(splitter.split(labels, labels, groups)):
            out[held] = j
    return out


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Draw the parameters of one trial: small, slow, heavily regularised trees, because the pool is a good start."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.05, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 2, 24, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 300, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        # Of the rows of both orders together: a half is every battle about once.
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.3, 0.9),
        "lambda_l1": trial.suggest_float("lambda_l1", 1e-3, 10.0, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-3, 100.0, log=True),
    }


def first_parameters(n: int) -> dict[str, Any]:
    """Return the first trial's parameters for n battles: leaves of at least a tenth of them, between 20 and 100."""
    return {**FIRST, "min_data_in_leaf": min(max(n // 10, 20), FIRST["min_data_in_leaf"])}


def tune(
    design: Design,
    labels: Integers,
    inner: Integers,
    groups: Integers,
    trials: int,
    rounds: int,
    seed: int,
    journal: Path,
) -> Tuned:
    """Return the best of ``trials`` trials by inner cross-validated log loss.

    Args:
        design: the (n) battles of the outer training set, and no others.
        labels: (n,).
        inner: (n,) their inner folds (:func:`inner_folds`), at least two.
        groups: (n,).
        trials: trials of the study, including those in the journal.
        rounds: maximum number of boosting rounds.
        seed: of the sampler and of LightGBM.
        journal: file of the study.
    """
    data = design.x, design.x_swapped, design.pool, labels, inner, groups
    settings = STACKING_VERSION, FIRST, rounds, seed, FIXED, optuna.__version__
    study = _study(journal, digest(*data, *settings)[:16])
    search = _Search(design, labels, inner, groups, rounds, seed)
    with progress(f"tuning, {journal.stem}", trials, "trials", bar=False) as shown:
        shown.resume_at(len(_finished(study)))
        for n in range(shown.done, trials):
            trial_seed = int(np.random.SeedSequence([seed, n]).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(seed=trial_seed, multivariate=True)
            if n == 0:
                study.enqueue_trial(first_parameters(len(labels)))
            study.optimize(search.objective, n_trials=1)
            shown.update()
    complete = [trial for trial in _finished(study)[:trials] if trial.state == TrialState.COMPLETE]
    best = min(complete, key=lambda trial: (trial.values[0], trial.number))
    return search.result(best)


class _Search:
    """Objective of one study: inner cross-validation, fold by fold, pruned where a gain is unlikely.

    After each fold Wilcoxon's test compares the trial with the best one so far, by blocks of held-out battles. Optuna
    also compares means over all folds with means over the folds so far. Folds differ in difficulty by more than
    trials differ in loss, so losses are reported as differences from the first trial's.
    """

    def __init__(
        self, design: Design, labels: Integers, inner: Integers, groups: Integers, rounds: int, seed: int
    ) -> None:
        self.design, self.labels, self.inner = design, labels, inner
        self.rounds, self.seed = rounds, seed
        self.groups = groups
        # Number of the trial, its loss, its fits by inner fold.
        self.best: tuple[int, float, list[EarlyStopped]] | None = None

    @cached_property
    def splits(self) -> list[Split]:
        return [Split(self.design, self.labels, self.inner == fold) for fold in np.unique(self.inner)]

    def objective(self, trial: optuna.Trial) -> float:
        params = suggest(trial)
        earlier = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        first: list[list[float]] = min(earlier, key=lambda t: t.number).user_attrs[LOSSES] if earlier else []
        losses: list[list[float]] = []
        fits, logits = [], np.empty((len(self.labels), 3))
        for fold, split in enumerate(self.splits):
            fits.append(fit_early_stopped(split, params, self.rounds, self.seed))
            logits[split.held] = fits[-1].logits
            losses.append(self._block_losses(logits, split))
            for b, loss in enumerate(losses[fold]):
                trial.report(loss - (first[fold][b] if first else loss), fold * BLOCKS + b)
            if fold + 1 < len(self.splits) and trial.should_prune():
                raise optuna.TrialPruned
        if not first:
            trial.set_user_attr(LOSSES, losses)
        loss = log_loss(softmax(logits), self.labels)
        if self.best is None or loss < self.best[1]:
            self.best = trial.number, loss, fits
        return loss

    def _block_losses(self, logits: NDArray[np.float64], split: Split) -> list[float]:
        """Return the mean loss of each block of the held-out battles."""
        rows = row_log_loss(softmax(logits[split.held]), split.labels)
        _, unit = np.unique(self.groups[split.held], return_inverse=True)
        block = unit % BLOCKS  # whole groups
        sums, counts = np.bincount(block, rows), np.bincount(block)  # with few groups there are fewer blocks
        return [float(mean) for mean in sums / counts]

    def result(self, trial: optuna.trial.FrozenTrial) -> Tuned:
        """Return the trial's parameters, rounds and logits; it is fitted anew if another process ran it."""
        fits = self.best[2] if self.best is not None and self.best[0] == trial.number else []
        return _tuned(self.splits, dict(trial.params), self.rounds, self.seed, fits)


def fit_extra_trees(design: Design, labels: Integers, inner: Integers, rounds: int, seed: int) -> Tuned:
    """Return the number of rounds of ``extra_trees`` and its inner out-of-fold logits; arguments as in :func:`tune`."""
    splits = [Split(design, labels, inner == fold, ExtraTrees) for fold in np.unique(inner)]
    return _tuned(splits, EXTRA_TREES, rounds, seed)


def _tuned(
    splits: Sequence[Split], params: dict[str, Any], rounds: int, seed: int, fits: Sequence[EarlyStopped] = ()
) -> Tuned:
    """Return the result of parameters, of which the fits to the splits may be known."""
    fits = fits or [fit_early_stopped(split, params, rounds, seed) for split in splits]
    best = [fit.rounds for fit in fits]
    logits = np.empty((sum(len(split.held) for split in splits), 3))
    for i, (split, fit) in enumerate(zip(splits, fits, strict=True)):
        others = max(1, round(float(np.mean(best[:i] + best[i + 1 :]))))
        logits[split.held] = logits_after(others, split, fit, params, seed)
    return Tuned(params, round(float(np.mean(best))), logits)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the completed and pruned trials, in the order in which they ran."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _study(journal: Path, name: str) -> optuna.Study:
    """Open or create the study ``name``; a damaged journal is deleted and its study starts again."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return _open(journal, name)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        logger.warning("%s: damaged (%s); its study starts again", journal, error)
        journal.unlink()
        return _open(journal, name)


def _open(journal: Path, name: str) -> optuna.Study:
    """Open or create the study ``name``; a last line that a kill cut short is removed."""
    if journal.is_file():
        written = journal.read_bytes()
        whole_lines = written.rfind(b"\n") + 1
        if whole_lines < len(written):
            with journal.open("rb+") as file:
                file.truncate(whole_lines)
    Path(f"{journal}.lock").unlink(
        missing_ok=True
    )  # this process holds the study's own lock, so the holder of this one is dead
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=PRUNING_P, n_startup_steps=BLOCKS)
    study = optuna.create_study(study_name=name, storage=storage, pruner=pruner, load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # killed while running: the trial runs again
    return study
