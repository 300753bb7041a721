"""Declaration of one subcommand: its task, an example, its main settings and arguments; the parser and the help of all.

Both packages list their subcommands as :class:`Subcommand`. The command ``arena-distill`` offers all of them, and
``python -m oof`` those of stage one, which torchrun and queues call.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from oof.config.schema import Config
from oof.config.setting import default_of, named_sections, sections, settings

PROGRAM = "arena-distill"
GROUPS = ("get started", "data", "stages", "use", "look at", "tools")
EXIT_STATUSES = {
    0: "done, or up to date",
    1: "a check failed: check found a problem in the files, audit a violated invariant, verify other numbers",
    2: "an error of the user's input, or of the disk; one line on standard error says which and what to do",
    3: "a bug in this program; the line names the file with the traceback",
    75: "stopped by SIGTERM or jobs.time_limit with the work saved; the same command continues",
    130: "interrupted (Ctrl-C); the same command continues",
    141: "nobody reads the output any more, as after | head",
}
WIDEST = 120  # columns of a help text


@dataclass(frozen=True)
class Subcommand:
    """One subcommand of a command line."""

    name: str
    run: Callable[[argparse.Namespace], int | None]
    group: str  # one of GROUPS
    summary: str
    example: str  # a whole command line, which a test runs
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    settings: tuple[str, ...] = ()  # main settings, by their paths in the schema


class CommandParser(argparse.ArgumentParser):
    """Parser of a command that suggests a subcommand where the first word is none."""

    names: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if words and not words[0].startswith("-") and words[0] not in self.names:
            near = difflib.get_close_matches(words[0], self.names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(self.names)}"
            self.error(f"unknown subcommand {words[0]!r}; {hint}")
        return super().parse_known_args(words, namespace)


def build_parser(program: str, description: str, subcommands: Sequence[Subcommand]) -> argparse.ArgumentParser:
    """Return the parser of several subcommands; its help lists them by task."""
    parser = CommandParser(
        prog=program,
        description=textwrap.fill(description, _columns()),
        usage=f"{program} SUBCOMMAND [argument ...]",
        epilog=_overview(program, subcommands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version()}")
    choices = parser.add_subparsers(
        required=True,
        metavar="SUBCOMMAND",
        prog=program,
        parser_class=argparse.ArgumentParser,
        help="what to do; SUBCOMMAND --help explains it",
    )
    parser.names = tuple(subcommand.name for subcommand in subcommands)
    for subcommand in subcommands:
        inner = choices.add_parser(
            subcommand.name,
            description=f"{subcommand.summary[0].upper()}{subcommand.summary[1:]}.",
            epilog=_details(subcommand),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if subcommand.arguments is not None:
            subcommand.arguments(inner)
        inner.set_defaults(subcommand=subcommand.run, name=subcommand.name)
    return parser


def version() -> str:
    """Return the version of the installed package; of a checkout that is not installed, say so."""
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST) - 2


def _overview(program: str, subcommands: Sequence[Subcommand]) -> str:
    """Return the subcommands by task."""
    lines: list[str] = []
    for group in GROUPS:
        members = [subcommand for subcommand in subcommands if subcommand.group == group]
        if members:
            lines += [f"{group}:", *_two_columns([(s.name, s.summary) for s in members], 12), ""]
    lines += ["exit status:", *_two_columns([(str(status), text) for status, text in EXIT_STATUSES.items()], 5)]
    return "\n".join([*lines, "", f"{program} SUBCOMMAND --help shows an example and the main settings."])


def _details(subcommand: Subcommand) -> str:
    """Return example and main settings of a subcommand."""
    lines = ["example:", *(f"  {line}" for line in subcommand.example.splitlines())]
    if subcommand.settings:
        rows = [setting_row(name) for name in subcommand.settings]
        width = max(len(name) for name, _ in rows) + 2
        lines += ["", f"main settings, as key=value words ({PROGRAM} settings lists all):", *_two_columns(rows, width)]
    return "\n".join(lines)


def setting_row(path: str) -> tuple[str, str]:
    """Return ``key=default`` of a setting and the first clause of its documentation.

    Args:
        path: of the setting; NAME stands for a name of the user's own, as in ``members.NAME.checkpoint``.
    """
    schema: Any = Config
    *parents, key = path.split(".")
    for parent in parents:
        schema = (sections(schema) | named_sections(schema)).get(parent, schema)
    field = settings(schema)[key]
    default = default_of(field)
    shown = default if isinstance(default, str) and default else json.dumps(default)
    meaning = re.split(r"[.;] ", field.metadata["doc"].replace("`", ""), maxsplit=1)[0]
    unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
    return f"{path}={shown}", f"{meaning}{unit}"


def _two_columns(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield lines of a name and its text, which is wrapped to the terminal."""
    total = _columns()
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(total - width - 2, 30)) or [""]
        yield f"  {name:<{width}}{wrapped[0]}".rstrip()
        yield from (f"  {'':<{width}}{line}" for line in wrapped[1:])
