"""Generated parts of the reference pages: a page holds ``<!-- generated: NAME -->`` where the text of NAME belongs.

Settings come from the metadata of :mod:`oof.config`, commands from the argument parsers and the Makefile, features
from their docstrings, columns and file schemas from the modules that read and write them. The text is made when the
site is built, so it cannot be out of date.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oof.subcommand import Subcommand

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

MARKER = re.compile(r"<!-- generated: ([a-z ]+) -->")
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?([^<]+)</code>")
WIDTH = 100  # columns of a usage line


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker by its generated text."""
    return MARKER.sub(lambda match: GENERATED[match[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx roles of docstrings, such as ``:func:`name```, as code."""
    return ROLE.sub(r"<code>\1</code>", html)


def settings() -> str:
    """Return the table of settings of every section."""
    from oof.config.reference import settings_reference

    return settings_reference().split("\n", 1)[1]  # the page has the title


def commands() -> str:
    """Return example, usage, arguments and main settings of every subcommand, by task."""
    from ensemble.command import SUBCOMMANDS
    from oof.subcommand import GROUPS

    lines: list[str] = []
    for group in GROUPS:
        lines += [f"## {group.capitalize()}", ""]
        for subcommand in (subcommand for subcommand in SUBCOMMANDS if subcommand.group == group):
            lines += _command(subcommand)
    return "\n".join(lines)


def parser_of(subcommand: Subcommand) -> argparse.ArgumentParser:
    """Return the parser of one subcommand."""
    from oof.subcommand import PROGRAM

    name = f"{PROGRAM} {subcommand.name}"
    parser = argparse.ArgumentParser(name, formatter_class=lambda prog: argparse.HelpFormatter(prog, width=WIDTH))
    if subcommand.arguments is not None:
        subcommand.arguments(parser)
    return parser


def _command(subcommand: Subcommand) -> Iterable[str]:
    from oof.subcommand import setting_row

    parser = parser_of(subcommand)
    yield from (f"### {subcommand.name}", "", f"{_sentence(subcommand.summary)} Example and usage:", "")
    yield from ("```text", f"$ {subcommand.example}", parser.format_usage().strip(), "```", "")
    if subcommand.settings:
        names = ", ".join(f"`{name}`" for name, _ in map(setting_row, subcommand.settings))
        yield from (f"Main [settings](settings.md) and their defaults: {names}.", "")
    rows = [_argument(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if rows:
        yield from _table(("argument", "meaning", "default"), rows)


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    shown = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
    choices = f" One of {', '.join(map(str, action.choices))}." if action.choices else ""
    default = "" if action.default in (None, False, [], argparse.SUPPRESS) else f"`{action.default}`"
    return f"`{shown}`", f"{_sentence(action.help or '')}{choices}", "required" if action.required else default


def exit_statuses() -> str:
    """Return the table of exit statuses."""
    from oof.subcommand import EXIT_STATUSES

    rows = [(f"{status}", _sentence(text)) for status, text in EXIT_STATUSES.items()]
    return "\n".join(_table(("status", "meaning"), rows))


def make_targets() -> str:
    """Return the table of the Makefile's targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*?## (.*)$", makefile, re.M)
    return "\n".join(_table(("target", "purpose"), [(f"`make {name}`", _sentence(text)) for name, text in targets]))


def features() -> str:
    """Return the output of ``arena-distill features`` without its title, which the page has."""
    from ensemble.__main__ import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(["features"])
    return output.getvalue().split("\n", 1)[1]


def prompt_qualities() -> str:
    """Return the table of kinds of junk prompts and their quality."""
    from oof.data.prompt_quality import MEANINGS, SCORES

    rows = [(f"`{kind}`", MEANINGS[kind], f"{score:g}") for kind, score in SCORES.items()]
    return "\n".join(_table(("kind", "meaning", "quality"), rows))


def battle_columns() -> str:
    """Return the table of columns of ``battles.parquet``."""
    from oof.data.schemas import TABLE_SCHEMA

    return "\n".join(_table(("column", "type"), [(f"`{name}`", f"{dtype}") for name, dtype in TABLE_SCHEMA.items()]))


def logit_columns() -> str:
    """Return the columns of a file of logits, as a list in running text."""
    from oof.common.logits_format import COUNT_COLUMNS, LOGIT_COLUMNS

    return f"`id`, `fold`, {_names(LOGIT_COLUMNS)} (float32) and {_names(COUNT_COLUMNS)} (int32)"


def file_columns() -> str:
    """Return the names of all columns that a battle file may have, as a list in running text."""
    from oof.data.schemas import FILE_COLUMNS

    return _names(FILE_COLUMNS)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(text: str) -> str:
    text = text.strip().replace("|", "\\|")
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", ":", "?")) else ".")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "exit statuses": exit_statuses,
    "make targets": make_targets,
    "features": features,
    "prompt qualities": prompt_qualities,
    "battle columns": battle_columns,
    "logit columns": logit_columns,
    "file columns": file_columns,
}
