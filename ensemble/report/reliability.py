"""Reliability: diagrams per class and of the most probable class, calibration error, calibrators."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble.report.run_data import RunData
from ensemble.statistics.binning import bin_means, equal_mass_bins
from ensemble.statistics.scores import scores
from oof.classes import CLASSES
from oof.metrics import Floats, Integers, softmax_mean

BINS = 10
CALIBRATOR_TERMS = {  # name in a manifest -> heading of its column
    "temperature": "temperature",
    "tie_scale": "scale of the tie",
    "tie_bias": "bias of the tie",
    "first_shown": "position bias",
    "first_shown_scale": "scale of A",
}


def diagrams(probs: Floats, labels: Integers, groups: Integers) -> dict[str, list[dict[str, Any]]]:
    """Return the points of four diagrams: each class's probability, and the confidence in the most probable class.

    Bins have equal mass. A point has ``n``, ``predicted`` (mean probability), ``value`` (observed share) and its
    group-robust 95 % interval.

    Args:
        probs: (n, 3).
        labels: (n,) classes.
        groups: (n,) group numbers.
    """
    curves = {name: (probs[:, c], labels == c) for c, name in enumerate(CLASSES)}
    curves["top"] = (probs.max(axis=1), probs.argmax(axis=1) == labels)
    points: dict[str, list[dict[str, Any]]] = {}
    for name, (p, hit) in curves.items():
        bins = equal_mass_bins(p, BINS)
        predicted = bin_means(p, bins, BINS, groups)
        observed = bin_means(hit.astype(np.float64), bins, BINS, groups)
        points[name] = [{"predicted": m["value"], **o} for m, o in zip(predicted, observed, strict=True) if o["n"]]
    return points


def calibration_report(run: RunData) -> dict[str, Any]:
    """Return diagrams and scores of every predictor, the pairs before and after calibration, and the calibrators."""
    probs = {name: p for name, p in run.probs.items() if name in (*run.members, "stack", "calibrated", "student")}
    if run.student_logits is not None and "student" in probs:
        probs["student, uncalibrated"] = softmax_mean(run.student_logits)
    predictors = {
        name: {"scores": scores(p, run.labels), "diagrams": diagrams(p, run.labels, run.groups)}
        for name, p in probs.items()
    }
    pairs = [("stack", "calibrated"), ("student, uncalibrated", "student")]
    pairs = [pair for pair in pairs if pair[0] in probs and pair[1] in probs]
    stack, student = run.step("stack"), run.step("distill")
    fitted = [("stack", fold["fold"], fold) for fold in stack.get("folds", []) if "temperature" in fold]
    fitted += [("stack", "final", stack["calibrator"])] if "temperature" in stack.get("calibrator", {}) else []
    fitted += [("student", k, {"temperature": value}) for k, value in enumerate(student.get("fold_temperatures", []))]
    fitted += [("student", "final", student)] if student.get("temperature") is not None else []
    calibrators = [
        {"model": model, "fold": fold} | {name: terms.get(name) for name in CALIBRATOR_TERMS}
        for model, fold, terms in fitted
    ]
    return {"predictors": predictors, "before_after": pairs, "temperatures": calibrators}
