"""Strict parsers of CSV, JSON and Parquet: Python's ``csv`` in strict mode, ``json``, and polars.

A damaged record becomes a :class:`RowFault` with its row and reason; it is never merged with the next record or filled
with nulls. For every file ``len(raw.rows) + len(raw.faults) == raw.n_read``. Text is never evaluated and nothing is
unpickled.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO, Any

import polars as pl

from oof.common.errors import UserError
from oof.data.raw_table import RawTable, RowFault

Opener = Callable[[], IO[bytes]]
MAX_FIELD_CHARACTERS = 2**31 - 1  # csv's own default of 131,072 would refuse long responses
INVALID_BYTE = re.compile("[\udc80-\udcff]")  # how Python's "surrogateescape" marks a byte that is not UTF-8
QUOTING = "quote each text, double the quotes inside it, and give each row every field"
ENCODING = "save the file as UTF-8"
JSON_OBJECT = 'write one JSON object per line, such as {"id": 1, "prompt": "..."}'


# --- CSV -------------------------------------------------------------------------------------------------


def read_csv(name: str, opener: Opener, wanted: Collection[str], errors: str) -> RawTable:
    """Return the cells of a file separated by commas, tabs or semicolons.

    Args:
        name: the file as messages show it.
        opener: opens the unpacked bytes.
        wanted: columns to keep.
        errors: "strict", or "surrogateescape" to name the rows with bytes that are not UTF-8.

    Raises:
        UserError: the first line is not a header of distinct column names.
        UnicodeDecodeError: ``errors`` is "strict" and the file is not UTF-8.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with opener() as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline="") as text:
        first = text.readline()
        separator = max(",\t;", key=first.count)  # a tie, and a single column, give the comma
        header = _header(name, next(csv.reader([first], delimiter=separator), []))
        reader = csv.reader(text, delimiter=separator, strict=True)
        records, rows, faults = _records(reader, header, marked=errors != "strict")
    keep = {column: i for i, column in enumerate(header) if column in wanted}
    cells = list(zip(*records, strict=True)) if records else [()] * len(header)
    return RawTable(name, header, {column: list(cells[i]) for column, i in keep.items()}, rows, faults)


def _header(name: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not any(header):
        raise UserError(f"{name}: the first line contains no column names; add a header line")
    if any("\0" in cell or INVALID_BYTE.search(cell) for cell in header):
        raise UserError(f"{name}: the first line is not UTF-8 text; check that this is a CSV file")
    if header[0][:1] in ("{", "["):
        raise UserError(f"{name}: contains JSON, but CSV was expected; name it .jsonl")
    twice = [column for i, column in enumerate(header) if column and column in header[:i]]
    if twice:
        raise UserError(f"{name}: column {twice[0]!r} occurs twice in the header; rename or remove one")
    return header


def _records(reader: Any, header: list[str], marked: bool) -> tuple[list[list[str]], list[int], list[RowFault]]:
    """Return the readable records, their data rows, and the faults of the others.

    Args:
        reader: a ``csv.reader`` behind the header.
        header: names of the columns.
        marked: bytes that are not UTF-8 are marked by "surrogateescape".
    """
    records: list[list[str]] = []
    rows: list[int] = []
    faults: list[RowFault] = []
    row = 0
    while True:
        start = reader.line_num + 2  # the header is line 1
        try:
            record = next(reader)
        except StopIteration:
            return records, rows, faults
        except csv.Error as error:
            row += 1
            faults.append(RowFault(row, None, f"broken quoting from line {start} on ({_one_line(error)})", QUOTING))
            continue
        if not record:
            continue  # a blank line
        row += 1
        fault = _record_fault(record, header, marked, start)
        if fault:
            faults.append(RowFault(row, *fault))
        else:
            records.append(record)
            rows.append(row)


def _record_fault(record: list[str], header: list[str], marked: bool, line: int) -> tuple[str | None, str, str] | None:
    if len(record) != len(header):
        return None, f"{len(record)} fields, but the header has {len(header)} (line {line})", QUOTING
    if marked:
        for column, cell in zip(header, record, strict=True):
            if match := INVALID_BYTE.search(cell):
                byte = ord(match.group()) - 0xDC00
                return column, f"byte 0x{byte:02x} is not UTF-8", ENCODING
    return None


# --- JSON lines ------------------------------------------------------------------------------------------


def read_json(name: str, opener: Opener, wanted: Collection[str], array: bool) -> RawTable:
    """Return the cells of JSON objects, one per line or, with ``array``, in one JSON array.

    Raises:
        UserError: no row is a JSON object, or the array cannot be parsed.
    """
    rows: list[int] = []
    faults: list[RowFault] = []
    records: list[dict[str, Any]] = []
    with opener() as stream:
        values = _json_array(name, stream.read()) if array else _json_lines(stream)
        for row, value in enumerate(values, 1):
            if isinstance(value, dict):
                records.append(value)
                rows.append(row)
            else:
                shown = f"not a JSON object: {value!r:.40}"
                faults.append(value if isinstance(value, RowFault) else RowFault(row, None, shown, JSON_OBJECT))
    if faults and not records:
        raise UserError(f"{name}: no row is a JSON object; the first reason: {faults[0].reason}; {faults[0].remedy}")
    names = list(dict.fromkeys(key for record in records for key in record))
    columns = {column: [record.get(column) for record in records] for column in names if column in wanted}
    return RawTable(name, names, columns, rows, faults)


def _json_lines(stream: Iterable[bytes]) -> Iterator[Any]:
    """Yield the value of each line that is not blank; a fault where it is not JSON."""
    row = 0
    for i, line in enumerate(stream):
        line = line.removeprefix(b"\xef\xbb\xbf") if i == 0 else line
        if not line.strip():
            continue
        row += 1
        try:
            yield json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield RowFault(row, None, f"byte 0x{line[error.start]:02x} is not UTF-8 (line {i + 1})", ENCODING)
        except (ValueError, RecursionError) as error:
            yield RowFault(row, None, f"not valid JSON (line {i + 1}): {error}", JSON_OBJECT)


def _json_array(name: str, data: bytes) -> list[Any]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(
            f"{name}: not valid JSON ({error}); write one object per line, so that the bad row can be named"
        ) from error
    if not isinstance(value, list):
        raise UserError(f"{name}: not a JSON array of objects; write one, or one object per line")
    return value


# --- Parquet ---------------------------------------------------------------------------------------------


# Some damaged files make polars 2.1 abort the whole process (an allocation of 2**61 bytes) or panic with a Rust
# backtrace on stderr. So a child process decodes the file and returns it as an Arrow stream. The cost is the import of
# polars, about 0.3 s per file.
DECODE = """
import io, json, sys
import polars as pl
source, wanted = io.BytesIO(sys.stdin.buffer.read()), json.loads(sys.argv[1])
names = list(pl.read_parquet_schema(source))
source.seek(0)
columns = [name for name in names if name in wanted]
frame = pl.read_parquet(source, columns=columns or names[:1])
sys.stdout.buffer.write(json.dumps(names).encode() + b"\\n")
frame.write_ipc_stream(sys.stdout.buffer)
"""
DECODE_SECONDS = 900


def read_parquet(name: str, opener: Opener, wanted: Collection[str]) -> RawTable:
    """Return the cells of a Parquet file.

    Raises:
        UserError: the file cannot be decoded.
    """
    with opener() as stream:
        data = stream.read()
    command = [sys.executable, "-I", "-c", DECODE, json.dumps(sorted(wanted))]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=DECODE_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{name}: cannot be decoded in {DECODE_SECONDS} s; save it again, or split it") from error
    if child.returncode:
        stderr = child.stderr.decode("utf-8", "replace")
        messages = re.findall(r"^polars\.exceptions\.\w+Error: (.*)", stderr, re.MULTILINE)
        reason = _one_line(messages[-1]) if messages else "its lengths make no sense"
        raise UserError(f"{name}: damaged Parquet file ({reason}); fetch or save it again")
    line, _, arrow = child.stdout.partition(b"\n")
    names = json.loads(line)
    frame = pl.read_ipc_stream(arrow)
    columns = {column: frame[column].to_list() for column in names if column in wanted}
    return RawTable(name, names, columns, list(range(1, frame.height + 1)), [])


def _one_line(reason: object) -> str:
    """Return a library's message on one line, without control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(reason))
    return " ".join(text.split())[:200]
