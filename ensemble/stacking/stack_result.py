"""The result of stage two: cross-fitted predictions, and the final stack with its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.design_matrix import Design, add_member, add_terms, build_design
from ensemble.stacking.baselines import TfidfModel, terms_of
from ensemble.stacking.calibration import Calibrator
from ensemble.stacking.combiners import Combiner
from ensemble.stacking.job_scales import JobScales
from ensemble.stacking.selection import Choice, load_combiner
from oof.common.atomic_files import read_json, write_json

TFIDF_MEMBER = "baseline:text"  # a name that no member of a run can have
TFIDF_FILE = "text.json"
JOB_SCALES_FILE = "job_scales.json"


@dataclass
class StackResult:
    """Cross-fitted predictions and the final stack.

    Attributes:
        predictions: name -> (n, 3) cross-fitted probabilities: prior, length_only, text (the TF-IDF baseline, only
            where there are texts), mean (nothing fitted), ``combiner:<kind>``, stack (the choice), calibrated, and
            teacher (calibrated without the asymmetric terms).
        combiner: the final combiner, chosen, tuned and trained on all battles.
        calibrator: the final calibrator, fitted on cross-fitted logits of all battles.
        folds: per outer fold the choice with its reason, the members left out, the calibrator, LightGBM's parameters,
            rounds and importances.
        choice: the final choice.
        tfidf: the TF-IDF baseline, where it is a member (``stack.text_member``).
        features: the columns that the combiners were fitted on.
        job_scales: constants of the fold jobs whose logits, so scaled, the design was made of; the caller sets them.
    """

    predictions: dict[str, NDArray[np.float64]]
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
        if self.combiner.reads_terms or self.tfidf is not None:
            design = add_terms(design, table)
        return design if self.tfidf is None else with_tfidf(design, self.tfidf.logits(terms_of(design)))

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


def with_tfidf(design: Design, logits: NDArray[np.float64]) -> Design:
    """Return the design with the TF-IDF baseline as one more member, whose logits are the same in both orders."""
    return add_member(design, TFIDF_MEMBER, np.repeat(logits[:, None], 2, axis=1))
