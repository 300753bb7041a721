"""Check of battle files before training: a profile of each file, and every problem with its remedy.

A file with verdicts is read as training battles, one without as battles to predict.
Command: ``arena-distill check FILE… [data.columns={…}]``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from oof.classes import CLASSES, WINNER_COLUMNS, class_counts
from oof.common.atomic_files import replacing
from oof.common.errors import UserError
from oof.config import Data, Groups
from oof.config.schema_data import READING
from oof.data import readers, schemas
from oof.data.build_table import BattleSet, build_table
from oof.data.parse_file import ParsedFile, parse_file
from oof.data.problems import Problem, rows_in_words
from oof.data.profile import LengthMeasure, has_texts, length_measure, line, percent, profile_lines
from oof.data.suggested_settings import UnreadableColumnsError, file_column, remedy, suggested_settings
from oof.data.votes import Votes, read_votes

LISTED = 20  # reasons of one kind that are listed; the rows of the others as ranges
OF_A_FILE = ("file", "usable", "error", "battles", "dropped", "verdicts", "groups", "counts", "problems")  # in JSON
RANGE_CHARACTERS = 500  # of the list of ranges


def check_files(
    paths: Sequence[str],
    *,
    data: Data | None = None,
    tokenizer: str | None = None,
    groups: Groups | None = None,
    write: str | None = None,
    document: dict[str, Any] | None = None,
) -> int:
    """Print the profile of each file and of all together; return 0 if every file can be used as it is, else 1.

    Args:
        paths: files or globs.
        data: the settings of reading, such as ``columns`` and ``verdicts``; its files are not read.
        tokenizer: a folder with the ``tokenizer.json`` to count tokens with.
        groups: settings of the grouping by near-duplicate prompts.
        write: a YAML file for the settings of reading: those of ``data``, and those suggested for a file that cannot
            be read, unless there are two possibilities.
        document: filled with what is printed, as JSON values.

    Raises:
        UserError: the arguments are wrong: no such file, an unknown name in ``columns``, no tokenizer in its folder.
    """
    files = readers.expand(paths)
    if not files:
        raise UserError("no files to check; name at least one")
    measure = length_measure(tokenizer)
    grouping = groups or Groups()
    data = data or Data()
    suggested: dict[str, Any] = {}
    parsed: list[ParsedFile] = []
    entries: list[dict[str, Any]] = []
    together: dict[str, Any] | None = None
    printed: set[Problem] = set()
    usable = True
    votes = read_votes(data)
    for path in files:
        try:
            of_path = parse_file(path, "any", data, 0, votes=votes)
        except UserError as error:
            usable = False
            print(f"{path}\n  cannot be used: {error}\n")
            entries.append({**dict.fromkeys(OF_A_FILE), "file": path, "usable": False, "error": str(error)})
            suggested |= error.common if isinstance(error, UnreadableColumnsError) else {}
            continue
        for file in of_path:
            battles = build_table([file], "drop")
            problems = [*battles.problems, *_column_problems(file), *_unread_verdicts(path, file, data)]
            n_groups = _print_profile(file.name, battles, grouping, measure)
            printed.update(problems)
            file_usable = _print_problems(problems, file.role, battles)
            usable &= file_usable
            entries.append(_entry(file.name, file_usable, battles, n_groups, problems))
        parsed += of_path
    if votes:
        _print_votes(votes)
    if write:
        columns = {**suggested.pop("columns", {}), **data.columns}
        _write_settings(write, replace(data, columns=columns, **suggested))
    if len(parsed) > 1:
        together = _check_together(parsed, printed, grouping, measure)
        usable &= together["usable"]
    if document is not None:
        document |= {"usable": usable, "files": entries, "together": together}
    return 0 if usable else 1


def _print_votes(votes: Votes) -> None:
    """Print what the votes were joined to, and their problems.

    Raises:
        UserError: no battle has votes.
    """
    problems = votes.all_problems()
    print(f"{votes.name}\n  votes       on {len(votes.given):,} of the battles above")
    _print_list(problems)
    print()


def _entry(
    name: str, usable: bool, battles: BattleSet, n_groups: int | None, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Return what is printed about a file as JSON values, by the names of :data:`OF_A_FILE`."""
    labels = battles.table["label"].drop_nulls().to_numpy()
    verdicts = dict(zip(CLASSES, class_counts(labels).tolist(), strict=True))
    listed = [problem.document() for problem in problems]
    values = (name, usable, None, battles.table.height, battles.dropped.height, verdicts, n_groups, battles.counts)
    return dict(zip(OF_A_FILE, (*values, listed), strict=True))


def _write_settings(path: str, data: Data) -> None:
    """Write the settings of reading that differ from the defaults as YAML lines of a configuration."""
    default = Data()
    values = {name: getattr(data, name) for name in ("columns", *READING)}
    changed = {name: value for name, value in values.items() if value != getattr(default, name)}
    with replacing(Path(path)) as temporary:
        temporary.write_text(yaml.safe_dump({"data": changed}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    print(f"{path}: {len(changed)} settings of reading; put these lines into your configuration\n")


def _check_together(
    parsed: list[ParsedFile], printed: set[Problem], groups: Groups, measure: LengthMeasure
) -> dict[str, Any]:
    """Print the profile of all files and the problems that none of them has alone; return them as JSON values."""
    battles = build_table(parsed, "drop")
    title = f"all {len(parsed)} files together"
    n_groups = _print_profile(title, battles, groups, measure)
    problems = [problem for problem in battles.problems if problem.column == "id" and problem not in printed]
    _print_list(problems)
    usable = not any(problem.severity == "error" for problem in problems)
    print(f"  the files {'can' if usable else 'cannot'} be used together\n")
    return _entry(title, usable, battles, n_groups, problems)


def _print_profile(title: str, battles: BattleSet, groups: Groups, measure: LengthMeasure) -> int | None:
    """Print a profile and return the number of groups; None where no battle has texts."""
    print(title)
    for text in profile_lines(battles, measure):
        print(text)
    if not has_texts(battles):
        return None
    from oof.folds.groups import group_battles

    sizes = np.bincount(group_battles(battles.table, groups))  # takes longest of the profile
    for text in _group_lines(battles.table, sizes, groups):
        print(text)
    return len(sizes)


def _group_lines(table: pl.DataFrame, sizes: NDArray[np.integer], groups: Groups) -> Iterator[str]:
    """Yield the numbers of distinct prompts and of groups of ``sizes`` battles."""
    prompts = table.group_by("prompt").len()["len"].to_numpy()
    yield line("prompts", f"{len(prompts):,} distinct, each in {_range(prompts)} battles")
    how = f"by column {groups.column}" if groups.column else f"near-duplicate prompts, threshold {groups.threshold:g}"
    yield line("groups", f"{len(sizes):,} groups of {_range(sizes)} battles ({how})")
    largest = int(sizes.max())
    if 2 * largest > table.height > 1:
        yield line("", f"note: one group holds {percent(largest, table.height)} of the battles; folds cannot be even")


def _range(sizes: NDArray[np.integer]) -> str:
    low, high = int(sizes.min()), int(sizes.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# --- problems --------------------------------------------------------------------------------------------------


def _column_problems(file: ParsedFile) -> Iterator[Problem]:
    names = file.rows.raw.names
    winners = [name for name in WINNER_COLUMNS if name in names]
    if winners and file.rows.schema.verdict is None:
        missing = ", ".join(name for name in WINNER_COLUMNS if name not in names)
        yield Problem("error", file.name, f"missing columns {missing}", "a verdict needs all three winner columns")
    for name, ours in schemas.near_misses(names):
        text = f"column {name!r} is not read; did you mean {ours!r}?"
        yield Problem("warning", file.name, text, f"rename it, or set data.columns.{ours}={name}", name)


def _unread_verdicts(path: str, file: ParsedFile, data: Data) -> Iterator[Problem]:
    """Yield a warning if a file without verdicts has a column that may hold them."""
    raw = file.rows.raw
    if file.role == "train":  # it has verdicts, or votes
        return
    try:
        schemas.require_verdict(raw, file.rows.schema, data.columns)
    except schemas.UnknownColumnsError as error:
        theirs = next((theirs for ours, theirs in error.columns.items() if ours in schemas.VERDICT_COLUMNS), None)
        if theirs is not None:
            settings = remedy(suggested_settings(file_column(path, raw.name), raw, error.columns, data))
            yield Problem(
                "warning", file.name, f"column {theirs!r} may hold verdicts", f"if it does, {settings}", theirs
            )


def _print_problems(problems: list[Problem], role: str, battles: BattleSet) -> bool:
    """Print the problems of one file and its possible use; return whether it can be used."""
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
        grouped = problem.by_reason()
        for reason, rows in grouped[:LISTED]:
            print(f"    {problem.file}, {rows_in_words(rows)}{column}: {reason}")
        if len(grouped) > LISTED:
            others = [row for _, rows in grouped[LISTED:] for row in rows]
            print(f"    and {len(grouped) - LISTED:,} other reasons in rows {_row_ranges(others)}")


def _row_ranges(rows: Sequence[int]) -> str:
    """Return "3, 5-9, 12" of row numbers, cut after :data:`RANGE_CHARACTERS`."""
    numbers = np.unique(np.asarray(rows))
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    text = ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)
    return text if len(text) <= RANGE_CHARACTERS else f"{text[:RANGE_CHARACTERS]}... ({len(numbers):,} rows)"
