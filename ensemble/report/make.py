"""``python -m ensemble report RUN [RUN …]``: collect -> ``report.json`` -> ``index.html``, in ``RUN/report``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble.contamination import check
from ensemble.report import position, stages, ties
from ensemble.report.compare import compare_runs
from ensemble.report.data import RunData, load_run
from ensemble.report.junk import junk_report
from ensemble.report.page import render_comparison, render_report
from ensemble.report.reliability import calibration_report
from ensemble.report.slices import battle_facts, member_pairs, slices_of
from ensemble.report.stacking import stack_report
from ensemble.report.summary import summary_report
from oof.common.atomic_files import TEMPORARY, replacing, sweep, write_json
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.steps import Step

FORMAT = 1


def collect(run: RunData, price_per_hour: float = 0.0) -> dict[str, Any]:
    """Return the content of ``report.json``: every number of the page, as plain JSON values."""
    facts = battle_facts(run.table)
    slices = slices_of(facts, run.labels, run.seen)
    labels, groups, seed = run.labels, run.groups, run.seed
    members = {name: run.probs[name] for name in run.members}
    judged = members | {name: run.probs[name] for name in ("calibrated", "student") if name in run.probs}
    orders = dict(run.logits) | ({"student": run.student_logits} if run.student_logits is not None else {})
    tie_reports = {name: ties.tie_report(p, labels, groups, seed) for name, p in judged.items()}
    report: dict[str, Any] = {
        "format": FORMAT,
        "run": run.name,
        "members": member_pairs(run.table, facts, members, labels, groups, slices, run.seen, seed),
        "ties": {
            "predictors": {name: found for name, found in tie_reports.items() if found},
            "origins": ties.origin_rows(facts, judged, labels, groups, seed),
        },
        "quality": junk_report(run.table, judged, labels, groups, seed),
        "calibration": calibration_report(run),
        "position": {
            "models": {name: position.order_bias(z, groups, seed) for name, z in orders.items()},
            "verdicts": position.verdict_margin(labels, groups, seed),
            "length": position.length_bias(facts["log_ratio"].to_numpy(), judged, labels, groups),
        },
        "stack": stack_report(run),
        "curves": stages.loss_curves(run),
        "distillation": stages.distill_report(run, slices),
        "data": stages.data_report(run, facts),
        "cost": stages.cost_report(run, price_per_hour),
        "seen": seen_facts(run),
    }
    report["summary"] = summary_report(run, report)
    return dict(plain(report))


def seen_facts(run: RunData) -> dict[str, Any] | None:
    if run.seen is None:
        return None
    facts = {key: value for key, value in check.facts_of(run.folder).items() if key not in ("key", "files")}
    return facts | {"n_seen": int(run.seen.sum()), "share": float(run.seen.mean())}


def write_report(folder: Path, price_per_hour: float = 0.0) -> Path:
    """Write ``report/report.json`` and ``report/index.html`` of a run; return the page's path.

    Raises:
        UserError: stage one has not finished there, or a file is damaged.
    """
    report = collect(load_run(folder), price_per_hour)
    return _write(folder / "report", report, render_report(report))


def write_reports(folders: Sequence[Path], price_per_hour: float = 0.0) -> list[Path]:
    """Write each run's report and, of several, their comparison; return the pages' paths.

    Raises:
        UserError: as :func:`write_report`; a run is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; a comparison needs different ones: make report RUN='runs/a runs/b'")
    pages = [write_report(folder, price_per_hour) for folder in folders]
    return [*pages, write_comparison(folders)] if len(folders) > 1 else pages


def write_comparison(folders: Sequence[Path]) -> Path:
    """Write the comparison of two or more runs into the first one's ``report/compare``; return the page's path."""
    comparison = dict(plain(compare_runs([load_run(folder) for folder in folders])))
    return _write(folders[0] / "report" / "compare", comparison, render_comparison(comparison))


def _write(folder: Path, report: dict[str, Any], page: str) -> Path:
    step = Step(folder, digest(report, page))
    step.manifest()  # names a file that was damaged since it was written from these very numbers
    sweep(folder.glob(TEMPORARY))
    write_json(folder / "report.json", report)
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    step.finish(files=["index.html", "report.json"])
    return folder / "index.html"


def plain(value: Any) -> Any:
    """Return a tree of JSON values: numpy numbers become Python's, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
