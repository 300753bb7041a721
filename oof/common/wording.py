"""Remedies in the words of the command: messages name make's targets and variables, ``arena-distill`` has options.

A message is written once, for make (``run 'make oof' with this RUN first``, ``REDO=1``). Where ``arena-distill`` was
called by itself, its targets and variables become subcommands and options before the message is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from oof.common.errors import UserError

CALLER = "ARENA_DISTILL_CALLER"  # environment variable that the Makefile sets
Replacement = tuple[str, str | Callable[[re.Match[str]], str]]  # pattern, and what stands in its place
FREE = r"(?<![\w/.-])"  # before a word that is no part of a path
REPLACEMENTS: tuple[Replacement, ...] = (
    (r"make setup EXTRAS=(\w+)", r'pip install "arena-distill[\1]"'),
    (FREE + r"make (?=(?:oof|stack|ablate|distill|predict|table|report|demo|plan|check|audit)\b)", "arena-distill "),
    (r"arena-distill (report|check|audit) (?:RUN|DATA)=", r"arena-distill \1 "),
    (FREE + r"REDO=1(?: \(--redo\))?", "--redo"),
    (FREE + r"LOGITS=", "stack.logits="),
    (FREE + r"(CONFIG|RUN|DATA|TEST)=", lambda match: f"--{match[1].lower()} "),
    (FREE + r"(CONFIG|RUN|DATA|TEST)(?![\w/-]|\.\w)", lambda match: f"--{match[1].lower()}"),
    (FREE + r'ARGS="([^"]*)"', r"\1"),
    (FREE + r"ARGS(?![\w/-])", "key=value words"),
    ("see configs/ for examples", "'arena-distill init' writes examples"),
)


def called_by_make() -> bool:
    """Return whether the user called a make target, which knows variables instead of options."""
    return os.environ.get(CALLER) == "make"


def in_words_of_the_command(message: str) -> str:
    """Return a message with make's targets and variables as subcommands and options of ``arena-distill``."""
    return reworded(message, REPLACEMENTS)


def reworded(message: str, replacements: Sequence[Replacement]) -> str:
    """Return a message after the replacements, in their order."""
    for pattern, replacement in replacements:
        message = re.sub(pattern, replacement, message)
    return message


@contextmanager
def errors_reworded(replacements: Sequence[Replacement], kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn settings in the message of an error into arguments of a call, and the error into one of a ``kind``."""
    try:
        yield
    except UserError as error:
        raise kind(reworded(str(error), replacements)) from error
