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
from typing import Any

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
    """Return usage, arguments and options of every subcommand of both packages."""
    import ensemble.__main__
    import oof.__main__

    lines: list[str] = []
    for main in (oof.__main__, ensemble.__main__):
        parser = main._parser()
        lines += [f"## {parser.prog}", "", parser.description or "", ""]
        for name, command, summary in subcommands(parser):
            lines += _command(name, command, summary)
    return "\n".join(lines)


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield name, parser and one-line help of every subcommand."""
    group = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for choice in group._choices_actions:
        yield choice.dest, group.choices[choice.dest], choice.help or ""


def _command(name: str, command: argparse.ArgumentParser, summary: str) -> Iterable[str]:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)
    usage = command.format_usage().removeprefix("usage: ").strip()
    yield from (f"### {command.prog.removeprefix('python -m ')}", "", f"{_sentence(summary)}", "")
    yield from ("```text", usage, "```", "")
    rows = [_argument(action) for action in command._actions if not isinstance(action, argparse._HelpAction)]
    if rows:
        yield from _table(("argument", "meaning", "default"), rows)


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    shown = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
    choices = f" One of {', '.join(map(str, action.choices))}." if action.choices else ""
    default = "" if action.default in (None, False, [], argparse.SUPPRESS) else f"`{action.default}`"
    return f"`{shown}`", f"{_sentence(action.help or '')}{choices}", "required" if action.required else default


def make_targets() -> str:
    """Return the table of the Makefile's targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*?## (.*)$", makefile, re.M)
    return "\n".join(_table(("target", "purpose"), [(f"`make {name}`", _sentence(text)) for name, text in targets]))


def features() -> str:
    """Return the output of ``python -m ensemble features`` without its title, which the page has."""
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
    "make targets": make_targets,
    "features": features,
    "prompt qualities": prompt_qualities,
    "battle columns": battle_columns,
    "logit columns": logit_columns,
    "file columns": file_columns,
}
