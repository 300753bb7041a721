"""One Optuna study for one training set of the stacker: inner cross-validation that sees only these rows.

The study lives in a journal file under a name that digests everything it depends on, so a killed run goes on with
the trials it has and never with those of other data. Each trial draws from a sampler seeded by the study's seed and
the number of trials before it: a study that was interrupted ends exactly as one that was not, and one with more
trials begins with the same ones. TPE's defaults changed between Optuna versions; sampler and version are recorded
with the result.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from sklearn.model_selection import StratifiedGroupKFold

from ensemble.design import Design
from ensemble.stacker import FIXED, fit_early_stopped
from oof import store
from oof.metrics import log_loss, softmax

logger = logging.getLogger(__name__)

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Tuned:
    """The best trial: its parameters, its mean number of rounds and its inner out-of-fold (n, 3) logits."""

    params: dict[str, Any]
    rounds: int
    logits: NDArray[np.float64]
    loss: float


def inner_folds(labels: Integers, folds: Integers, groups: Integers, seed: int) -> NDArray[np.int64]:
    """Return the folds of the inner cross-validation: the outer ones that are left, split by group if only one is."""
    present = np.unique(folds)
    if len(present) >= 2:
        return np.searchsorted(present, folds)
    assigned = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
    assigned[next(splitter.split(labels, labels, groups))[1]] = 1
    return assigned


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Draw the parameters of one trial: small, slow, heavily regularised trees; the pool has done most of the work."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 2, 24, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 300, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
        "lambda_l1": trial.suggest_float("lambda_l1", 1e-3, 10.0, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-3, 100.0, log=True),
    }


def tune(
    design: Design,
    labels: Integers,
    folds: Integers,
    groups: Integers,
    trials: int,
    rounds: int,
    seed: int,
    journal: Path,
) -> Tuned:
    """Return the best of ``trials`` trials by inner cross-validated log loss.

    Args:
        design: the rows of the outer training set, and no others.
        labels: (n,).
        folds: (n,) their outer folds, which become the inner ones.
        groups: (n,).
        trials: trials of the study, those in the journal included.
        rounds: the most boosting rounds.
        seed: of the sampler and of LightGBM.
        journal: file that keeps the study.
    """
    inner = inner_folds(labels, folds, groups, seed)
    kept: dict[int, tuple[int, NDArray[np.float64]]] = {}

    def evaluate(params: dict[str, Any]) -> tuple[int, NDArray[np.float64]]:
        logits, best = np.empty((len(labels), 3)), []
        for fold in np.unique(inner):
            rest, held = np.flatnonzero(inner != fold), np.flatnonzero(inner == fold)
            parts = design.take(rest), labels[rest], design.take(held), labels[held]
            n, logits[held] = fit_early_stopped(*parts, params, rounds, seed)
            best.append(n)
        return round(float(np.mean(best))), logits

    def objective(trial: optuna.Trial) -> float:
        kept[trial.number] = evaluate(suggest(trial))
        return log_loss(softmax(kept[trial.number][1]), labels)

    depends = design.x, design.x_swapped, design.pool, labels, inner
    study = _study(journal, store.digest(*depends, rounds, seed, FIXED, optuna.__version__)[:16])
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    for n in range(done, trials):
        study.sampler = optuna.samplers.TPESampler(seed=_trial_seed(seed, n), multivariate=True)
        study.optimize(objective, n_trials=1)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[:trials]
    best = min(complete, key=lambda trial: (trial.values[0], trial.number))
    n, logits = kept[best.number] if best.number in kept else evaluate(dict(best.params))
    return Tuned(dict(best.params), n, logits, float(best.values[0]))


def _trial_seed(seed: int, n: int) -> int:
    return int(np.random.SeedSequence([seed, n]).generate_state(1)[0])


def _study(journal: Path, name: str) -> optuna.Study:
    """Open or begin the study ``name``; a journal that a kill tore is cut back to its last whole line."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return _open(journal, name)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        logger.warning("%s: damaged (%s); its study begins again", journal, error)
        journal.unlink()
        return _open(journal, name)


def _open(journal: Path, name: str) -> optuna.Study:
    if journal.is_file():
        written = journal.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            with journal.open("rb+") as file:
                file.truncate(whole)
    Path(f"{journal}.lock").unlink(missing_ok=True)  # the run is locked: whoever held this is dead
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # killed in the middle: it is run again
    return study
