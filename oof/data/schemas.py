"""Column names: the canonical table's, those that a battle file may have, and the schema they identify.

A file's schema is recognised by its columns alone; :mod:`oof.data.parse_rows` parses the cells accordingly.
``data.columns`` first renames a file's columns to the names below, which covers files with any other names.

Sources: Kaggle "LMSYS - Chatbot Arena Human Preference Predictions" (2024) and "WSDM Cup 2025"; the dataset
cards of lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments, lmarena-ai's
arena-human-preference-55k/100k/140k, HuggingFaceH4/ultrafeedback_binarized and Anthropic/hh-rlhf.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.data.layouts import Layout, layout_of
from oof.data.raw_table import RawTable
from oof.data.suggestions import suggest_columns
from oof.data.verdicts import PROB_COLUMNS, VOTE_COLUMNS, form_of

LABELLED_ROLES = ("train", "extra")
ROLES = (*LABELLED_ROLES, "unlabelled", "test")
TABLE_SCHEMA: dict[str, pl.DataType] = {
    "id": pl.String(),
    "role": pl.String(),
    "weight": pl.Float64(),
    "label": pl.Int8(),
    "prompt": pl.List(pl.String()),
    "response_a": pl.List(pl.String()),
    "response_b": pl.List(pl.String()),
    "model_a": pl.String(),
    "model_b": pl.String(),
    "language": pl.String(),
    "group_key": pl.String(),
    "fold": pl.Int32(),
    "file": pl.String(),
    "row": pl.Int64(),
}
# Columns that the table has only if a file gives them, so that runs without them stay as they were.
SOFT_COLUMNS = ("soft_a", "soft_b", "soft_tie")  # the soft label: shares of the votes in class order
OPTIONAL_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(SOFT_COLUMNS, pl.Float64()),
    "both_bad": pl.Boolean(),
}

TEXTS = ("prompt", "response_a", "response_b")
ONE_HOT_COLUMNS = f"{WINNER_COLUMNS[0]}..{WINNER_COLUMNS[-1]}"  # the three winner columns, as messages name them
VERDICT_COLUMNS = (
    *WINNER_COLUMNS, "winner", "label", "signed_score", "signed_scores", "preference_1_to_2", *VOTE_COLUMNS,
    *PROB_COLUMNS,
)  # fmt: skip
NAME_COLUMNS = ("model_a", "model_b", "language", "group_key")
SOURCE_COLUMNS = ("conversation_a", "conversation_b", "chosen", "rejected", "chosen_model", "rejected_model")
MT_BENCH_COLUMNS = ("question_id", "judge", "turn")  # they identify MT-bench files and make their ids
FILE_COLUMNS = (  # all columns that are read, and that data.columns may name
    "id", *TEXTS, *VERDICT_COLUMNS, *NAME_COLUMNS, "fold", *SOURCE_COLUMNS, *MT_BENCH_COLUMNS
)  # fmt: skip
MT_BENCH = "MT-bench human judgements"


class UnknownColumnsError(UserError):
    """A file lacks columns under our names; ``columns`` is a mapping, ours first, "?" where no column fits.

    ``condition`` says when the mapping is right, where that is not plain from the names.
    """

    def __init__(self, message: str, columns: Mapping[str, str], condition: str = "") -> None:
        super().__init__(message)
        self.columns, self.condition = dict(columns), condition


@dataclass(frozen=True)
class Schema:
    """Schema of a battle file, recognised by its columns.

    Attributes:
        name: as shown to the user.
        kind: "turns", "conversations", "pairs" or "labels" (ids without text).
        verdict: a form of :data:`oof.data.verdicts.FORMS`, "pair", or None if the file has none.
        positive: the side that a positive score favours in this format.
    """

    name: str
    kind: str
    verdict: str | None
    positive: str | None = None

    @property
    def is_mt_bench(self) -> bool:
        """Whether a verdict on turn t is about the first t rounds only, and question ids are not unique."""
        return self.name.startswith(MT_BENCH)


def apply_schema(raw: RawTable, mapping: Mapping[str, str]) -> tuple[RawTable, Schema]:
    """Return the table with our column names, and its schema.

    A mapped column loses its own name and replaces a column that had our name: with ``{prompt: question}`` a column
    named prompt is not read. Only group_key may share a column with another name.

    Args:
        raw: a file's cells.
        mapping: our column name -> the file's.

    Raises:
        UnknownColumnsError: no schema fits.
        UserError: one of our names is unknown.
    """
    for ours in mapping:
        if ours not in FILE_COLUMNS:
            raise UserError(f"data.columns: unknown column {ours!r}; {_suggestion(ours, FILE_COLUMNS)}")
    layout = None if set(TEXTS) <= {*raw.names, *mapping} else layout_of(raw.names)  # our names come first
    entries = {**(layout.columns if layout else {}), **mapping}
    given = {ours: theirs for ours, theirs in entries.items() if theirs in raw.names}
    taken = {theirs for ours, theirs in given.items() if ours != "group_key"} | set(given)
    names = [name for name in raw.names if name not in taken] + list(given)
    columns = {name: values for name, values in raw.columns.items() if name not in taken}
    columns |= {ours: raw.columns[theirs] for ours, theirs in given.items()}
    own_names = {ours: theirs for ours, theirs in given.items() if ours != theirs}
    renamed = RawTable(raw.name, names, columns, raw.rows, raw.faults, own_names)
    try:
        return renamed, recognise(renamed, list(mapping), layout)
    except UnknownColumnsError as error:
        for ours, theirs in mapping.items():
            if theirs not in raw.names and ours not in raw.names:
                where = f"{raw.name}: data.columns.{ours}={theirs}"
                raise UserError(f"{where}: no such column; {_suggestion(theirs, raw.names)}") from None
        mapped = {ours: theirs for ours, theirs in mapping.items() if theirs in raw.names}
        raise UnknownColumnsError(str(error), {**mapped, **error.columns}) from None


def _suggestion(name: str, columns: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(columns), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known columns: {_listed(columns)}"


def _listed(names: Collection[str]) -> str:
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:20]]
    return ", ".join(repr(name) for name in shown) + (", ..." if len(names) > 20 else "") or "none"


def recognise(raw: RawTable, mapped: Sequence[str] = (), layout: Layout | None = None) -> Schema:
    """Return the schema of a file with our column names.

    Args:
        raw: its cells.
        mapped: our columns that the user has mapped; a verdict among them is read, whatever others there are.
        layout: the known layout that gave the columns their names.

    Raises:
        UnknownColumnsError: no schema fits; the message names the nearest one and its missing columns.
    """
    names = set(raw.names)
    verdict = form_of(names, mapped)
    if {"conversation_a", "conversation_b"} <= names:
        return Schema(_conversation_name(names), "conversations", verdict)
    if set(TEXTS) <= names:
        by_verdict = {"one-hot": "Kaggle LMSYS", "winner": "WSDM Cup 2025", None: "Kaggle LMSYS without winners"}
        name = layout.name if layout else by_verdict.get(verdict, f"prompt, responses and {verdict}")
        return Schema(name, "turns", verdict, layout.positive if layout else None)
    if {"chosen", "rejected"} <= names:
        return Schema(layout.name if layout else "chosen/rejected pairs", "pairs", "pair")
    columns = suggest_columns(raw.names, FILE_COLUMNS)
    texts = names & {*TEXTS, *SOURCE_COLUMNS} or {"response_a", "conversation_a"} & set(columns)
    if "id" in names and not texts and (verdict or names <= {"id", "fold", *NAME_COLUMNS}):
        return Schema("ids with labels only" if verdict else "ids only", "labels", verdict)
    missing = _missing_columns(raw.names, columns)
    if columns and (open_columns := [name for name in missing if name not in columns]):
        left = [name for name in raw.names if name not in {*FILE_COLUMNS, *columns.values()}]
        guess = left[0] if open_columns == ["prompt"] and len(left) == 1 else "?"
        columns = {**{name: columns.get(name, guess) for name in missing}, **columns}
    there = f"the file has the columns {_listed(raw.names)}"
    raise UnknownColumnsError(f"{raw.name}: missing columns {', '.join(missing)}; {there}", columns)


def _conversation_name(names: Collection[str]) -> str:
    if {"judge", "turn", "question_id"} <= set(names) and not {"anony", "tstamp", "language"} & set(names):
        return MT_BENCH
    if {"evaluation_order", "evaluation_session_id"} & set(names):
        return "arena-human-preference-140k"
    if {"is_code", "category_tag", "conv_metadata", "dedup_tag"} & set(names):
        return "arena-human-preference-100k"
    return "chatbot_arena_conversations"


def _missing_columns(names: Sequence[str], suggested: Mapping[str, str]) -> list[str]:
    """Return which columns the nearest schema lacks."""
    known = {*names, *suggested}
    shapes = [TEXTS, ("conversation_a", "conversation_b"), ("chosen", "rejected"), ("id", "label")]
    nearest = max(shapes, key=lambda shape: len(set(shape) & known) / len(shape))
    return [column for column in nearest if column not in names]


def near_misses(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (column that is not read, known column with nearly the same name that the file lacks)."""
    absent = [column for column in FILE_COLUMNS if column not in names]
    unknown = [name for name in names if name not in FILE_COLUMNS and name.isprintable()]
    near = [(name, difflib.get_close_matches(name, absent, n=1, cutoff=0.85)) for name in unknown]
    return [(name, matches[0]) for name, matches in near if matches]


def require_verdict(raw: RawTable, schema: Schema, mapping: Mapping[str, str]) -> None:
    """Refuse a file without verdicts, for roles that need them.

    Args:
        raw: its cells, with our column names.
        schema: of the file.
        mapping: ``data.columns``.

    Raises:
        UnknownColumnsError: names the missing columns, and the column that may hold the verdicts.
    """
    if schema.verdict is not None:
        return
    missing = [column for column in WINNER_COLUMNS if column not in raw.names]
    problem = f"{raw.name}: no verdicts: missing columns {', '.join(missing)} (or winner, or label); "
    suggested = suggest_columns(raw.names, FILE_COLUMNS)
    verdicts = {ours: theirs for ours, theirs in suggested.items() if ours in VERDICT_COLUMNS}
    if not verdicts:
        raise UnknownColumnsError(f"{problem}give the file as data.unlabelled or data.test", {}, "or ")
    mapped = {ours: theirs for ours, theirs in mapping.items() if raw.renamed.get(ours) == theirs}
    raise UnknownColumnsError(
        f"{problem}give the file as data.unlabelled or data.test",
        {**mapped, **verdicts},
        f"or, if column {next(iter(verdicts.values()))!r} holds them, ",
    )
