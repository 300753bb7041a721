"""Battle files in chunks: a large file is cut into smaller files of the same format.

A file is thus read in bounded memory, and a chunk goes through the same reader as a whole file. Small files, archives
and JSON arrays are not cut. Records do not change: CSV records keep their bytes, invalid ones too.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oof.common.errors import UserError
from oof.data.formats import MAX_FIELD_CHARACTERS
from oof.data.readers import FORMATS

WHOLE_BYTES = 64 << 20  # a file up to this size is not cut


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file.

    Attributes:
        path: the file that holds them.
        source: the file that they come from.
        first: rows of ``source`` before them.
        lines: lines of ``source`` before them, the header not counted; 0 in Parquet.
    """

    path: Path
    source: Path
    first: int
    lines: int = 0

    def error(self, error: UserError) -> UserError:
        """Return an error of the reader that names the source instead of the chunk."""
        if self.path == self.source:
            return error
        message = str(error).replace(str(self.path), str(self.source))
        return UserError(f"{message} (row 1 here is row {self.first + 1} of the file)")


def cut_file(source: Path, rows: int, folder: Path) -> Iterator[Chunk]:
    """Yield the chunks of a file; each is overwritten by the next one.

    Args:
        source: CSV, TSV, JSON lines or Parquet; a small file, or one of another kind, is one chunk, itself.
        rows: data rows of a chunk.
        folder: where chunks are written.

    Raises:
        UserError: a Parquet file cannot be decoded.
    """
    kind = FORMATS.get(source.suffix.lower())
    if source.stat().st_size <= WHOLE_BYTES or kind is None or (kind == "json" and _is_array(source)):
        yield Chunk(source, source, 0)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"chunk{source.suffix.lower()}"
    cutter = {"csv": _cut_csv, "json": _cut_lines, "parquet": _cut_parquet}[kind]
    first = lines = 0
    for n, n_lines in cutter(source, rows, path):
        yield Chunk(path, source, first, lines)
        first, lines = first + n, lines + n_lines
    path.unlink(missing_ok=True)


def _is_array(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _recorded(lines: Iterable[str], read: list[str]) -> Iterator[str]:
    """Yield lines and append them to ``read``, since a CSV record may span several."""
    for line in lines:
        read.append(line)
        yield line


# Each cutter writes a chunk to ``path`` and yields its rows and lines, until the file ends.
def _cut_csv(source: Path, rows: int, path: Path) -> Iterator[tuple[int, int]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    # surrogateescape: bytes that are not UTF-8 stay as they are, so that the reader reports them.
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header = text.readline()
        read: list[str] = []  # lines of the record that was read last
        reader = csv.reader(_recorded(text, read), delimiter=max(",\t;", key=header.count), strict=True)
        n = rows
        while n == rows:
            n = n_lines = 0
            with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as chunk:
                chunk.write(header)
                while n < rows:
                    try:
                        n += bool(next(reader))
                    except StopIteration:
                        break
                    except csv.Error:
                        n += 1  # an invalid record counts too; the reader reports it
                    chunk.writelines(read)
                    n_lines += len(read)
                    read.clear()
            if n:
                yield n, n_lines


def _cut_lines(source: Path, rows: int, path: Path) -> Iterator[tuple[int, int]]:
    with source.open("rb") as file:
        n = rows
        while n == rows:
            n = n_lines = 0
            with path.open("wb") as chunk:
                while n < rows and (line := file.readline()):
                    n, n_lines = n + bool(line.strip()), n_lines + 1
                    chunk.write(line)
            if n:
                yield n, n_lines


# In a child process, because some damaged files make polars abort its process (see oof.data.formats).
SLICE = """
import sys
import polars as pl
source, start, rows, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
frame = pl.scan_parquet(source, glob=False).slice(start, rows).collect()
frame.write_parquet(path)
print(frame.height)
"""


def _cut_parquet(source: Path, rows: int, path: Path) -> Iterator[tuple[int, int]]:
    start, n = 0, rows
    while n == rows:
        command = [sys.executable, "-I", "-c", SLICE, str(source.resolve()), str(start), str(rows), str(path.resolve())]
        child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own script
        if child.returncode:
            reason = (child.stderr.strip().splitlines() or ["its lengths are inconsistent"])[-1]
            raise UserError(f"{source}: damaged Parquet file ({reason[:200]}); write it again")
        n = int(child.stdout)
        start += n
        if n:
            yield n, 0
