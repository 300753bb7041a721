"""Stage two's core: tune, combine, choose and calibrate inside each outer fold, then once more on everything.

For outer fold k the study, the boosters, their number of rounds, the choice of a combiner and the calibrator see the
other folds only; choice and calibrator rest on *inner* out-of-fold logits. So no label of fold k reaches its own
prediction in this stage. The final stack chooses by the outer folds' cross-fitted losses, which nothing was chosen on.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from ensemble.features.design_matrix import Design, add_member, build_design
from ensemble.stacking.calibration import Calibrator, fit_calibrator
from ensemble.stacking.combiners import Combiner, length_only_probs, mean_logits, prior_probs
from ensemble.stacking.lightgbm_stacker import Stacker, fit_stacker
from ensemble.stacking.parallel import cores, map_tasks
from ensemble.stacking.selection import KINDS, SIMPLE, Choice, choose, load_combiner, out_of_fold
from ensemble.stacking.tfidf_baseline import TextModel, Texts, count_terms, fit_text, out_of_fold_text, text_probs
from ensemble.stacking.tuning import tune
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.common.steps import LINGERING, locked
from oof.config import Stack
from oof.metrics import softmax

logger = logging.getLogger(__name__)

Integers = NDArray[np.integer[Any]]
Probabilities = dict[str, NDArray[np.float64]]
CROSS_FITTED = (
    "prior",
    "length_only",
    "mean",
    "stack",
    "calibrated",
    "teacher",
    *(f"combiner:{kind}" for kind in KINDS),
)
TEXT_MEMBER = "baseline:text"  # a name that no member of a run can have
TEXT_FILE = "text.json"
FINAL = -1  # the task that leaves no fold out
WORTH_A_PROCESS = 10_000  # battles times trials from which processes of their own pay


@dataclass
class StackResult:
    """What stage two leaves.

    Attributes:
        predictions: name -> (n, 3) cross-fitted probabilities: prior, length_only, text (with texts only), mean
            (nothing fitted), ``combiner:<kind>``, stack (the chosen combiner), calibrated, and teacher (calibrated
            without the first-shown term).
        combiner: the final combiner, chosen, tuned and trained on all battles; ``calibrator`` likewise.
        folds: per outer fold the choice with its reason, the calibrator, LightGBM's parameters, rounds and
            importances.
        choice: the final choice.
        text: the text baseline that is a member (``stack.text_member``).
        features: the columns that the combiners were fitted on.
    """

    predictions: Probabilities
    combiner: Combiner
    calibrator: Calibrator
    folds: list[dict[str, Any]] = field(default_factory=list)
    choice: Choice | None = None
    text: TextModel | None = None
    features: list[str] = field(default_factory=list)

    def predict(self, design: Design) -> NDArray[np.float64]:
        """Return (n, 3) calibrated probabilities of battles that were never in the run."""
        return self.calibrator.apply(self.combiner.logits(design))

    def design(self, table: pl.DataFrame, logits: dict[str, NDArray[np.floating]]) -> Design:
        """Return what the combiner reads of battles that were never in the run, given their members' logits."""
        design = build_design(table, logits)
        return design if self.text is None else _with_text(design, self.text.logits(count_terms(table)))

    def facts(self) -> dict[str, Any]:
        """Return what the manifest and the report say."""
        sampler = {"sampler": "TPE, multivariate", "optuna": metadata.version("optuna")}
        final = {"combiner": self.combiner.kind, "reason": self.choice.reason if self.choice else ""}
        return {"calibrator": self.calibrator.to_dict(), "final": final, "folds": self.folds, "tuning": sampler}

    def save(self, folder: Path) -> None:
        """Save the final stack: boosters as text, the rest as JSON."""
        self.combiner.save(folder)
        write_json(folder / "calibrator.json", self.calibrator.to_dict())
        if self.text is not None:
            self.text.save(folder / TEXT_FILE)

    @classmethod
    def load(cls, folder: Path) -> StackResult:
        calibrator = Calibrator(**read_json(folder / "calibrator.json"))
        text = TextModel.load(folder / TEXT_FILE) if (folder / TEXT_FILE).is_file() else None
        return cls({}, load_combiner(folder), calibrator, text=text)


@dataclass(frozen=True)
class _Data:
    """All that the fits read."""

    design: Design
    labels: Integers
    folds: Integers
    groups: Integers
    config: Stack
    seed: int
    studies: Path
    texts: Texts | None


@dataclass(frozen=True)
class _Fit:
    """One outer fold's fits, or the final ones.

    Attributes:
        combiners: kind -> fitted on the training rows.
        inner: kind -> (n_train, 3) inner out-of-fold logits of the training rows.
        held: name -> probabilities of the fold's rows, and ``logits`` of each combiner by kind; empty if final.
    """

    combiners: dict[str, Combiner]
    inner: Probabilities
    held: Probabilities
    logits: Probabilities
    params: dict[str, Any]
    rounds: int
    text: TextModel | None
    features: list[str]


def _with_text(design: Design, logits: NDArray[np.float64]) -> Design:
    """Return the design with the text baseline as a member, which reads both orders as one."""
    return add_member(design, TEXT_MEMBER, np.repeat(logits[:, None], 2, axis=1))


def cross_fit(
    design: Design,
    labels: Integers,
    folds: Integers,
    groups: Integers,
    config: Stack,
    seed: int,
    studies: Path,
    texts: Texts | None = None,
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
        texts: (n) term counts for the text baseline; without them there is none.

    Raises:
        UserError: fewer than two folds, a logit is not finite, or ``text_member`` without texts.
    """
    if config.text_member and texts is None:
        raise UserError("stack.text_member=true needs the battles' texts, which are not here; set it to false")
    outer = [int(fold) for fold in np.unique(folds)]
    if len(outer) < 2:
        raise UserError(f"stacking needs battles in at least 2 folds, not {len(outer)}")
    names = CROSS_FITTED if texts is None else (*CROSS_FITTED, "text")
    out = {name: np.full((len(labels), 3), np.nan) for name in names}
    out["mean"] = softmax(mean_logits(design))
    data = _Data(design, labels, folds, groups, config, seed, studies, texts)
    fits = _fit_all(data, [FINAL, *outer])  # the longest first: processes end together
    facts = [_fill(out, data, fold, fits[fold]) for fold in outer]
    cross_fitted = {kind: np.empty((len(labels), 3)) for kind in KINDS}
    for fold in outer:
        for kind in KINDS:
            cross_fitted[kind][folds == fold] = fits[fold].logits[kind]
    choice, last = choose(config.final, cross_fitted, labels, groups), fits[FINAL]
    logger.info("final combiner: %s", choice.reason)
    calibrator = fit_calibrator(config.calibrator, config.order, last.inner[choice.kind], labels, groups, seed)
    return StackResult(out, last.combiners[choice.kind], calibrator, facts, choice, last.text, last.features)


def _fit_all(data: _Data, tasks: list[int]) -> dict[int, _Fit]:
    wanted = data.config.workers or (cores() if len(data.labels) * data.config.trials >= WORTH_A_PROCESS else 1)
    fits: dict[int, _Fit] = {}
    with tqdm(total=len(tasks), desc="stack", disable=not sys.stderr.isatty(), leave=False) as bar:
        for i, fit in map_tasks(_fit, data, tasks, min(wanted, len(tasks))):
            fits[tasks[i]] = fit
            bar.update(1)
    return fits


def _fit(data: _Data, fold: int) -> _Fit:
    """Fit all combiners without ``fold``, and score it; with ``FINAL``, on all rows."""
    rest, held = np.flatnonzero(data.folds != fold), np.flatnonzero(data.folds == fold)
    part, y, g = data.design.take(rest), data.labels[rest], data.groups[rest]
    text = None
    if data.texts is not None and data.config.text_member:
        seen = data.texts.take(rest)
        text, part = fit_text(seen, y), _with_text(part, out_of_fold_text(seen, y, g, data.seed))
    config, name = data.config, "final" if fold == FINAL else f"fold-{fold}"
    parts = part, y, data.folds[rest], g, config.trials, config.rounds, data.seed
    with locked(data.studies, f".{name}.lock", LINGERING):
        tuned = tune(*parts, data.studies / f"{name}.log")
    combiners = {kind: fit(part, y) for kind, fit in SIMPLE.items()}
    combiners["lightgbm"] = fit_stacker(part, y, tuned.params, tuned.rounds, data.seed)
    logits = {kind: out_of_fold(kind, part, y, tuned.inner) for kind in SIMPLE} | {"lightgbm": tuned.logits}
    if fold == FINAL:
        return _Fit(combiners, logits, {}, {}, tuned.params, tuned.rounds, text, part.names)
    unseen = data.design.take(held)
    if data.texts is not None and text is not None:
        unseen = _with_text(unseen, text.logits(data.texts.take(held)))
    probs = {"prior": prior_probs(y, len(held)), "length_only": length_only_probs(part, y, unseen)}
    if data.texts is not None:
        probs["text"] = text_probs(data.texts.take(rest), y, data.texts.take(held))
    outer = {kind: combiner.logits(unseen) for kind, combiner in combiners.items()}
    return _Fit(combiners, logits, probs, outer, tuned.params, tuned.rounds, text, part.names)


def _fill(out: Probabilities, data: _Data, fold: int, fit: _Fit) -> dict[str, Any]:
    """Choose and calibrate for one outer fold, write its predictions to ``out``, and return its facts."""
    held, rest = data.folds == fold, data.folds != fold
    y, g = data.labels[rest], data.groups[rest]
    choice = choose(data.config.final, fit.inner, y, g)
    inner = fit.inner[choice.kind]
    calibrator = fit_calibrator(data.config.calibrator, data.config.order, inner, y, g, data.seed)
    logits = fit.logits[choice.kind]
    for name, probs in fit.held.items():
        out[name][held] = probs
    for kind, values in fit.logits.items():
        out[f"combiner:{kind}"][held] = softmax(values)
    out["stack"][held] = softmax(logits)
    out["calibrated"][held] = calibrator.apply(logits)
    out["teacher"][held] = calibrator.apply_symmetric(logits)
    chosen = {"combiner": choice.kind, "reason": choice.reason}
    facts = {"fold": fold, **calibrator.to_dict(), **chosen, "rounds": fit.rounds, "params": fit.params}
    return facts | _importances(fit.combiners["lightgbm"])


def _importances(combiner: Combiner) -> dict[str, list[float]]:
    """Return gain and number of splits by feature, in the design's order: the report shows them whoever was chosen."""
    assert isinstance(combiner, Stacker)
    gain, splits = (combiner.booster.feature_importance(kind) for kind in ("gain", "split"))
    return {"gain": gain.tolist(), "splits": splits.tolist()}
