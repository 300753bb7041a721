"""Stage two as a scikit-learn estimator: ``from ensemble import Stack``.

It calls :func:`ensemble.stacking.cross_fit.cross_fit`, as ``make stack`` does: the same combiners, choice, tuning and
calibration, and with the same inputs and settings the same probabilities. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from ensemble.features.design_matrix import Design, add_terms, design_of
from ensemble.stacking.arrays import (
    InputError,
    Logits,
    battles_of,
    classes_of,
    features_of_arrays,
    members_of,
)
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.job_scales import JobScales, fit_job_scales
from ensemble.stacking.leakage import leaked_members
from ensemble.stacking.lightgbm_stacker import Stacker
from ensemble.stacking.selection import RULES
from oof.common.wording import errors_reworded
from oof.config import Config, Groups
from oof.config.load import resolve
from oof.data.schemas import TABLE_SCHEMA, TEXTS
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from oof.metrics import log_loss

WORDS = (  # of a command -> of a call
    (r"\bstack\.(\w+)", r"\1"),
    (r"\bfolds\.k\b", "k"),
    (r"; name labelled files in data\.train", ""),
    (r"change groups\.column or groups\.threshold", "or give other groups"),
    (r"drop the column fold, or group by another column", "give other folds or other groups"),
)


class Stack(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Combines and calibrates the out-of-fold logits of several models: stage two on arrays.

    Everything is cross-fitted by group: tuning, the weights of the candidates (baselines, means, log-linear pool,
    greedy selection, logistic regression and LightGBM) and the calibrator see other folds only, so ``oof_proba_`` is
    free of leakage as far as the logits are.

    Args:
        k: folds, where ``fit`` is not given any.
        final: "pool": all candidates, weighted by their out-of-fold predictions; "best": the one with the smallest log
            loss; "auto": the simplest within one standard error of that; or the name of a candidate, such as
            "log_pool" or "lightgbm".
        calibrator: "vector" (the tie has a scale and a bias of its own, where there is evidence), "temperature" or
            "none".
        order: position bias in calibration: "symmetric" (none), "position", or "auto" (with logits of one order, or
            where it pays).
        trials: Optuna trials for LightGBM, in each of k + 1 studies; a run has 50. None are made where ``final`` names
            another combiner, which takes seconds instead of minutes.
        rounds: largest number of boosting rounds.
        random_state: seed of folds, tuning and boosting.
        workers: processes, at most k + 1. Above 1 a script needs ``if __name__ == "__main__":``.

    Attributes:
        classes_: the three classes in the order (a, b, tie), as the labels are written.
        oof_proba_: (n, 3) cross-fitted calibrated probabilities of the training battles.
        folds_: (n,) their folds.
        job_scales_: constants that brought the models of given folds to one scale. Average the logits of new battles
            with ``job_scales_.mean_over_jobs(member, {fold: logits})``; members of an array are m0, m1 …
        log_loss_: predictor -> log loss in nats of its cross-fitted probabilities.
        combiner_: name of the chosen combiner.
        reason_: of the choice, in words.
        temperature_: of the final calibrator.
        possibly_in_sample_: member -> signs that it was trained on battles whose logits it gives.
        n_features_in_: columns of the logits, three for each member.

    Example:
        >>> stack = Stack(trials=5).fit(logits, labels, groups=groups)
        >>> stack.predict_proba(new_logits)
    """

    def __init__(
        self,
        *,
        k: int = 5,
        final: str = "pool",
        calibrator: str = "vector",
        order: str = "auto",
        trials: int = 10,
        rounds: int = 400,
        random_state: int | np.random.RandomState | None = 0,
        workers: int = 1,
    ) -> None:
        self.k = k
        self.final = final
        self.calibrator = calibrator
        self.order = order
        self.trials = trials
        self.rounds = rounds
        self.random_state = random_state
        self.workers = workers

    def fit(
        self,
        X: ArrayLike | Mapping[str, ArrayLike],  # noqa: N803  # scikit-learn's name
        y: ArrayLike,
        groups: ArrayLike | None = None,
        folds: ArrayLike | None = None,
        features: Any = None,
    ) -> Self:
        """Fit on out-of-fold logits of n labelled battles.

        Args:
            X: logits in the order (a, b, tie), never of battles that a model was trained on: (n, 3 m), (n, m, 3) or
                (n, m, 2, 3) for m members; a data frame of 3 m columns; or a mapping of names to (n, 3) or (n, 2, 3).
                Of two orders the first is the battle as given, the second with A and B swapped, both in class order.
            y: (n,) labels 0 (A wins), 1 (B wins), 2 (tie), or "a", "b", "tie".
            groups: (n,) battles that must share a fold, such as those of one prompt. Without groups they come from the
                prompts in ``features``, or else each battle is a group.
            folds: (n,) folds of the models, such as those of :func:`oof.group_folds`, which are brought to one scale
                (``job_scales_``); without folds k are drawn.
            features: the battles (:func:`oof.read_battles`, or a frame that it reads), from whose texts features are
                made; or (n, d) numbers, which LightGBM reads. In a frame ``x_a`` and ``x_b`` swap when A and B are
                swapped, ``x_diff`` changes its sign, and other columns stay, as all columns of an array do.

        Raises:
            InputError: shapes, labels, groups or folds do not fit; it is a UserError and a ValueError.
        """
        with errors_reworded(WORDS, InputError):
            config = self._config()
            seed = config.seed
            if y is None:
                raise InputError("Stack requires y to be passed, but the target y is None")
            X = self._validated(X, reset=True)  # noqa: N806
            labels, self.classes_ = classes_of(column_or_1d(y, warn=True))
            if len(found := np.unique(labels)) == 1:
                only = self.classes_[found[0]]
                raise InputError(f"y: only one class, '{only}', occurs; give battles of at least two classes")
            members = members_of(X)
            self.n_features_in_, self._member_names = 3 * len(members), list(members)
            check_consistent_length(next(iter(members.values())), labels)
            battles = battles_of(features)
            columns = features_of_arrays(len(labels), features, battles)
            groups_of = _groups(groups, battles, len(labels))
            self.folds_ = _folds(labels, groups_of, folds, battles, self.k, seed)
            known = folds is not None
            self.job_scales_ = fit_job_scales(members, self.folds_, groups_of) if known else JobScales()
            scaled = self.job_scales_.out_of_fold(members, self.folds_)
            design = design_of([str(i) for i in range(len(labels))], *columns, scaled)
            self._feature_names = design.names if features is not None else None
            design = design if battles is None else add_terms(design, battles)
            with TemporaryDirectory() as studies:
                result = cross_fit(design, labels, self.folds_, groups_of, config.stack, seed, Path(studies))
        margin = config.stack.in_sample_margin
        self.possibly_in_sample_ = leaked_members(members, labels, self.folds_, groups_of, margin, seed)  # type: ignore[arg-type]
        self.oof_proba_ = result.predictions["calibrated"]
        # Without trials LightGBM is not at its best, and without texts there are no lengths.
        left_out = [] if self._tunes else ["combiner:lightgbm"]
        left_out += [] if design.columns("lengths") else ["length_only"]
        predictors = {name: probs for name, probs in result.predictions.items() if name not in left_out}
        self.log_loss_ = {name: log_loss(probs, labels) for name, probs in predictors.items()}
        self.combiner_, self.reason_ = result.combiner.kind, result.choice.reason if result.choice else ""
        self.temperature_ = result.calibrator.temperature
        self._combiner, self._calibrator = result.combiner, result.calibrator
        return self

    @property
    def _tunes(self) -> bool:
        return self.final in (*RULES, Stacker.kind)

    def predict_proba(self, X: ArrayLike | Mapping[str, ArrayLike], features: Any = None) -> NDArray[np.float64]:  # noqa: N803
        """Return (n, 3) calibrated probabilities in the order (a, b, tie).

        Args:
            X: logits of n battles by the same members, as in :meth:`fit`.
            features: of these battles, if ``fit`` had features.

        Raises:
            InputError: members or features differ from those of ``fit``.
        """
        check_is_fitted(self)
        with errors_reworded(WORDS, InputError):
            members = self._same_members(X)
            n = len(next(iter(members.values())))
            battles = battles_of(features)
            columns = features_of_arrays(n, features, battles)
            design = design_of([str(i) for i in range(n)], *columns, members)
            self._refuse_other_features(design, features)
            if battles is not None and self._combiner.reads_terms:
                design = add_terms(design, battles)
            return self._calibrator.apply(self._combiner.logits(design))

    def predict(self, X: ArrayLike | Mapping[str, ArrayLike], features: Any = None) -> NDArray[Any]:  # noqa: N803
        """Return (n,) the most probable class of each battle; arguments and errors as in :meth:`predict_proba`."""
        best = self.predict_proba(X, features).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _config(self) -> Config:
        """Return the checked settings as a configuration."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        names = ("final", "calibrator", "order", "trials", "rounds", "workers")
        stack = {name: getattr(self, name) for name in names}
        if not self._tunes:
            stack |= {"trials": 1, "rounds": 1}
        return resolve({"arguments": {"seed": int(seed), "folds": {"k": self.k}, "stack": stack}}, run="")

    def _validated(self, X: Any, reset: bool) -> Any:  # noqa: N803
        """Return logits after scikit-learn's checks of tables; with ``reset`` their columns are remembered."""
        if issparse(X) or (not isinstance(X, Mapping) and getattr(X, "ndim", 2) < 3):
            return validate_data(self, X, reset=reset, dtype=np.float64, ensure_min_samples=1 + reset)
        return X

    def _same_members(self, X: Any) -> Logits:  # noqa: N803
        """Return the members' logits; they are those of ``fit``."""
        members = members_of(self._validated(X, reset=False))
        if not isinstance(X, Mapping) and len(members) == len(self._member_names):
            return dict(zip(self._member_names, members.values(), strict=True))  # an array has no names
        if list(members) != self._member_names:
            raise InputError(f"logits of {', '.join(members)}, but fit had {', '.join(self._member_names)}")
        return members

    def _refuse_other_features(self, design: Design, features: Any) -> None:
        if (features is None) != (self._feature_names is None):
            raise InputError(f"features: give {'none, as' if self._feature_names is None else 'those that'} fit had")
        if self._feature_names is not None and design.names != self._feature_names:
            absent = [name for name in self._feature_names if name not in design.names]
            extra = [name for name in design.names if name not in self._feature_names]
            raise InputError(f"features: other columns than in fit: missing {absent[:3]}, unknown {extra[:3]}")


def _groups(groups: ArrayLike | None, battles: pl.DataFrame | None, n: int) -> NDArray[np.int64]:
    """Return (n,) group numbers: of ``groups``, of the battles' prompts, or each battle its own."""
    if groups is None:
        return group_battles(battles, Groups()) if battles is not None else np.arange(n)
    _, numbers = np.unique(_column(groups, n, "groups"), return_inverse=True)
    return numbers.astype(np.int64)


def _folds(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    folds: ArrayLike | None,
    battles: pl.DataFrame | None,
    k: int,
    seed: int,
) -> NDArray[np.int64]:
    """Return (n,) folds 0..k-1: those given, where they separate no group, or as in stage one."""
    n = len(labels)
    columns: dict[str, object] = {"id": [f"{i:09d}" for i in range(n)], "role": ["train"] * n, "label": labels}
    if battles is not None:  # then the folds are those of group_folds
        columns |= {name: battles[name] for name in ("id", *TEXTS) if name in battles.columns}
    else:
        columns |= {name: [[]] * n for name in TEXTS}
    if folds is not None:
        numbers = _column(folds, n, "folds")
        if numbers.dtype.kind not in "iu" or numbers.min() < 0:
            raise InputError("folds: expected whole numbers from 0; leave out battles without a fold")
        columns["fold"], k = numbers, len(np.unique(numbers))
    table = pl.DataFrame({name: columns.get(name, [None] * n) for name in TABLE_SCHEMA}, schema=TABLE_SCHEMA)
    return assign_folds(table, groups, k, seed).astype(np.int64)


def _column(values: ArrayLike, n: int, name: str) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (n,):
        raise InputError(f"{name}: expected the shape ({n},), not {column.shape}")
    return column
