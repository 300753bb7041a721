"""Parsing of one large file in chunks: only the clean texts are in memory as a whole, as columns of a frame.

For files whose verdicts are not read, since verdicts are understood from all rows together. What a file's cells mean is
one decision, too (plain texts or lists of turns; ids given or made). So where chunks do not agree, or one cannot be
parsed, the file is parsed as a whole. The result is that of :func:`oof.data.parse_file.parse_file` in every case.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl

from oof.common.errors import UserError
from oof.config import Data
from oof.data.chunks import Chunk, cut_file
from oof.data.parse_file import ParsedFile, parse_file
from oof.data.parsed_rows import ParsedRows
from oof.data.raw_table import RawTable

ROWS = 10_000  # of a chunk, whose cells and turns are Python objects
LINE = re.compile(r"(?:(?<=\()|(?<=quoting from ))line (\d+)(?=\)| on )")  # in the reasons of oof.data.formats


def parse_in_chunks(path: str, role: str, data: Data, seed: int) -> list[ParsedFile]:
    """Return a parsed file, or those of an archive, in a role without verdicts (unlabelled or test).

    Raises:
        UserError: as :func:`oof.data.parse_file.parse_file`.
    """
    parts: list[ParsedFile] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for chunk in cut_file(Path(path), ROWS, Path(folder)):
                if chunk.path == chunk.source:
                    return parse_file(path, role, data, seed)
                (part,) = parse_file(str(chunk.path), role, data, seed)
                parts.append(_moved(part, path, chunk))
        except UserError:  # parsed as a whole, it is named with the file's own name and rows
            return parse_file(path, role, data, seed)
    if len({_meaning(part) for part in parts}) != 1:
        return parse_file(path, role, data, seed)
    return [_joined(parts)]


def _meaning(part: ParsedFile) -> tuple[object, ...]:
    """Return what the parser decided from all rows of the part together."""
    return part.rows.schema.name, part.rows.ids_given, tuple(sorted(part.rows.raw.names))


def _moved(part: ParsedFile, path: str, chunk: Chunk) -> ParsedFile:
    """Return the part under the file's name with the file's row numbers; of its rows' values, ids of faulty ones."""
    rows, raw, first = part.rows, part.rows.raw, chunk.first
    name = path.encode("utf-8", "replace").decode()  # as oof.data.readers names it
    faulty = sorted({fault.position for fault in rows.faults if fault.position is not None})
    place = {position: i for i, position in enumerate(faulty)}
    faults = [
        replace(
            fault,
            row=fault.row + first,
            reason=LINE.sub(lambda match: f"line {int(match[1]) + chunk.lines}", fault.reason),
            position=None if fault.position is None else place[fault.position],
        )
        for fault in rows.faults
    ]
    raw = RawTable(name, raw.names, {}, [row + first for row in raw.rows], raw.faults, raw.renamed)
    kept = ParsedRows(
        raw, rows.schema, ids=[rows.ids[i] for i in faulty], ids_given=rows.ids_given, faults=faults, ties=rows.ties
    )
    frame = part.frame.with_columns(file=pl.lit(name), row=pl.col("row") + first)
    return replace(part, rows=kept, frame=frame)


def _joined(parts: list[ParsedFile]) -> ParsedFile:
    """Return the moved parts of one file as one."""
    raw = replace(parts[0].rows.raw, rows=[], faults=[])
    rows = replace(parts[0].rows, raw=raw, ids=[], faults=[])
    counts: Counter[str] = Counter()
    for part in parts:
        rows.faults += [
            fault if fault.position is None else replace(fault, position=fault.position + len(rows.ids))
            for fault in part.rows.faults
        ]
        rows.ids += part.rows.ids
        raw.rows.extend(part.rows.raw.rows)
        raw.faults.extend(part.rows.raw.faults)
        counts.update(part.counts)
    mapped = frozenset[str]().union(*(part.mapped for part in parts))
    return ParsedFile(rows, parts[0].role, pl.concat([part.frame for part in parts]), counts, mapped, [])
