"""Report as Markdown with figures in files, for a pull request or a post: the first screen, the story, the leaderboard.

Command: ``arena-distill report RUN [RUN …] --format md``; of several runs the comparison, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import escape

from ensemble.report.advice import advice
from ensemble.report.head import head
from ensemble.report.names import predictor_name
from ensemble.report.page_elements import Block, Section, interval, number, percent
from ensemble.report.sections_comparison import run_comparison
from ensemble.report.story import story
from ensemble.report.svg import Drawing

Report = dict[str, Any]
FIGURES = "figures"  # folder beside the Markdown file
SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|"})


def drawings(sections: list[Section]) -> list[tuple[str, Drawing]]:
    """Return the figures of the page with their captions, in its order."""
    blocks = [block for section in sections for block in section.blocks]
    return [(block.caption, block.svg) for block in blocks if isinstance(block.svg, Drawing)]


def render_markdown(report: Report, figures: list[tuple[str, Drawing]]) -> str:
    """Return the Markdown text of one run.

    Args:
        report: the content of ``report.json``.
        figures: captions and drawings, whose PNG files are in ``FIGURES``.
    """
    first = head(report)
    parts = [
        f"# Report of {_plain(report['run'])}",
        " · ".join(_plain(fact) for fact in first.facts),
        _plain(first.conclusion),
        _table([["", "log loss", ""]], [[_plain(card.name if card.label == "member" else
               f"{card.label}: {card.name}"), _plain(card.value), _plain(card.note)] for card in first.cards]),
        _plain(first.legend),
        f"```bash\n{first.command}\n```",
        _plain(first.reason),
        *_list("Warnings", report["summary"]["warnings"]),
        *_list("Findings", story(report)),
        *_list("What to try next", advice(report)),
        "## Leaderboard",
        _leaderboard(report),
        "A rank is one more than the number of predictors that are shown to be better (paired 95 % interval).",
        "## Figures",
        *(_figure(caption, drawing) for caption, drawing in figures),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def render_comparison_markdown(comparison: Report) -> str:
    """Return the Markdown text of the content of a comparison's ``report.json``."""
    parts = [f"# Comparison of {_plain(', '.join(comparison['runs']))}"]
    for section in run_comparison(comparison):
        parts.append(f"## {_plain(section.title)}")
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> list[str]:
    """Return a block of a section as Markdown."""
    if isinstance(block.svg, Drawing):
        return [_figure(block.caption, block.svg)]
    if block.kind == "text":
        return [_plain(block.text)]
    title = f"### {_plain(block.caption)}"
    if block.kind == "list":
        return [title, "\n".join(f"- {_plain(row[0])}" for row in block.rows)]
    return [title, _table(*([[_plain(cell) for cell in row] for row in rows]
                            for rows in ([block.head], block.rows)))]  # fmt: skip


def _figure(caption: str, drawing: Drawing) -> str:
    return f"![{_plain(caption)}]({FIGURES}/{drawing.name}.png)"


def _plain(text: object) -> str:
    """Return text, plain or HTML, as Markdown: without tags, and with what Markdown would read escaped."""
    return str(escape(text).striptags()).translate(SPECIAL)


def _list(title: str, rows: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {_plain(row)}" for row in rows)] if rows else []


def _table(head: list[list[str]], rows: list[list[str]]) -> str:
    lines = [*head, ["---"] * len(head[0]), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _leaderboard(report: Report) -> str:
    rows = sorted(report["summary"]["table"], key=lambda row: float(row["log_loss"]["value"]))
    cells = [
        [str(row["rank"] or ""), _plain(predictor_name(row["predictor"])),
         _plain(interval(row["log_loss"])), _plain(interval(row["behind"], signed=True)) if row["behind"] else "",
         _plain(percent(row["accuracy"])), _plain(number(row["ece"]))]
        for row in rows
    ]  # fmt: skip
    return _table([["rank", "predictor", "log loss", "behind the first", "accuracy", "ECE"]], cells)
