"""``python -m oof check FILE…``: a readable profile of battle files and every problem in them.

A file with verdicts is looked at as training battles, one without as battles to predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.config import Groups
from oof.data import readers, schemas
from oof.data.build_table import BattleSet, Part, read_parts, settle
from oof.data.problems import Problem
from oof.profile import Ruler, describe, ruler

LISTED = 100  # bad rows of one kind that are listed one by one; the rest as ranges
RANGE_CHARACTERS = 2000


def check_files(
    paths: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    groups: Groups | None = None,
    seed: int = 0,
) -> int:
    """Print the profile of each file, and of all together; return 0 if every file can be used as it is, else 1.

    Args:
        paths: files or globs.
        columns: as ``data.columns``.
        tokenizer: a folder with ``tokenizer.json`` to count tokens with.
        groups: when two prompts are near-duplicates.
        seed: draws the sides of chosen/rejected pairs.

    Raises:
        UserError: the call is wrong: no such file, an unknown name in ``columns``, no tokenizer in its folder.
    """
    files = readers.expand(paths)
    if not files:
        raise UserError("no files to check; name at least one")
    measure = ruler(tokenizer)
    grouping = groups or Groups()
    parts: list[Part] = []
    known: set[Problem] = set()
    usable = True
    for file in files:
        try:
            found = read_parts(file, "any", columns or {}, seed, 1.0)
        except UserError as error:
            usable = False
            print(f"{file}\n  cannot be used: {error}\n")
            continue
        for part in found:
            battles = settle([part], "drop")
            problems = [*battles.problems, *_column_problems(part)]
            print(part.file)
            for line in describe(battles, grouping, measure):
                print(line)
            known.update(problems)
            usable &= _print_problems(problems, part.role, battles)
        parts += found
    if len(parts) > 1:
        usable &= _print_together(parts, known, grouping, measure)
    return 0 if usable else 1


def _print_together(parts: list[Part], known: set[Problem], groups: Groups, measure: Ruler) -> bool:
    """Print the profile of all files and the problems that none of them has alone."""
    battles = settle(parts, "drop")
    print(f"all {len(parts)} files together")
    for line in describe(battles, groups, measure):
        print(line)
    problems = [problem for problem in battles.problems if problem.column == "id" and problem not in known]
    _print_list(problems)
    fit = not any(problem.severity == "error" for problem in problems)
    print(f"  the files {'can' if fit else 'cannot'} be used together\n")
    return fit


# --- problems --------------------------------------------------------------------------------------------------


def _column_problems(part: Part) -> Iterator[Problem]:
    names = part.draft.raw.names
    winners = [name for name in WINNER_COLUMNS if name in names]
    if winners and part.draft.schema.verdict is None:
        missing = ", ".join(name for name in WINNER_COLUMNS if name not in names)
        yield Problem("error", part.file, f"missing columns {missing}", "a verdict needs all three winner columns")
    for name, ours in schemas.near_misses(names):
        text = f"column {name!r} is not read; did you mean {ours!r}?"
        yield Problem("warning", part.file, text, f"rename it, or set data.columns.{ours}={name}", name)


def _print_problems(problems: list[Problem], role: str, battles: BattleSet) -> bool:
    """Print the problems of one file and what it can be used for; return whether it can be."""
    _print_list(problems)
    usable = battles.table.height > 0 and not any(problem.severity == "error" for problem in problems)
    uses = "for training and scoring" if role == "train" else "as unlabelled battles or to predict (it has no verdicts)"
    if usable:
        print(f"  can be used as it is, {uses}\n")
    elif battles.table.height and battles.dropped.height:
        print("  cannot be used as it is; data.on_bad_row=drop leaves the bad rows out\n")
    else:
        print("  cannot be used as it is\n")
    return usable


def _print_list(problems: list[Problem]) -> None:
    for problem in problems:
        print(f"  {problem.severity}: {problem.message}{'; ' if problem.remedy else ''}{problem.remedy}")
        column = f", column {problem.column}" if problem.column else ""
        for row, reason in problem.rows[:LISTED]:
            print(f"    {problem.file}, row {row}{column}: {reason}")
        if len(problem.rows) > LISTED:
            print(f"    and rows {_ranges([row for row, _ in problem.rows[LISTED:]])}")


def _ranges(rows: Sequence[int]) -> str:
    """Return "3, 5-9, 12" of row numbers, cut after :data:`RANGE_CHARACTERS`."""
    numbers = np.unique(np.asarray(rows))
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    text = ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)
    return text if len(text) <= RANGE_CHARACTERS else f"{text[:RANGE_CHARACTERS]}... ({len(numbers):,} rows)"
