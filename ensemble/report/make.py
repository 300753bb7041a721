"""Report of a run: ``report.json`` with every number, and ``index.html`` made from it, in ``RUN/report``.

Command: ``arena-distill report RUN [RUN …]``; several runs are also compared. ``--format md``: Markdown and figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble.contamination import check
from ensemble.report import biases, ties, training_summary
from ensemble.report.battles import battles_to_read
from ensemble.report.data_summary import data_report
from ensemble.report.junk_prompts import junk_report
from ensemble.report.markdown import FIGURES, drawings, render_comparison_markdown, render_markdown
from ensemble.report.page import render_comparison, render_report, sections_of
from ensemble.report.predictor_comparison import compare_members
from ensemble.report.reliability import calibration_report
from ensemble.report.run_comparison import compare_runs
from ensemble.report.run_data import RunData, load_run
from ensemble.report.sections_comparison import run_comparison
from ensemble.report.slices import battle_properties, slices_of
from ensemble.report.stack_summary import stack_report
from ensemble.report.summary import summary_report
from ensemble.report.svg import Drawing, write_png, write_svg
from oof.common.atomic_files import TEMPORARY, replacing, sweep, write_json
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.json_output import plain
from oof.common.steps import Step

FORMAT = 1


def collect(run: RunData, price_per_hour: float = 0.0) -> dict[str, Any]:
    """Return the content of ``report.json``: every number of the page, as plain JSON values.

    Args:
        run: the run.
        price_per_hour: of the machine; 0 = unknown.
    """
    properties = battle_properties(run.table)
    slices = slices_of(properties, run.labels, run.in_corpus, run.has_text)
    labels, groups, seed = run.labels, run.groups, run.seed
    names = [*run.members, *(name for name in ("calibrated", "student") if name in run.probs)]
    probs = {name: run.probs[name] for name in names}
    logits = dict(run.logits) | ({"student": run.student_logits} if run.student_logits is not None else {})
    tie_reports = {name: ties.tie_report(p, labels, groups, seed) for name, p in probs.items()}
    report: dict[str, Any] = {
        "format": FORMAT,
        "run": run.name,
        "members": compare_members(run, properties, slices),
        "ties": {
            "possible": run.ties,
            "predictors": {name: report for name, report in tie_reports.items() if report},
            "origins": ties.origin_rows(properties, probs, labels, groups, seed) if run.has_text else [],
        },
        "quality": junk_report(run.table, probs, labels, groups, seed) if run.has_text else None,
        "calibration": calibration_report(run),
        "position": {
            "models": {name: biases.position_bias(z, groups, seed) for name, z in logits.items()},
            "verdicts": biases.verdict_margin(labels, groups, seed),
            "length": biases.length_bias(properties["log_ratio"].to_numpy(), probs, labels, groups)
            if run.has_text
            else None,
        },
        "stack": stack_report(run),
        "curves": training_summary.loss_curves(run),
        "distillation": training_summary.distill_report(run, slices),
        "data": data_report(run, properties),
        "cost": training_summary.cost_report(run, price_per_hour),
        "seen": contamination_report(run),
        **{name: run.step(name) or None for name in ("cascade", "student_slices")},
        "abstention": training_summary.abstention_report(run),
    }
    report["summary"] = summary_report(run, report)
    choice = report["summary"]["submit"]["choice"]
    report["battles"] = battles_to_read(run.table, probs, labels, choice, run.reads) if run.has_text else None
    return dict(plain(report))


def contamination_report(run: RunData) -> dict[str, Any] | None:
    """Return the corpus files and the battles whose prompt is in them; None without a contamination check."""
    if run.in_corpus is None:
        return None
    manifest = {key: value for key, value in check.read_manifest(run.folder).items() if key not in ("key", "files")}
    return manifest | {"n_seen": int(run.in_corpus.sum()), "share": float(run.in_corpus.mean())}


def write_report(folder: Path, price_per_hour: float = 0.0, form: str = "html") -> Path:
    """Write a run's report: ``report/index.html`` and ``report.json``, or in the form ``md`` ``report/markdown``.

    Returns:
        The path of the page, or of the Markdown text.

    Raises:
        UserError: stage one has not finished there, or a file is damaged.
    """
    report, target = collect(load_run(folder), price_per_hour), folder / "report"
    if form == "html":
        return _write(target, report, render_report(report))
    figures = drawings(sections_of(report))
    return _write_markdown(target / "markdown", report, render_markdown(report, figures), figures)


def write_comparison(folders: Sequence[Path], form: str = "html") -> Path:
    """Write the comparison of two or more runs to the first run's ``report/compare``, as :func:`write_report` does."""
    comparison = dict(plain(compare_runs([load_run(folder) for folder in folders])))
    target = folders[0] / "report" / "compare"
    if form == "html":
        return _write(target, comparison, render_comparison(comparison))
    figures = drawings(run_comparison(comparison))
    return _write_markdown(target / "markdown", comparison, render_comparison_markdown(comparison), figures)


def write_reports(folders: Sequence[Path], price_per_hour: float = 0.0, form: str = "html") -> list[Path]:
    """Write each run's report as html or md, and the comparison of several; return the paths.

    Raises:
        UserError: as :func:`write_report`; a run is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; a comparison needs different runs: make report RUN='runs/a runs/b'")
    pages = [write_report(folder, price_per_hour, form) for folder in folders]
    return [*pages, write_comparison(folders, form)] if len(folders) > 1 else pages


def _write(folder: Path, report: dict[str, Any], page: str) -> Path:
    step = Step(folder, digest(report, page))
    step.manifest()  # logs files that were damaged since they were written from the same numbers
    sweep(folder.glob(TEMPORARY))
    write_json(folder / "report.json", report)
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    step.finish(files=["index.html", "report.json"])
    return folder / "index.html"


def _write_markdown(folder: Path, report: dict[str, Any], text: str, figures: list[tuple[str, Drawing]]) -> Path:
    step = Step(folder, digest(report, text))
    step.manifest()  # logs files that were damaged since
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    sweep(folder.rglob(TEMPORARY))
    files = ["report.md"]
    for _, drawing in figures:
        for ending, write in (("svg", write_svg), ("png", write_png)):
            files.append(f"{FIGURES}/{drawing.name}.{ending}")
            with replacing(folder / files[-1]) as temporary:
                write(drawing, temporary)
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    step.finish(files=sorted(files))
    return folder / "report.md"
