"""Prompts of a text corpus, streamed in chunks of bounded size from Parquet, JSONL (also .gz, .zst) or CSV.

A ``conversation`` (a list of messages with ``role`` and ``content``, as in LMSYS-Chat-1M) gives two prompts: its first
user turn, and all user turns joined. Any other text column is one prompt.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import zstandard

from oof.common.errors import UserError
from oof.data.conversations import USERS
from oof.data.text_columns import strings

TEXT_COLUMNS = ("conversation", "prompt", "text", "instruction", "question", "content", "input")  # by preference
JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst")

Prompts = list[tuple[str, ...]]  # one tuple per row: the first user turn, and all of them joined if there are several


def read_prompts(path: Path, column: str | None, start: int, size: int) -> Iterator[Prompts]:
    """Yield the prompts of a file's rows from 0-based row ``start`` on, ``size`` rows at a time.

    Args:
        path: a .parquet, .jsonl, .ndjson, .json, .jsonl.gz, .jsonl.zst or .csv file.
        column: the column with the texts; None = the first of ``TEXT_COLUMNS`` that the file has.
        start: rows to skip.
        size: most rows in one chunk.

    Raises:
        UserError: the file is of another kind or damaged, or has no such column.
    """
    try:
        if path.suffix == ".parquet":
            yield from _table(pl.scan_parquet(path, glob=False), path, column, start, size)
        elif path.name.endswith(JSON_LINES):
            yield from _lines(path, column, start, size)
        elif path.suffix == ".csv":
            yield from _table(pl.scan_csv(path, glob=False, infer_schema=False), path, column, start, size)
        else:
            raise UserError(f"{path}: not a .parquet, .jsonl (.gz, .zst) or .csv file; convert it to one of them")
    except (pl.exceptions.PolarsError, OSError, EOFError, zstandard.ZstdError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error


def _table(frame: pl.LazyFrame, path: Path, column: str | None, start: int, size: int) -> Iterator[Prompts]:
    name = _column(path, list(frame.collect_schema()), column)
    for part in frame.select(name).slice(start).collect_batches(chunk_size=size, maintain_order=True):
        for first in range(0, part.height, size):  # polars may return larger batches
            yield [_prompts(_parsed(value)) for value in part.to_series().slice(first, size).to_list()]


def _parsed(value: Any) -> Any:
    """Return a text cell's list of messages where it is one, else the cell as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _lines(path: Path, column: str | None, start: int, size: int) -> Iterator[Prompts]:
    with _open(path) as file:
        name, rows = column, []
        for number, line in enumerate(file):
            if number < start:
                continue
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise UserError(f"{path}, line {number + 1}: not valid JSON ({error}); correct or delete it") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number + 1}: expected a JSON object; write one per line")
            if name is None and row:
                name = _column(path, list(row), None)
            rows.append(_prompts(row.get(name) if name else None))
            if len(rows) == size:
                yield rows
                rows = []
        if rows:
            yield rows


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True), "utf-8")
    return path.open(encoding="utf-8")


def _column(path: Path, names: list[str], wanted: str | None) -> str:
    if wanted is not None and wanted in names:
        return wanted
    known = [name for name in TEXT_COLUMNS if name in names]
    if wanted is not None or not known:
        missing = repr(wanted) if wanted is not None else " or ".join(TEXT_COLUMNS)
        raise UserError(f"{path}: no column {missing}; it has {', '.join(names)}; name one of them with --column")
    return known[0]


def _prompts(value: Any) -> tuple[str, ...]:
    """Return a row's prompts: () where it has none."""
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list):
        texts = [_content(message) for message in value if _is_user(message)]
    else:
        texts = []
    texts = [text for text in strings(texts).to_list() if text and text.strip()] if texts else []
    if not texts:
        return ()
    return (texts[0],) if len(texts) == 1 else (texts[0], "\n".join(texts))


def _is_user(message: Any) -> bool:
    if isinstance(message, str):
        return True  # a list of turns
    return isinstance(message, dict) and str(message.get("role", message.get("from", ""))).lower() in USERS


def _content(message: Any) -> str:
    text = message if isinstance(message, str) else message.get("content", message.get("value"))
    return text if isinstance(text, str) else ""
