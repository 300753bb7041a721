"""``report.json``'s content -> one HTML page with everything in it; user text is escaped by jinja2."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ensemble.report import sections, sections_run, sections_stack
from ensemble.report.blocks import Section


def render_report(report: dict[str, Any]) -> str:
    """Return the page of one run."""
    parts = [
        sections_run.summary(report),
        *sections.members(report),
        sections.seen(report),
        sections.ties(report),
        sections.quality(report),
        sections.calibration(report),
        sections.position(report),
        sections_stack.stack(report),
        sections_run.distillation(report),
        sections_run.data(report),
    ]
    return _render(f"Report of {report['run']}", [part for part in parts if part.blocks])


def render_comparison(comparison: dict[str, Any]) -> str:
    """Return the page of several runs side by side."""
    return _render(f"Comparison of {', '.join(comparison['runs'])}", sections_run.comparison(comparison))


def _render(title: str, parts: list[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("ensemble.report"),
        autoescape=select_autoescape(default=True, default_for_string=True, enabled_extensions=("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (_asset(name) for name in ("report.js", "report.css"))
    # The browser runs this script and no other, and fetches nothing: even a hole in the escaping could do nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        title=title,
        sections=parts,
        script=Markup(script),  # noqa: S704  # our own file
        style=Markup(style),  # noqa: S704
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _asset(name: str) -> str:
    return resources.files("ensemble.report").joinpath("templates", name).read_text(encoding="utf-8").strip()
