"""Reliability: diagrams per class and of the most probable class, calibration error, temperatures."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble.report.run_data import RunData
from ensemble.statistics.binning import bin_means, equal_mass_bins
from ensemble.statistics.scores import scores
from oof.classes import CLASSES
from oof.metrics import Floats, Integers, softmax_mean

BINS = 10


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
    """Return diagrams and scores of every predictor, the pairs before and after calibration, and the temperatures."""
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
    temperatures = [
        {"model": "stack", "fold": fold["fold"], "temperature": fold["temperature"],
         "first_shown": fold.get("first_shown")}
        for fold in stack.get("folds", []) if "temperature" in fold
    ]  # fmt: skip
    if stack.get("calibrator", {}).get("temperature") is not None:
        final = stack["calibrator"]
        temperatures.append({"model": "stack", "fold": "final", "temperature": final["temperature"],
                             "first_shown": final.get("first_shown")})  # fmt: skip
    for k, value in enumerate(student.get("fold_temperatures", [])):
        temperatures.append({"model": "student", "fold": k, "temperature": value, "first_shown": None})
    if student.get("temperature") is not None:
        temperatures.append(
            {"model": "student", "fold": "final", "temperature": student["temperature"], "first_shown": None}
        )
    return {"predictors": predictors, "before_after": pairs, "temperatures": temperatures}
