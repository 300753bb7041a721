"""Columns to a schema.

A schema is recognised by its columns alone and named in every report; ``drafts`` reads the cells by it.
``data.columns`` renames a file's
columns to the names below before recognition, which covers files of any other make.

Sources: Kaggle "LMSYS - Chatbot Arena Human Preference Predictions" (2024) and "WSDM Cup 2025"; the dataset
cards of lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments, lmarena-ai's
arena-human-preference-55k/100k/140k, HuggingFaceH4/ultrafeedback_binarized and Anthropic/hh-rlhf.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.data.formats import RawTable

TEXTS = ("prompt", "response_a", "response_b")
VERDICTS = (*WINNER_COLUMNS, "winner", "label")
SMALL = ("model_a", "model_b", "language", "group_key")
SOURCES = ("conversation_a", "conversation_b", "chosen", "rejected", "chosen_model", "rejected_model")
HINTS = ("question_id", "judge", "turn")  # they tell MT-bench from the other conversation files, and make its ids
COLUMNS = ("id", *TEXTS, *VERDICTS, *SMALL, "fold", *SOURCES, *HINTS)  # all that a file may bring, or be mapped to
MT_BENCH = "MT-bench human judgements"


@dataclass(frozen=True)
class Schema:
    """What a file's columns say it is.

    Attributes:
        name: as shown to people.
        kind: "turns", "conversations", "pairs" or "labels" (ids without text).
        verdict: "one-hot", "winner", "label", "pair" or None where the file has none.
    """

    name: str
    kind: str
    verdict: str | None

    @property
    def is_mt_bench(self) -> bool:
        """Whether a verdict on turn t is about the first t rounds only, and question ids repeat."""
        return self.name.startswith(MT_BENCH)


def understand(raw: RawTable, mapping: Mapping[str, str]) -> tuple[RawTable, Schema]:
    """Return the table under our column names, and its schema. ``mapping`` is our name -> the file's.

    A mapped column leaves its own name, and hides a column that had ours: ``{prompt: question}`` wins over a column
    named prompt. Only group_key may share its column with another name.

    Raises:
        UserError: one of our names is unknown, or no schema fits.
    """
    for ours in mapping:
        if ours not in COLUMNS:
            raise UserError(f"data.columns: unknown column {ours!r}; {_near(ours, COLUMNS)}")
    given = {ours: theirs for ours, theirs in mapping.items() if theirs in raw.names}
    taken = {theirs for ours, theirs in given.items() if ours != "group_key"} | set(given)
    names = [name for name in raw.names if name not in taken] + list(given)
    columns = {name: values for name, values in raw.columns.items() if name not in taken}
    columns |= {ours: raw.columns[theirs] for ours, theirs in given.items()}
    renamed = RawTable(raw.name, names, columns, raw.rows, raw.faults)
    try:
        return renamed, recognise(renamed)
    except UserError:
        for ours, theirs in mapping.items():
            if theirs not in raw.names and ours not in raw.names:
                where = f"{raw.name}: data.columns.{ours}={theirs}"
                raise UserError(f"{where}: no such column; {_near(theirs, raw.names)}") from None
        raise


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known columns: {_listed(known)}"


def _listed(names: Collection[str]) -> str:
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:20]]
    return ", ".join(repr(name) for name in shown) + (", ..." if len(names) > 20 else "") or "none"


def recognise(raw: RawTable) -> Schema:
    """Return the schema that the columns make.

    Raises:
        UserError: no schema fits; the message names the nearest one and what is missing from it.
    """
    names = set(raw.names)
    verdict = _verdict(names)
    if {"conversation_a", "conversation_b"} <= names:
        return Schema(_conversation_name(names), "conversations", verdict)
    if set(TEXTS) <= names:
        known = {"one-hot": "Kaggle LMSYS", "winner": "WSDM Cup 2025", "label": "prompt, responses and label"}
        return Schema(known.get(verdict or "", "Kaggle LMSYS without winners"), "turns", verdict)
    if {"chosen", "rejected"} <= names:
        return Schema("chosen/rejected pairs", "pairs", "pair")
    if "id" in names and not names & {*TEXTS, *SOURCES} and (verdict or names <= {"id", "fold", *SMALL}):
        return Schema("ids with labels only" if verdict else "ids only", "labels", verdict)
    raise UserError(f"{raw.name}: {_unrecognised(raw.names)}; found the columns {_listed(raw.names)}")


def _verdict(names: Collection[str]) -> str | None:
    if set(WINNER_COLUMNS) <= set(names):
        return "one-hot"
    return "winner" if "winner" in names else "label" if "label" in names else None


def _conversation_name(names: Collection[str]) -> str:
    if {"judge", "turn", "question_id"} <= set(names) and not {"anony", "tstamp", "language"} & set(names):
        return MT_BENCH
    if {"evaluation_order", "evaluation_session_id"} & set(names):
        return "arena-human-preference-140k"
    if {"is_code", "category_tag", "conv_metadata", "dedup_tag"} & set(names):
        return "arena-human-preference-100k"
    return "chatbot_arena_conversations"


def _unrecognised(names: Sequence[str]) -> str:
    shapes = [TEXTS, ("conversation_a", "conversation_b"), ("chosen", "rejected"), ("id", "label")]
    nearest = max(shapes, key=lambda shape: len(set(shape) & set(names)) / len(shape))
    missing = [column for column in nearest if column not in names]
    free = [name for name in names if name not in COLUMNS]
    close = [(column, difflib.get_close_matches(column, free, n=1, cutoff=0.8)) for column in missing]
    maps = [f"data.columns.{column}={found[0]}" for column, found in close if found and found[0].isprintable()]
    remedy = f"set {' '.join(maps)}" if maps else "name the file's own columns in data.columns"
    return f"missing columns {', '.join(missing)}; {remedy}"


def near_misses(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (column that is not read, known column that it nearly is) where the file lacks the known one."""
    absent = [column for column in COLUMNS if column not in names]
    near = [(name, difflib.get_close_matches(name, absent, n=1, cutoff=0.85)) for name in names if name not in COLUMNS]
    return [(name, found[0]) for name, found in near if found and name.isprintable()]


def need_verdict(raw: RawTable, schema: Schema) -> None:
    """Refuse a file without verdicts where the role needs them.

    Raises:
        UserError: names the missing columns.
    """
    if schema.verdict is None:
        missing = [column for column in WINNER_COLUMNS if column not in raw.names]
        raise UserError(
            f"{raw.name}: no verdicts: missing columns {', '.join(missing)} (or winner, or label); name the file's own "
            f"columns in data.columns, or give the file as data.unlabelled or data.test"
        )
