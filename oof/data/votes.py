"""Votes of several annotators on the train battles, from files of their own (``data.votes``), joined by id.

A file of votes has an ``id`` and either numbers of votes (``votes_a``, ``votes_b``, ``votes_tie``), one row a battle,
or a verdict (``winner`` or ``label``), one row a vote, with the annotator in a column such as ``annotator`` if that is
known. Most votes win, equal numbers are a tie, and the shares are the battle's soft label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.config import Data
from oof.data import parse_cells, readers, schemas
from oof.data.parsed_rows import ParsedRows
from oof.data.problems import DROPPED, Problem, rejected_rows, rejection_message, rows_in_words
from oof.data.raw_table import RawTable
from oof.data.schemas import FILE_COLUMNS, TEXTS, Schema
from oof.data.suggested_settings import UnreadableColumnsError, file_column, suggested_settings
from oof.data.verdicts import VOTE_COLUMNS, Shares, Verdict, majority, read_verdicts

ANNOTATORS = ("judge", "annotator", "annotator_id", "worker", "worker_id")  # columns that say whose vote a row is
COUNTS, ONE_BY_ONE = "votes", "one row a vote: most votes win, equal → tie; their shares are the soft label"
EXAMPLES = 3  # ids that a message names


@dataclass
class Votes:
    """Votes by id of the battle, and the battles that they were given to.

    Attributes:
        files: names of the files.
        by_id: id -> (3,) numbers of votes in class order.
        rows: id -> file and row of its first votes.
        coding: how the files' cells were read, in words.
        mapped: entries of ``data.columns`` whose column a file has.
        problems: of the files alone.
        given: id -> file of the battle that has its votes.
        without: battles that have no votes and keep the verdict of their file.
        replaced: battles whose file has another verdict than most votes.
    """

    files: list[str] = field(default_factory=list)
    by_id: dict[str, list[float]] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    coding: dict[str, None] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    without: int = 0
    replaced: int = 0

    @property
    def name(self) -> str:
        return ", ".join(self.files)

    def on(self, raw: RawTable) -> bool:
        """Return whether a file has an id with votes."""
        return any(_id(cell) in self.by_id for cell in raw.columns.get("id", ()))

    def give(self, rows: ParsedRows) -> None:
        """Set labels and soft labels of a file's battles; further rows of one battle are left out.

        Raises:
            UserError: the battles have no ids of their own, or no sides A and B.
        """
        name = rows.raw.name
        if rows.schema.kind == "pairs":
            raise UserError(f"{name}: chosen/rejected pairs have no sides A and B to vote for; leave out data.votes")
        if not rows.ids_given:
            raise UserError(f"{name}: missing column id, by which data.votes is joined; set data.columns.id")
        verdicts: list[Verdict | None] = [None] * rows.n
        first: dict[str, int] = {}
        faulty = {fault.position for fault in rows.faults}
        for i, battle in enumerate(rows.ids):
            earlier = first.setdefault(battle, i)
            if earlier != i and all(getattr(rows, text)[i] == getattr(rows, text)[earlier] for text in TEXTS):
                place = f"row {rows.raw.rows[earlier]}"
                rows.fault(i, "id", f"one more row of the battle of {place}", "data.votes", chosen=True)
            elif battle in self.by_id:
                verdicts[i] = self._take(rows, i)
            elif rows.labels[i] is not None:
                self.without += 1
            elif i not in faulty:
                remedy = "add votes or a verdict, or leave the battle out"
                rows.fault(i, "id", f"{battle!r} has no votes in {self.name}, and no verdict of its own", remedy)
        votes = [self.by_id[battle] if verdict else None for battle, verdict in zip(rows.ids, verdicts, strict=True)]
        for k, column in enumerate(VOTE_COLUMNS):
            rows.raw.columns[column] = [None if row is None else _whole(row[k]) for row in votes]
        if any(verdicts):
            rows.verdict_columns = VOTE_COLUMNS
            rows.coding = f"votes of {self.name}: {'; '.join(self.coding)}"

    def _take(self, rows: ParsedRows, i: int) -> Verdict:
        """Return the verdict of the votes on a battle, after it was stored."""
        battle = rows.ids[i]
        other = self.given.setdefault(battle, rows.raw.name)
        if other != rows.raw.name:
            reason = f"{other} has a battle {battle!r}, too, and its votes are of one of them"
            rows.fault(i, "id", reason, "give each battle a unique id")
        verdict = majority(self.by_id[battle])
        self.replaced += rows.labels[i] not in (None, verdict.label)
        rows.labels[i], rows.soft[i], rows.both_bad[i] = verdict.label, verdict.soft, False
        return verdict

    def all_problems(self) -> list[Problem]:
        """Return the problems of the files and of the join, after all battles have their votes.

        Raises:
            UserError: no battle has votes.
        """
        if not self.given:
            raise UserError(
                f"{self.name}: none of its ids ({_listed(list(self.by_id))}) is an id of a train battle; give battles "
                "and votes the same ids, or set data.columns.id to the column that has them"
            )
        unused = [name for name in self.by_id if name not in self.given]
        texts = []
        if unused:
            n = f"{len(unused):,} of {len(self.by_id):,} ids with votes"
            texts.append(f"{n} are no train battle's: {_listed(unused)} ({self.rows[unused[0]]})")
        if self.without:
            texts.append(f"{self.without:,} train battles have no votes and keep the verdict of their file")
        if self.replaced:
            texts.append(f"{self.replaced:,} train battles have another verdict in their file; the votes count")
        return [*self.problems, *(Problem("warning", self.name, text) for text in texts)]


def read_votes(data: Data) -> Votes | None:
    """Return the votes of the files of ``data.votes``; None without such a setting.

    Raises:
        UserError: a file is no file of votes, or, with ``on_bad_row="error"``, some of its rows cannot be used.
    """
    if not data.votes:
        return None
    votes = Votes()
    wanted = {*FILE_COLUMNS, *ANNOTATORS, *data.columns.values()}
    for path in readers.expand(data.votes):
        for cells in readers.read_raw(path, wanted):
            try:
                raw, schema = schemas.apply_schema(cells, data.columns)
            except schemas.UnknownColumnsError as error:
                read_column = file_column(path, cells.name)
                raise UnreadableColumnsError(
                    error, suggested_settings(read_column, cells, error.columns, data)
                ) from None
            votes.mapped |= {ours for ours, theirs in data.columns.items() if theirs in cells.names}
            _add_file(votes, raw, schema, data)
    return votes


def _add_file(votes: Votes, raw: RawTable, schema: Schema, data: Data) -> None:
    if schema.verdict in (None, "pair") or "id" not in raw.columns:
        raise UserError(
            f"{raw.name}: is no file of votes; it needs id and votes_a, votes_b, votes_tie, or id and winner or label "
            "with one row a vote"
        )
    assert schema.verdict is not None  # checked above
    rows = ParsedRows(raw, schema, faults=list(raw.faults))
    rows.ids = rows.parse_column("id", parse_cells.identifier, default="")
    read = read_verdicts(raw, schema.verdict, data, schema.positive)
    for fault in read.faults:
        rows.fault(*fault)
    counts = schema.verdict == COUNTS
    repeated = _add_rows(votes, rows, read.rows, counts)
    votes.files.append(raw.name)
    votes.coding[read.coding if counts else f"{read.coding}; {ONE_BY_ONE}"] = None
    votes.problems += _file_problems(rows, repeated, data.on_bad_row)


def _add_rows(votes: Votes, rows: ParsedRows, verdicts: Sequence[Verdict], counts: bool) -> list[int]:
    """Add the votes of a file's rows; return the rows that are an annotator's second vote on a battle."""
    column = next((name for name in ANNOTATORS if name in rows.raw.columns), None)
    annotators = rows.raw.columns[column] if column else [None] * rows.n
    faulty = {fault.position for fault in rows.faults}
    voted: set[tuple[str, str]] = set()
    repeated = []
    for i, (battle, verdict, annotator) in enumerate(zip(rows.ids, verdicts, annotators, strict=True)):
        if i in faulty:
            continue
        if counts and battle in votes.by_id:
            reason = f"the votes on {battle!r} are in {votes.rows[battle]}"
            rows.fault(i, "id", reason, "write all votes on a battle into one row")
            continue
        if not parse_cells.is_missing(annotator) and (battle, str(annotator)) in voted:
            repeated.append(rows.raw.rows[i])
            continue
        voted.add((battle, str(annotator)))
        votes.rows.setdefault(battle, f"{rows.raw.name}, row {rows.raw.rows[i]}")
        before = votes.by_id.setdefault(battle, [0.0] * len(CLASSES))
        votes.by_id[battle] = [x + y for x, y in zip(before, _numbers(rows.raw, i, verdict, counts), strict=True)]
    return repeated


def _numbers(raw: RawTable, i: int, verdict: Verdict, counts: bool) -> Shares | list[float]:
    """Return the (3,) votes of one row in class order."""
    if counts:
        cells = [raw.columns[name][i] if name in raw.columns else None for name in VOTE_COLUMNS]
        return [0.0 if parse_cells.is_missing(cell) else parse_cells.number(cell) for cell in cells]
    return verdict.soft or [float(verdict.label == k) for k in range(len(CLASSES))]


def _file_problems(rows: ParsedRows, repeated: list[int], on_bad_row: str) -> Iterator[Problem]:
    """Yield the problems of a file's rows.

    Raises:
        UserError: ``on_bad_row`` is "error", and some rows cannot be used.
    """
    rejected = rejected_rows([rows], pl.DataFrame(schema={"file_number": pl.Int32(), **DROPPED}), {})
    if rejected and on_bad_row == "error":
        raise UserError(rejection_message([rows], rejected, "the log then names them"))
    if rejected:
        bad = tuple((item.row, str(item)) for item in rejected)
        text = f"{len({row for row, _ in bad}):,} of {rows.raw.n_read:,} rows of votes are left out"
        yield Problem("warning", rows.raw.name, text, "data.on_bad_row=drop", rows=bad)
    if repeated:
        text = f"{rows_in_words(repeated)}: an annotator's second vote on one battle; the first counts"
        yield Problem("warning", rows.raw.name, text)


def _id(cell: object) -> str:
    try:
        return parse_cells.identifier(cell)
    except parse_cells.CellError:
        return ""


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:EXAMPLES])) + (", …" if len(ids) > EXAMPLES else "")


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() else number
