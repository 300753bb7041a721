"""Summary of training: time and cost, loss curves, and the student compared with the ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import rel_entr

from ensemble.report.predictor_comparison import compare, side_by_side
from ensemble.report.run_data import RunData
from ensemble.report.slices import Slice
from ensemble.statistics.bootstrap import group_interval

CURVE_POINTS = 200  # of a loss curve: more could not be told apart on the page
ENSEMBLE = "calibrated"  # as in the table and the model card; the teacher lacks a modelled position bias
SMALLEST = 1e-15  # probability, so that a divergence is finite


def cost_report(run: RunData, price_per_hour: float) -> dict[str, Any]:
    """Return the seconds of each stage's jobs, and their cost.

    Args:
        run: jobs without ``seconds`` are left out.
        price_per_hour: of the machine; 0 = unknown, and costs are None.
    """
    rows: list[dict[str, Any]] = []
    for name, jobs in {**run.jobs, "stack": [run.step("stack")]}.items():
        seconds = [float(job["seconds"]) for job in jobs if isinstance(job.get("seconds"), int | float)]
        if not seconds:
            continue
        first = jobs[0]
        total = float(sum(seconds))
        rows.append({"stage": name, "jobs": len(jobs), "seconds": total,
                     "cost": total / 3600 * price_per_hour if price_per_hour else None,
                     "parameters": first.get("parameters"), "trainable": first.get("trainable"),
                     "attention": first.get("attention"), "architecture": first.get("architecture")})  # fmt: skip
    total = float(sum(row["seconds"] for row in rows))
    return {"stages": rows, "seconds": total, "price_per_hour": price_per_hour or None,
            "cost": total / 3600 * price_per_hour if price_per_hour else None}  # fmt: skip


def loss_curves(run: RunData) -> dict[str, dict[str, Any]]:
    """Return the training loss by step per member (and "student") and job, thinned to about ``CURVE_POINTS``."""
    curves: dict[str, dict[str, Any]] = {}
    for name, jobs in run.jobs.items():
        for job in jobs:
            points = [(h["step"], h["loss"]) for h in job.get("history", []) if "loss" in h and "step" in h]
            if points:
                kept = points[:: max(1, -(-len(points) // CURVE_POINTS))]
                steps, losses = ([point[i] for point in kept] for i in (0, 1))
                curve = {"step": steps, "loss": losses, "held_out": job.get("log_loss")}
                curves.setdefault(name, {})[job["folder"]] = curve
    return curves


def distill_report(run: RunData, slices: list[Slice]) -> dict[str, Any] | None:
    """Return the student's agreement with the ensemble, its divergence and where it lost; None without stage three."""
    if "student" not in run.probs or ENSEMBLE not in run.probs:
        return None
    student, ensemble = run.probs["student"], run.probs[ENSEMBLE]
    agree = student.argmax(axis=1) == ensemble.argmax(axis=1)
    divergence = rel_entr(ensemble, np.maximum(student, SMALLEST)).sum(axis=1)
    names = "student", ENSEMBLE
    return {
        "agreement": group_interval(agree.astype(float), run.groups, run.seed),
        "divergence": group_interval(divergence, run.groups, run.seed),
        "comparison": compare(names, run, slices),
        "seeds": max((len(job.get("seeds", [])) for job in run.jobs.get("student", [])), default=0) or 1,
        **side_by_side(names, run),
    }


def abstention_report(run: RunData) -> dict[str, Any] | None:
    """Return for each level of risk how many battles the student answers out of fold, and how many of these wrongly.

    Groups count equally, as in the guarantee of the thresholds. None without thresholds.
    """
    content = run.step("abstention")
    if not content.get("thresholds") or "student" not in run.probs:
        return None
    probs = run.probs["student"]
    sure, wrong = probs.max(axis=1), probs.argmax(axis=1) != run.labels
    _, unit, sizes = np.unique(run.groups, return_inverse=True, return_counts=True)
    rows = []
    for level, threshold in content["thresholds"].items():
        answers = sure >= (np.inf if threshold is None else threshold)
        answered, errors = (np.bincount(unit, flags) / sizes for flags in (answers, answers & wrong))
        rows.append({"level": float(level), "threshold": threshold,
                     "answered": group_interval(answered, np.arange(len(sizes)), run.seed),
                     "wrong": float(errors.sum() / answered.sum()) if answered.any() else None})  # fmt: skip
    return {"confidence": 1 - content["delta"], "groups": content["groups"], "levels": rows}
