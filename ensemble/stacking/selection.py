"""Choice among all candidates: combiners and baselines, and the useful members.

``pool`` mixes the candidates: a log-linear pool with convex weights, which minimise the loss of their out-of-fold
logits plus a ridge towards equal weights. The ridge fades with the number of effective groups, so the few battles or
prompts of a small set cannot favour one candidate by chance. Candidates that are clearly behind have no part in it: at
their best temperature, their loss is more than three standard errors above that of the best.

``best`` and ``auto`` take one candidate. ``auto`` follows "one standard error": the simplest candidate whose loss is
within one standard error of the best one's. The error is that of the paired difference, summed by group, because
battles that are hard for one are hard for the other.

Source: Genest & Zidek, Combining Probability Distributions, Statistical Science 1986 (logarithmic pool); Breiman,
Stacked Regressions, Machine Learning 1996 (convex weights of out-of-fold predictions); Breiman, Friedman, Olshen &
Stone, Classification and Regression Trees, 1984, section 3.4.3 (one standard error).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design
from ensemble.stacking.baselines import BASELINES, LengthOnly, Text
from ensemble.stacking.combiners import COMBINERS, FILE, Combiner, PlainMean, UntunedCombiner, fit_scales
from ensemble.stacking.lightgbm_stacker import ExtraTrees, Stacker
from ensemble.stacking.log_pool import fit_convex_pool, fit_pool, pool_losses
from ensemble.statistics.standard_errors import effective_groups, standard_error
from oof.classes import pinned_as
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.metrics import Integers, log_softmax, row_log_loss, softmax

UNTUNED: dict[str, type[UntunedCombiner]] = BASELINES | COMBINERS
KINDS = (*UNTUNED, ExtraTrees.kind, Stacker.kind)  # from simple to complex
ROWS = tuple(kind for kind in KINDS if kind not in (*BASELINES, PlainMean.kind))  # as combiner:KIND in tables
POOL = "pool"
RULES = (POOL, "best", "auto")  # values of stack.final beside the names of candidates
POOL_RIDGE = 0.05  # divided by the effective groups: pull of the pool's weights towards equal ones
CLEARLY_BEHIND = 3.0  # standard errors of the difference from the best candidate, beyond which one is left out
LEAST_WEIGHT = 0.01  # of a candidate in the pool; those below are left out, and need not be computed
MOST_EXTRA_TREES = 5_000  # battles up to which they are a candidate: with more, tuned trees leave them nothing to add
ALL_MEMBERS = ("plain_mean", "mean", "greedy")  # combiners of all members, also of those that are useless

Logits = dict[str, NDArray[np.float64]]


def candidates_of(design: Design) -> tuple[str, ...]:
    """Return the kinds that can be fitted on a design, from simple to complex."""
    absent = set() if design.columns("lengths") else {LengthOnly.kind}
    absent |= {Text.kind} if design.terms is None else set()
    absent |= {ExtraTrees.kind} if len(design.ids) > MOST_EXTRA_TREES else set()
    return tuple(kind for kind in KINDS if kind not in absent)


def refuse_absent(setting: str, design: Design) -> None:
    """Refuse a value of ``stack.final`` that names a candidate which the battles cannot have.

    Raises:
        UserError: it needs their texts, or fewer of them.
    """
    if setting not in (*RULES, *candidates_of(design)):
        why = "needs the texts of the battles, which these files lack"
        if setting == ExtraTrees.kind:
            why = f"is for at most {MOST_EXTRA_TREES:,} battles, not {len(design.ids):,}"
        raise UserError(f"stack.final={setting} {why}; choose one of {', '.join([*RULES, *candidates_of(design)])}")


def useful_members(design: Design, labels: Integers, folds: Integers, groups: Integers) -> list[str]:
    """Return the members that say something about the labels: better than the prior by more than a standard error.

    Each member gets a weight and a tie term, fitted on the other folds. Where none is useful and there are no other
    features to learn from, all are returned.

    Args:
        design: (n) battles.
        labels: (n,).
        folds: (n,) folds of these rows.
        groups: (n,).
    """
    useful = []
    for i, name in enumerate(design.members):
        gain = np.empty(len(labels))
        for fold in np.unique(folds):
            rest, held = folds != fold, folds == fold
            pool, flat = design.pool[:, [i]], np.zeros((len(labels), 1, 3))
            alone = np.maximum(fit_pool(pool[rest], labels[rest]), [0.0, -np.inf])
            prior = fit_pool(flat[rest], labels[rest])
            losses = [pool_losses(z[held], labels[held], w) for z, w in ((flat, prior), (pool, alone))]
            gain[held] = losses[0] - losses[1]
        if gain.mean() > standard_error(gain, groups):
            useful.append(name)
    others = any(not family.startswith("member:") and family != "between" for family in design.families.values())
    return useful if useful or others else list(design.members)


def out_of_fold(kinds: Iterable[str], design: Design, labels: Integers, folds: Integers) -> Logits:
    """Return kind -> (n, 3) logits of each row by untuned candidates that were fitted on the other folds."""
    logits = {kind: np.empty((len(labels), 3)) for kind in kinds}
    for fold in np.unique(folds):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        train, unseen = design.take(rest), design.take(held)
        for kind, values in logits.items():
            values[held] = UNTUNED[kind].fit(train, labels[rest]).logits(unseen)
    return logits


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, or the weights of several.

    Attributes:
        kind: of the candidate, or ``pool``.
        weights: kind -> weight of its log-probabilities, with sum 1.
        reason: in words.
    """

    kind: str
    weights: dict[str, float]
    reason: str

    def combine(self, logits: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the (n, 3) logits of the choice from those of the candidates."""
        if self.kind != POOL:
            return logits[self.kind]
        pooled = np.asarray(sum(weight * log_softmax(logits[kind]) for kind, weight in self.weights.items()))
        return pinned_as(next(iter(logits.values())), pooled)


def choose(setting: str, logits: Logits, labels: Integers, groups: Integers) -> Choice:
    """Return which candidates to use.

    Args:
        setting: "pool" (all, weighted), "best" (the smallest loss, however close the others are), "auto" (the
            one-standard-error rule) or the name of a candidate.
        logits: name -> (n, 3) out-of-fold logits of the same rows, from simple to complex.
        labels: (n,).
        groups: (n,).

    """
    if setting == POOL:
        return _pooled(logits, labels, groups)
    if setting not in RULES:
        return Choice(setting, {setting: 1.0}, f"stack.final={setting}")
    losses = {kind: row_log_loss(softmax(values), labels) for kind, values in logits.items()}
    kinds = list(losses)
    best = min(kinds, key=lambda kind: float(losses[kind].mean()))
    smallest = f"{best} has the smallest loss ({losses[best].mean():.4f})"
    if setting == "best":
        return Choice(best, {best: 1.0}, smallest)
    for kind in kinds[: kinds.index(best)]:
        difference = losses[kind] - losses[best]
        error = standard_error(difference, groups)
        if difference.mean() <= error:
            reason = (
                f"{kind} ({losses[kind].mean():.4f}) is the simplest within one standard error ({error:.4f}) of the "
                f"best, {best} ({losses[best].mean():.4f})"
            )
            return Choice(kind, {kind: 1.0}, reason)
    return Choice(best, {best: 1.0}, f"{smallest}, none simpler comes near it")


def _pooled(logits: Logits, labels: Integers, groups: Integers) -> Choice:
    """Return the weights of the pool."""
    pool = np.stack([log_softmax(values) for values in logits.values()], axis=1)
    pool = pool - pool.mean(axis=2, keepdims=True)
    near = _near_the_best(pool, labels, groups)
    _, sizes = np.unique(groups, return_counts=True)
    shares = fit_convex_pool(pool[:, near], labels, POOL_RIDGE / effective_groups(sizes))
    shares = np.where(shares >= LEAST_WEIGHT, shares, 0.0)
    kinds = [kind for kind, is_near in zip(logits, near, strict=True) if is_near]
    weights = {kind: weight for kind, weight in zip(kinds, (shares / shares.sum()).tolist(), strict=True) if weight}
    listed = sorted(weights.items(), key=lambda item: -item[1])
    return Choice(POOL, weights, "a pool of " + ", ".join(f"{kind} {weight:.2f}" for kind, weight in listed))


def _near_the_best(pool: NDArray[np.float64], labels: Integers, groups: Integers) -> NDArray[np.bool_]:
    """Return (m,) whether a candidate's loss, each at its best temperature, is near the smallest."""
    scaled = pinned_as(pool, pool * np.asarray(fit_scales(pool, labels))[:, None])
    losses = -log_softmax(scaled)[np.arange(len(labels)), :, labels]
    behind = losses - losses[:, [losses.mean(axis=0).argmin()]]
    errors = np.array([standard_error(column, groups) for column in behind.T])
    return np.asarray(behind.mean(axis=0) <= CLEARLY_BEHIND * errors)


def choose_out_of_fold(
    setting: str, logits: Logits, labels: Integers, groups: Integers, folds: Integers
) -> NDArray[np.float64]:
    """Return (n, 3) logits of each row by the choice that the other folds' rows make, for the calibrator.

    Args:
        setting: as in :func:`choose`, as are ``logits``, ``labels`` and ``groups``.
        folds: (n,) of at least two folds.
    """
    out = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        others = {kind: values[rest] for kind, values in logits.items()}
        choice = choose(setting, others, labels[rest], groups[rest])
        out[held] = choice.combine({kind: values[held] for kind, values in logits.items()})
    return out


@dataclass(frozen=True)
class Pool(Combiner):
    """A log-linear pool of fitted candidates.

    Attributes:
        parts: the candidates.
        weights: factor of each one's log-probabilities.
    """

    parts: tuple[Combiner, ...]
    weights: tuple[float, ...]
    kind: ClassVar[str] = POOL

    @property
    def reads_terms(self) -> bool:
        return any(part.reads_terms for part in self.parts)

    @classmethod
    def of(cls, choice: Choice, fitted: Mapping[str, Combiner]) -> Combiner:
        """Return the combiner of a choice among fitted candidates; of one candidate that one itself."""
        if choice.kind != POOL:
            return fitted[choice.kind]
        return cls(tuple(fitted[kind] for kind in choice.weights), tuple(choice.weights.values()))

    def _logits(self, design: Design) -> NDArray[np.float64]:
        values = {part.kind: part.logits(design) for part in self.parts}
        return Choice(POOL, dict(zip(values, self.weights, strict=True)), "").combine(values)

    def save(self, folder: Path) -> None:
        """Write each part to a folder of its kind, and ``combiner.json`` with the weights."""
        for part in self.parts:
            part.save(folder / part.kind)
        parts = [part.kind for part in self.parts]
        write_json(folder / FILE, {"kind": self.kind, "parts": parts, "weights": list(self.weights)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        saved = read_json(folder / FILE)
        return cls(tuple(load_combiner(folder / kind) for kind in saved["parts"]), tuple(saved["weights"]))


def load_combiner(folder: Path) -> Combiner:
    """Return the combiner that was saved in ``folder``.

    Raises:
        UserError: its kind is unknown.
    """
    kind = read_json(folder / FILE).get("kind")
    classes: Sequence[type[Combiner]] = (*UNTUNED.values(), ExtraTrees, Stacker, Pool)
    known = {c.kind: c for c in classes}
    if kind not in known:
        raise UserError(f"{folder / FILE}: unknown combiner {kind!r}; run 'make stack' with this RUN again")
    return known[kind].load(folder)
