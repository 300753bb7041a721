"""Cross-fitting of stage two: tune, combine, choose and calibrate inside each outer fold, then once on all battles.

For outer fold k the useful members, the study, the boosters, their number of rounds, the choice among the candidates
and the calibrator see the other folds only; choice and calibrator use *inner* out-of-fold logits. So no label of fold k
reaches its own prediction in this stage. The final choice and calibrator use the outer folds' cross-fitted logits, on
which nothing else was chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.baselines import (
    BASELINES,
    Prior,
    TfidfModel,
    fit_tfidf,
    out_of_fold_tfidf,
    prior_probs,
    terms_of,
)
from ensemble.stacking.calibration import Calibrator, fit_calibrator
from ensemble.stacking.combiners import Combiner, PlainMean
from ensemble.stacking.lightgbm_stacker import Boosted, ExtraTrees, Stacker
from ensemble.stacking.parallel import cores, map_tasks
from ensemble.stacking.selection import (
    ALL_MEMBERS,
    UNTUNED,
    Pool,
    candidates_of,
    choose,
    choose_out_of_fold,
    out_of_fold,
    refuse_absent,
    useful_members,
)
from ensemble.stacking.stack_result import TFIDF_MEMBER, StackResult, with_tfidf
from ensemble.stacking.tuning import Tuned, fit_extra_trees, inner_folds, tune
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.common.steps import ORPHAN_WAIT, locked
from oof.config import Stack
from oof.metrics import Integers, softmax

logger = logging.getLogger(__name__)

Probabilities = dict[str, NDArray[np.float64]]
Logits = dict[str, NDArray[np.float64]]
FINAL = -1  # the task that leaves no fold out
MIN_PARALLEL_WORK = 10_000  # battles times trials from which worker processes are faster than one


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


@dataclass(frozen=True)
class _Fit:
    """The fits that leave one outer fold out, or those on all battles (``FINAL``).

    Attributes:
        fitted: kind -> fitted on the training rows.
        inner: kind -> (n_train, 3) inner out-of-fold logits of the training rows; empty if final.
        folds: (n_train,) inner folds.
        held: kind -> (n_held, 3) logits of the held-out rows; empty if final.
        params: LightGBM's tuned parameters.
        rounds: boosting rounds.
        tfidf: the TF-IDF baseline, where it is a member.
        features: the columns of the training rows.
        left_out: members that say nothing about the labels.
    """

    fitted: dict[str, Combiner]
    inner: Logits
    folds: Integers
    held: Logits
    params: dict[str, Any]
    rounds: int
    tfidf: TfidfModel | None
    features: list[str]
    left_out: list[str]


def cross_fit(
    design: Design, labels: Integers, folds: Integers, groups: Integers, config: Stack, seed: int, studies: Path
) -> StackResult:
    """Return cross-fitted predictions of every battle and the final stack.

    Args:
        design: (n) scored battles; with term counts the text baseline is a candidate.
        labels: (n,) in {0, 1, 2}.
        folds: (n,) 0..k-1, those of stage one.
        groups: (n,).
        config: trials, rounds, order, calibrator, final, workers.
        seed: of tuning and boosting.
        studies: folder of the Optuna journals (k + 1 files), kept between attempts.

    Raises:
        UserError: fewer than two folds, a logit is not finite, or ``text_member`` without term counts.
    """
    return cross_fit_rules(design, labels, folds, groups, config, (config.final,), seed, studies)[config.final]


def cross_fit_rules(
    design: Design,
    labels: Integers,
    folds: Integers,
    groups: Integers,
    config: Stack,
    rules: Sequence[str],
    seed: int,
    studies: Path,
) -> dict[str, StackResult]:
    """Return the result of :func:`cross_fit` for several values of ``stack.final``, whose candidates are fitted once.

    Arguments and errors are those of :func:`cross_fit`, but ``config.final`` is not read.
    """
    if config.text_member and design.terms is None:
        raise UserError(
            "stack.text_member=true needs the texts of the battles, which these files lack; set it to false"
        )
    outer = [int(fold) for fold in np.unique(folds)]
    if len(outer) < 2:
        raise UserError(f"stacking needs battles in at least 2 folds, not {len(outer)}")
    for rule in rules:
        refuse_absent(rule, design)
    data = _Data(design, labels, folds, groups, config, seed, studies)
    fits = _fit_all(data, [FINAL, *outer])  # the longest task first, so that the processes end together
    return {rule: _choose(replace(data, config=replace(config, final=rule)), fits) for rule in rules}


def _choose(data: _Data, fits: dict[int, _Fit]) -> StackResult:
    """Return the result of choosing and calibrating, in each outer fold and on all battles."""
    rule, labels, groups, kinds = data.config.final, data.labels, data.groups, candidates_of(data.design)
    outer = sorted(set(fits) - {FINAL})
    names = ["prior", "length_only", *map(_row, kinds), "stack", "calibrated", "teacher"]
    predictions = {name: np.full((len(labels), 3), np.nan) for name in names}
    entries = [_fill(predictions, data, fold, fits[fold]) for fold in outer]
    cross_fitted = {kind: np.empty((len(labels), 3)) for kind in kinds}
    for fold in outer:
        for kind in kinds:
            cross_fitted[kind][data.folds == fold] = fits[fold].held[kind]
    choice, final = choose(rule, cross_fitted, labels, groups), fits[FINAL]
    logger.info("final combiner: %s", choice.reason)
    chosen = choose_out_of_fold(rule, cross_fitted, labels, groups, data.folds)
    calibrator = _calibrator(data, chosen, labels, groups)
    combiner = Pool.of(choice, final.fitted)
    return StackResult(predictions, combiner, calibrator, entries, choice, final.tfidf, final.features)


def _calibrator(data: _Data, logits: NDArray[np.float64], labels: Integers, groups: Integers) -> Calibrator:
    config, one_order = data.config, data.design.one_order
    return fit_calibrator(config.calibrator, config.order, logits, labels, groups, data.seed, one_order)


def _fit_all(data: _Data, tasks: list[int]) -> dict[int, _Fit]:
    workers = data.config.workers or (cores() if len(data.labels) * data.config.trials >= MIN_PARALLEL_WORK else 1)
    fits: dict[int, _Fit] = {}
    with progress("stack", len(tasks), "fits") as shown:
        for i, fit in map_tasks(_fit, data, tasks, workers):
            fits[tasks[i]] = fit
            shown.update()
    return fits


def _fit(data: _Data, fold: int) -> _Fit:
    """Fit all candidates without ``fold``, and predict its rows; with ``FINAL``, fit them on all rows."""
    rest, held = np.flatnonzero(data.folds != fold), np.flatnonzero(data.folds == fold)
    full, y, groups = data.design.take(rest), data.labels[rest], data.groups[rest]
    inner = inner_folds(y, data.folds[rest], groups, data.seed)
    members = useful_members(full, y, inner, groups)
    left_out = [name for name in full.members if name not in members]
    train, tfidf = full.keep(members), None
    if data.config.text_member:
        terms = terms_of(full)
        tfidf = fit_tfidf(terms, y)
        train = with_tfidf(full, out_of_fold_tfidf(terms, y, groups, data.seed)).keep([*members, TFIDF_MEMBER])
    train = replace(train, terms=None)  # only the text baseline reads them, and slices of them take long
    trials, rounds, name = data.config.trials, data.config.rounds, "final" if fold == FINAL else f"fold-{fold}"
    with locked(data.studies, f".{name}.lock", ORPHAN_WAIT):
        tuned = tune(train, y, inner, groups, trials, rounds, data.seed, data.studies / f"{name}.log")
    of_data = candidates_of(data.design)
    kinds = [kind for kind in of_data if kind in UNTUNED]
    of_all = [kind for kind in kinds if kind in (*ALL_MEMBERS, *BASELINES)]
    of_useful = [kind for kind in kinds if kind not in of_all]
    fitted: dict[str, Combiner] = {kind: UNTUNED[kind].fit(full if kind in of_all else train, y) for kind in kinds}
    boosted: dict[type[Boosted], Tuned] = {Stacker: tuned}
    if ExtraTrees.kind in of_data:
        boosted = {ExtraTrees: fit_extra_trees(train, y, inner, rounds, data.seed), **boosted}
    fitted |= {kind.kind: kind.fit(train, y, fit.params, fit.rounds, data.seed) for kind, fit in boosted.items()}
    result = _Fit(fitted, {}, inner, {}, tuned.params, tuned.rounds, tfidf, train.names, left_out)
    if fold == FINAL:
        return result
    found = out_of_fold(of_all, full, y, inner) | out_of_fold(of_useful, train, y, inner)
    found |= {kind.kind: fit.logits for kind, fit in boosted.items()}
    unseen = data.design.take(held)
    extended = unseen if tfidf is None else with_tfidf(unseen, tfidf.logits(terms_of(unseen)))
    for kind, combiner in fitted.items():
        result.inner[kind] = found[kind]
        result.held[kind] = combiner.logits(unseen if kind in of_all else extended)
    return result


def _fill(predictions: Probabilities, data: _Data, fold: int, fit: _Fit) -> dict[str, Any]:
    """Choose and calibrate for one outer fold, write its ``predictions``, and return its entry of the manifest."""
    held, rest = data.folds == fold, data.folds != fold
    y, groups = data.labels[rest], data.groups[rest]
    choice = choose(data.config.final, fit.inner, y, groups)
    chosen = choose_out_of_fold(data.config.final, fit.inner, y, groups, fit.folds)
    calibrator, logits = _calibrator(data, chosen, y, groups), choice.combine(fit.held)
    predictions["prior"][held] = predictions["length_only"][held] = prior_probs(y, int(held.sum()), data.design.ties)
    for kind, values in fit.held.items():
        if kind != Prior.kind:  # the table's knows how often A and B win; the candidate treats them alike
            predictions[_row(kind)][held] = softmax(values)
    predictions["stack"][held] = softmax(logits)
    predictions["calibrated"][held] = calibrator.apply(logits)
    predictions["teacher"][held] = calibrator.symmetric().apply(logits)
    chosen_entry = {"combiner": choice.kind, "reason": choice.reason, "left_out": fit.left_out}
    entry = {"fold": fold, **calibrator.to_dict(), **chosen_entry, "rounds": fit.rounds, "params": fit.params}
    return entry | _importances(fit)


def _row(kind: str) -> str:
    """Return the name of a candidate's predictions."""
    if kind == PlainMean.kind:
        return "mean"
    return kind if kind in BASELINES else f"combiner:{kind}"


def _importances(fit: _Fit) -> dict[str, Any]:
    """Return gain and number of splits of each feature that LightGBM splits on, whichever candidate was chosen."""
    combiner = fit.fitted[Stacker.kind]
    assert isinstance(combiner, Stacker)
    gains, splits = (combiner.booster.feature_importance(kind).tolist() for kind in ("gain", "split"))
    used = [(name, gain, n) for name, gain, n in zip(fit.features, gains, splits, strict=True) if n]
    return {"gain": {name: gain for name, gain, _ in used}, "splits": {name: n for name, _, n in used}}
