"""HTML page of a report: the sections rendered into one self-contained file. Jinja2 escapes the texts of users."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ensemble.report import (
    sections_battles,
    sections_members,
    sections_predictions,
    sections_run,
    sections_stack,
    sections_student,
    sections_summary,
)
from ensemble.report.columns import in_columns
from ensemble.report.head import head
from ensemble.report.page_elements import Head, Section
from ensemble.report.sections_comparison import run_comparison
from oof.common.digests import content_hash


def sections_of(report: dict[str, Any]) -> list[Section]:
    """Return all sections of the page of one run from the content of ``report.json``."""
    return [
        sections_summary.story(report),
        sections_summary.leaderboard(report),
        *sections_members.members(report),
        sections_members.contamination(report),
        sections_predictions.ties(report),
        sections_predictions.prompt_quality(report),
        sections_predictions.calibration(report),
        sections_predictions.biases(report),
        sections_battles.battles(report),
        sections_stack.stack(report),
        sections_run.distillation(report),
        *sections_student.sections(report),
        sections_run.data(report),
        sections_run.reproduction(report),
    ]


def render_report(report: dict[str, Any]) -> str:
    """Return the page of one run from the content of ``report.json``."""
    return _render(f"Report of {report['run']}", sections_of(report), head(report))


def render_comparison(comparison: dict[str, Any]) -> str:
    """Return the page that compares several runs."""
    return _render(f"Comparison of {', '.join(comparison['runs'])}", run_comparison(comparison))


def _render(title: str, sections: list[Section], head: Head | None = None) -> str:
    environment = Environment(
        loader=PackageLoader("ensemble.report"),
        autoescape=select_autoescape(default=True, default_for_string=True, enabled_extensions=("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (_asset(name) for name in ("report.js", "report.css"))
    # The browser runs this script only and fetches nothing, so that an error in escaping would have no effect.
    return environment.get_template("report.html.j2").render(
        title=title,
        head=head,
        sections=[
            replace(section, blocks=in_columns(section.blocks))
            for section in sections
            if section.blocks or section.fill
        ],
        script=Markup(script),  # noqa: S704  # a file of this package
        style=Markup(style),  # noqa: S704
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {content_hash(script)}",
    )


def _asset(name: str) -> str:
    return resources.files("ensemble.report").joinpath("templates", name).read_text(encoding="utf-8").strip()
